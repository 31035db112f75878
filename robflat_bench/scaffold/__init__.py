"""Makes a plugin package from the templates beside this file: `robflat-bench plugin new`.

Every kind's component is a small, correct example that passes the conformance kit as it is. What a package must
keep to is checked by `audit`.
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
"""Columns of what is written: ruff's default."""


@dataclass(frozen=True)
class Example:
    """What a template's component is, in a line, and the commands that use it."""

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
    "{package}/__init__.py": "{kind}/catalogue.py",
    "{package}/{module}.py": "{kind}/component.py",
    "tests/test_{module}.py": "{kind}/test.py",
}
"""Path in the package -> template."""


@dataclass(frozen=True)
class Package:
    """A package by its distribution's name, and what is named after it."""

    name: str
    kind: Kind

    @property
    def component(self) -> str:
        return self.name.removeprefix("robflat-")

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")

    @property
    def module(self) -> str:
        return self.component.replace("-", "_")

    @property
    def title(self) -> str:
        """Of classes."""
        return "".join(part.capitalize() for part in self.component.split("-"))


def create(registry: Registry, name: str, kind: Kind, into: Path) -> list[Path]:
    """Write the package as `into/name`; the paths of its files. UsageError where it could not work there."""
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
    """Path -> text of every file; core: the checkout of robflat-bench to work with, if it is one."""
    example, names = EXAMPLES[package.kind], {"package": package.package, "module": package.module}
    environment = Environment(
        loader=PackageLoader("robflat_bench.scaffold"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"importing": importing, "quoted": lambda path: json.dumps(str(path), ensure_ascii=False)}
    values = {
        **names,
        "name": package.name,
        "kind": package.kind,
        "component": package.component,
        "title": package.title,
        "summary": example.summary,
        "use": [line.format(package.component) for line in example.use],
        "bounds": bounds(robflat_bench.__version__),
        "core": core,
    }
    return {
        path.format(**names): environment.get_template(f"{template.format(kind=package.kind)}.jinja").render(values)
        for path, template in FILES.items()
    }


def importing(module: str, *names: str) -> str:
    """The import statement as a formatter leaves it: one line where it fits."""
    line = f"from {module} import {', '.join(names)}"
    wrapped = "".join(f"    {name},\n" for name in names)
    return line if len(line) <= WIDTH else f"from {module} import (\n{wrapped})"


def bounds(version: str) -> str:
    """Which versions of the core a package made with this one works with: up to the next that may break it."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{f'{major}.{minor + 1}' if major == 0 else major + 1}"


def checkout() -> Path | None:
    """The checkout that the running robflat-bench comes from; None where it is an installed wheel."""
    folder = Path(robflat_bench.__file__).resolve().parent.parent
    return folder if (folder / "pyproject.toml").is_file() else None


def _check_names(registry: Registry, package: Package) -> None:
    """UsageError unless distribution, package, module, class and component can all be named after it."""
    name, component = package.name, package.component
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or not component[0].isalpha():
        raise UsageError(f"'{name}' names no package: lower-case words joined by single dashes, e.g. robflat-my-at")
    if keyword.iskeyword(package.module) or keyword.iskeyword(package.package) or package.title in api.__all__:
        raise UsageError(f"'{component}' means something to Python or to robflat_bench.api; choose another name")
    if importlib.util.find_spec(package.package) is not None:
        raise UsageError(f"there is a Python package {package.package} already; choose another name")
    if component in registry.names(package.kind):
        owner = registry.offers(package.kind)
        by = next(offer.provider.distribution for offer in owner if offer.info.name == component)
        raise UsageError(
            f"{by} has a {package.kind} '{component}', and a name offered twice is unusable; choose another"
        )
