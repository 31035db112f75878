"""The catalogue reads every component's row without importing torch.

A component's file holds its equation, its parameters, its row `INFO` and its code. `robflat-bench list` and `info` need
the row only, and importing torch takes seconds. So a component's file delays its heavy imports:

    with lazy_imports():
        import torch
        from torch import Tensor, nn

Readers, type checkers and linters see ordinary imports. (Python 3.15 has `lazy import` for this, PEP 810.)
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import operator
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from robflat_bench.core.infos import Info

_HOOKING = threading.RLock()
_ROW = re.compile(r"^INFO\b", re.MULTILINE)


class _Lazy:
    """Placeholder for a lazily imported name, until the importing module first uses one of them.

    The first use performs all lazy imports of the module, and every name gets its real value. Whatever is done to the
    placeholder is done to that value.
    """

    def __init__(self, namespace: dict[str, Any], module: str, name: str = "") -> None:
        self._namespace, self._module, self._name = namespace, module, name

    def _load(self) -> Any:
        if not self._name:
            return importlib.import_module(self._module)
        return getattr(__import__(self._module, fromlist=[self._name]), self._name)

    def _resolved(self) -> Any:
        settle(self._namespace)
        return self._load()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolved(), name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._resolved()(*arguments, **named)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._resolved())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._resolved(),)


def _forward(name: str, operation: Callable[..., Any]) -> None:
    """Let an operator on a placeholder act on the value; Python looks operators up on the class alone."""
    setattr(_Lazy, name, lambda self, *others: operation(self._resolved(), *others))


for _function in (bool, float, format, hash, int, iter, len, str):
    _forward(f"__{_function.__name__}__", _function)
for _name in ("abs", "contains", "eq", "ge", "getitem", "gt", "index", "invert", "le", "lt", "ne", "neg"):
    _forward(f"__{_name}__", getattr(operator, _name))
for _name in ("add", "and", "floordiv", "matmul", "mod", "mul", "or", "pow", "sub", "truediv"):
    _forward(f"__{_name}__", _operation := getattr(operator, f"__{_name}__"))
    _forward(f"__r{_name}__", lambda value, other, operation=_operation: operation(other, value))


def settle(namespace: dict[str, Any]) -> None:
    """Do all lazy imports of a module, given its `vars`."""
    for name, value in list(namespace.items()):
        if type(value) is _Lazy:
            namespace[name] = value._load()


def settled(factory: Callable[..., Any]) -> Callable[..., Any]:
    """A component's class or function, after the lazy imports of its file and of its base classes' files."""
    for part in getattr(factory, "__mro__", (factory,)):
        if module := sys.modules.get(getattr(part, "__module__", "")):
            settle(vars(module))
    return factory


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Delay the imports in this block until one of the imported names is used.

    Use it at the top level of a module, with `import a`, `import a as b` and `from a.b import c as d`. An import that
    fails raises where a name is first used, not in the block.

    Raises
    ------
    ImportError
        For `import a.b` and `from a import *`, which cannot be delayed.

    Notes
    -----
    These uses work, but import torch when the file is read: base classes, decorators, default values, unions in
    annotations that are evaluated, and other values computed at import. Two uses need the real object, so use another
    imported name first: `except NAME` and the comparison `x is NAME`. `Component.build` does all lazy imports of the
    component's module, so methods of a component may use any name in any way.
    """
    namespace = sys._getframe(2).f_globals  # of the module with the block, above contextlib's frame

    def delayed(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not namespace:
            return real(name, globals, locals, fromlist or (), level)
        module = importlib.util.resolve_name("." * level + name, namespace.get("__package__"))
        if fromlist and "*" not in fromlist:
            return SimpleNamespace(**{each: _Lazy(namespace, module, each) for each in fromlist})
        if fromlist or "." in name:
            raise ImportError(
                f"`{module}` is imported in a way that cannot be delayed; write `from PACKAGE import NAME`"
            )
        return _Lazy(namespace, module)

    with _HOOKING:  # two threads would restore each other's hook
        real, builtins.__import__ = builtins.__import__, delayed
        try:
            yield
        finally:
            builtins.__import__ = real


def catalogue_rows(package: str) -> list[Any]:
    """The rows of a package's components: every `INFO` (a row or a tuple of rows) of its modules, at any depth.

    The order is that of the modules' names. Packages, and modules that define `INFO` at their top level, are imported;
    others are not.
    """
    found: list[Info] = []
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        spec = importlib.util.find_spec(module.name)
        if spec and spec.origin and _ROW.search(Path(spec.origin).read_text("utf-8")):
            info = importlib.import_module(module.name).INFO
            found += info if isinstance(info, tuple) else (info,)
    return found
