"""One file per component, readable without torch: imports that wait, and the rows that a package's files hold.

A component's file holds its equation, its parameters, its row `INFO` and its code. `robflat-bench list` and `info`
read the row, and must not wait seconds for torch. So the file imports torch, and whatever needs it, lazily:

    with lazy_imports():
        import torch
        from torch import Tensor, nn

Readers, type checkers and linters see ordinary imports. (Python 3.15 has `lazy import` for this, PEP 810.)
"""

from __future__ import annotations

import builtins
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robflat_bench.core.infos import Info

_HEAVY = "torch"
_ROW = re.compile(r"^INFO\b", re.MULTILINE)


class _Lazy:
    """Stands in a module's namespace for an import until the name is used, then replaces itself by what it names."""

    def __init__(self, namespace: dict[str, Any], module: str, attribute: str = "") -> None:
        self._namespace, self._module, self._attribute = namespace, module, attribute

    def _load(self) -> Any:
        module = importlib.import_module(self._module)
        if not self._attribute:
            return module
        try:
            return getattr(module, self._attribute)
        except AttributeError:
            return importlib.import_module(f"{self._module}.{self._attribute}")

    def _resolved(self) -> Any:
        resolve(self._namespace)
        return self._load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolved(), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._resolved()(*arguments, **named)

    def __getitem__(self, key: Any) -> Any:
        return self._resolved()[key]

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._resolved())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._resolved(),)


class _LazyModule:
    """What `__import__` gives inside `lazy_imports`: each attribute taken from it is a lazy name."""

    def __init__(self, namespace: dict[str, Any], module: str) -> None:
        self._namespace, self._module = namespace, module

    def __getattr__(self, name: str) -> _Lazy:
        return _Lazy(self._namespace, self._module, name)


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Imports in this block wait until one of their names is used; where torch is loaded already, they are done now.

    Not for base classes of the file's own classes, exceptions to catch, decorators or values computed when the file is
    imported: each would load torch at once.
    """
    if _HEAVY in sys.modules:
        yield
        return
    namespace = sys._getframe(2).f_globals
    real = builtins.__import__

    def wait(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not namespace:
            return real(name, globals, locals, fromlist or (), level)
        return _LazyModule(namespace, name) if fromlist else _Lazy(namespace, name.partition(".")[0])

    builtins.__import__ = wait
    try:
        yield
    finally:
        builtins.__import__ = real


def resolve(namespace: dict[str, Any]) -> None:
    """Do the lazy imports of a module, given its `vars`."""
    for name, value in list(namespace.items()):
        if type(value) is _Lazy:
            namespace[name] = value._load()


def rows(package: str) -> list[Any]:
    """Every `INFO` (a row, or a tuple of rows) of the modules of a package and of its subpackages, by module name.

    Only modules that define `INFO` at their top level are imported.
    """
    found: list[Info] = []
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        spec = module.module_finder.find_spec(module.name, None)
        source = spec.loader.get_source(module.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
        if _ROW.search(source or ""):
            info = importlib.import_module(module.name).INFO
            found += info if isinstance(info, tuple) else (info,)
    return found
