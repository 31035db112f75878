"""Writes a plugin package from the templates beside this file: `robflat-bench plugin new`.

The component of each kind is a small, correct example, written as the built-in components are: one file with equation,
parameters, row and code. The package passes its own tests and `plugin check` as it is.
"""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import robflat_bench
from robflat_bench import api
from robflat_bench.core import Kind, UsageError
from robflat_bench.registry.registry import Registry

WIDTH = 88
"""Line length of the written files: ruff's default."""


@dataclass(frozen=True)
class Example:
    """The component of a template: its summary, and the commands that use it."""

    summary: str
    use: tuple[str, ...]


EXAMPLES: dict[Kind, Example] = {
    "method": Example("adversarial training on a mix of clean and adversarial images", ("run --method {}",)),
    "modifier": Example("label smoothing that fades while training goes on", ("run --method at+{}",)),
    "attack": Example("one sign step from a random start", ("run --method at", "evaluate RUN --attack {}")),
    "measure": Example("rise of the loss one sign step away", ("run --method at", "evaluate RUN --measure {}")),
    "backbone": Example("two convolutions and a linear head", ("run --method at --set fixed.backbone={}",)),
    "dataset": Example("bright lines in noise, 8x8", ("run --method at --set fixed.data.dataset={}",)),
}

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "test.yml",
    "{package}/__init__.py": "package.py",
    "{package}/{module}.py": "{kind}/component.py",
    "tests/test_{module}.py": "{kind}/test.py",
}
"""Path in the package -> template."""


@dataclass(frozen=True)
class Package:
    """A package by its distribution's name, and the names that follow from it."""

    name: str
    kind: Kind

    @property
    def component(self) -> str:
        """Name of the component: robflat-my-at -> my-at."""
        return self.name.removeprefix("robflat-")

    @property
    def package(self) -> str:
        """Name of the Python package: robflat_my_at."""
        return self.name.replace("-", "_")

    @property
    def module(self) -> str:
        """Name of the component's file: my_at."""
        return self.component.replace("-", "_")

    @property
    def title(self) -> str:
        """Name of the component's class: MyAt."""
        return "".join(part.capitalize() for part in self.component.split("-"))


def create(registry: Registry, name: str, kind: Kind, into: Path) -> list[Path]:
    """Write a package as `into/name`.

    Parameters
    ----------
    registry : Registry
        Knows the names that are taken.
    name : str
        Name of the distribution: lower-case words joined by dashes.
    kind : str
        A key of `EXAMPLES`.
    into : Path
        Folder; created if needed.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    UsageError
        The name is taken or cannot be used in Python, the folder exists, or it lies in the checkout of robflat-bench.
    """
    package, folder = Package(name, kind), into / name
    _check_names(registry, package)
    core = checkout()
    if core is not None and folder.resolve().is_relative_to(core):
        raise UsageError(
            f"{folder} would lie in the checkout of robflat-bench, a workspace with members of its own; "
            f"type: robflat-bench plugin new {name} --kind {kind} --into {core.parent}"
        )
    if folder.exists():
        raise UsageError(f"{folder} exists already; choose another name, or another folder with --into DIR")
    written = []
    for path, text in render(package, core).items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        written.append(target)
    return written


def render(package: Package, core: Path | None) -> dict[str, str]:
    """Path -> text of every file; core: the checkout of robflat-bench that the package depends on, if there is one."""
    example = EXAMPLES[package.kind]
    environment = Environment(
        loader=PackageLoader("robflat_bench.scaffold"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"importing": importing, "quoted": lambda path: json.dumps(str(path), ensure_ascii=False)}
    values = {
        **{name: getattr(package, name) for name in ("name", "kind", "component", "package", "module", "title")},
        "summary": example.summary,
        "use": [line.format(package.component) for line in example.use],
        "bounds": bounds(robflat_bench.__version__),
        "core": core,
    }
    return {
        path.format(**values): environment.get_template(f"{template.format(**values)}.jinja").render(values)
        for path, template in FILES.items()
    }


def importing(module: str, *names: str) -> str:
    """An import statement as ruff formats it: on one line if it fits."""
    line = f"from {module} import {', '.join(names)}"
    wrapped = "".join(f"    {name},\n" for name in names)
    return line if len(line) <= WIDTH else f"from {module} import (\n{wrapped})"


def bounds(version: str) -> str:
    """The versions of robflat-bench that a new package requires: from this one up to the next that may break it."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{f'{major}.{minor + 1}' if major == 0 else major + 1}"


def checkout() -> Path | None:
    """The checkout of the running robflat-bench; None where it is installed from a wheel."""
    folder = Path(robflat_bench.__file__).resolve().parent.parent
    return folder if (folder / "pyproject.toml").is_file() else None


def _check_names(registry: Registry, package: Package) -> None:
    """UsageError unless distribution, package, module, class and component can have their names."""
    name, component = package.name, package.component
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or not component[0].isalpha():
        raise UsageError(f"'{name}' cannot name a package: join lower-case words by single dashes, e.g. robflat-my-at")
    if keyword.iskeyword(package.module) or keyword.iskeyword(package.package) or package.title in api.__all__:
        raise UsageError(f"'{component}' means something to Python or to robflat_bench.api; choose another name")
    if importlib.util.find_spec(package.package) is not None:
        raise UsageError(f"there is a Python package {package.package} already; choose another name")
    owners = [offer.provider for offer in registry.offers(package.kind) if offer.info.name == component]
    if owners:
        owner = f"{owners[0].distribution} has a {package.kind} '{component}'"
        raise UsageError(f"{owner}, and a name that two plugins offer cannot be used; choose another name")
