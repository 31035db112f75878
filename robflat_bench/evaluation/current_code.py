"""Whether the files of an evaluation's code have changed: another process would import what they hold now."""

from __future__ import annotations

import ast
import contextlib
import pickletools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from robflat_bench.core import PROJECT
from robflat_bench.core.clock import BEGAN
from robflat_bench.evaluation.own_code import FOREIGN
from robflat_bench.registry.plugins import Plugins


def changed_file(plugins: Plugins, payload: bytes) -> Path | None:
    """A file that the evaluation needs and that was written after this process began; None without one.

    Needed are this package, the packages and files of plugins, the modules that the payload names, and what these
    import, wherever in them. Other files, such as those that a notebook has written, do not matter.

    Parameters
    ----------
    plugins : Plugins
        The plugins of this process.
    payload : bytes
        The pickled objects that another process gets.
    """
    new = {name: file for name, file in _files() if _written_after(file, BEGAN)}
    if not new:
        return None
    packages = {PROJECT, *(_package(module.__name__) for module in plugins.providers)}
    named = {str(part) for _, part, _ in pickletools.genops(payload) if isinstance(part, str)}
    roots = {name for name in sys.modules if _package(name) in packages or name in named}
    return next((new[name] for name in _with_imports(roots) if name in new), None)


def _files() -> Iterator[tuple[str, Path]]:
    """The modules of this process that were loaded from files."""
    for name, module in [*sys.modules.items()]:
        with contextlib.suppress(TypeError, KeyError):  # a module may be anything, and hold anything
            yield name, Path(vars(module)["__file__"])


def _written_after(file: Path, began: float) -> bool:
    try:
        return file.stat().st_mtime > began
    except (OSError, ValueError):
        return False


def _with_imports(roots: set[str]) -> Iterator[str]:
    """These modules, their packages, and those that they import; installed code imports installed code."""
    waiting, seen = [*roots], set[str]()
    while waiting:
        name = waiting.pop()
        if not name or name in seen or not isinstance(module := sys.modules.get(name), ModuleType):
            continue
        seen.add(name)
        yield name
        waiting.append(name.rpartition(".")[0])
        if (file := getattr(module, "__file__", None)) and not str(file).startswith(FOREIGN):
            found = [*_imported(Path(file), name if hasattr(module, "__path__") else name.rpartition(".")[0])]
            waiting += [*found, *(f"{_package(name)}.{each}" for each in found)]  # what lies beside a one-file plugin


def _imported(file: Path, package: str) -> Iterator[str]:
    """The full names that a file of a package imports; those of attributes of modules too. None if it is not Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _package(module: str) -> str:
    return module.partition(".")[0]
