"""One-file plugins. Each is a package of its own, to which the files beside it belong: two plugins may each have a
`mybody.py`, and no name of a plugin's folder is seen by other code."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.abc
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from robflat_bench.core import PROJECT

IGNORED = ("__pycache__", "*.py[co]", ".*_cache", ".git", ".hg", ".svn")
"""Bytecode, caches and version control: they lie in a package's folder and are not part of its source."""

MAX_BYTES = 4 * 1024 * 1024
"""Size limit of a one-file plugin."""

_PREFIX = f"{PROJECT}_file_"


def load_file(file: Path) -> ModuleType:
    """Execute a plugin's file. Its module is in `sys.modules`, where annotations of dataclasses are looked up."""
    path = file.resolve()
    stem, place = re.sub(r"\W", "_", path.stem), hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{_PREFIX}{stem}_{place}"
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        del sys.modules[loaded]  # an earlier version
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    loader, folder = _Loader(name, str(path)), [str(path.parent)]
    spec = importlib.util.spec_from_file_location(name, path, loader=loader, submodule_search_locations=folder)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = sys.modules[f"{name}.{path.stem}"] = module  # a file beside it may import it
    loader.exec_module(module)
    return module


def loaded_files() -> list[Path]:
    """The files that `load_file` has loaded in this process, in their order."""
    names = [name for name in sys.modules if name.startswith(_PREFIX) and "." not in name]
    return [Path(str(sys.modules[name].__file__)) for name in names]


def neighbours(file: Path) -> dict[str, Path]:
    """The files beside a plugin's file that its imports name, directly or through each other, by their relative path.

    An import counts wherever it stands, in a function too. Of a package, every file counts.
    """
    found: dict[str, Path] = {}
    waiting = [file]
    while waiting:
        for name in _imported(waiting.pop()):
            start = _beside(file.parent, name)
            files = [] if start is None else files_below(start.parent) if start.name == "__init__.py" else [start]
            new = {path.relative_to(file.parent).as_posix(): path for path in files if path != file}
            waiting += [path for key, path in new.items() if key not in found and path.suffix == ".py"]
            found |= new
    return dict(sorted(found.items()))


def source_files(file: Path) -> list[tuple[str, Path]]:
    """A plugin's file, called ".", and its neighbours, by name."""
    return [(".", file), *neighbours(file).items()]


def hashed(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over names and contents, in the order given."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def files_below(root: Path) -> list[Path]:
    """The files below a package's folder that are not IGNORED, sorted."""

    def counts(path: Path) -> bool:
        names = path.relative_to(root).parts
        return path.is_file() and not any(fnmatch(name, pattern) for name in names for pattern in IGNORED)

    return sorted(filter(counts, root.rglob("*")))


def _beside(folder: Path, name: str) -> Path | None:
    """The module or package of that name in a plugin's folder; None for those of Python and of this project."""
    if name in sys.stdlib_module_names or name == PROJECT:
        return None
    return next((path for path in (folder / name / "__init__.py", folder / f"{name}.py") if path.is_file()), None)


def _imported(file: Path) -> Iterator[str]:
    """The first name of every import in a file; none if it is not Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def _import(
    folder: Path,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """`__import__` of a plugin's files: `import mybody` means the file beside the plugin, as `from . import` would."""
    if level == 0 and globals and _beside(folder, name.partition(".")[0]):
        level = globals["__package__"].count(".") + 1
    return builtins.__import__(name, globals, locals, fromlist or (), level)


class _Loader(SourceFileLoader):
    """Executes a file of a plugin, whose import statements call `_import`."""

    def exec_module(self, module: ModuleType) -> None:
        folder = Path(sys.modules[module.__name__.partition(".")[0]].__path__[0])
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": partial(_import, folder)}
        super().exec_module(module)

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        raise OSError("no bytecode, which Python takes for current if size and second are: the hash is of the source")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the files beside plugins, and lets `_Loader` load them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name.startswith(_PREFIX) else None
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


_FINDER = _Finder()
