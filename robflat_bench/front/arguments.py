"""Arguments of calls from Python: a value of another type is refused before any work, as a command refuses it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from robflat_bench.core import UsageError, interruptible

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class _Kind(NamedTuple):
    """Types of an argument, and how they read."""

    types: tuple[type, ...]
    words: str


_TEXT = _Kind((str,), "a text")
_PLACE = _Kind((str, Path), "a path")
_FLAG = _Kind((bool,), "True or False")
_TEXTS = _Kind((str, list, tuple, set, frozenset), "a list of texts")

KINDS: Mapping[str, _Kind] = {
    **dict.fromkeys(
        ("name", "method", "measure", "attack", "network", "backbone", "checkpoint", "to", "licence"), _TEXT
    ),
    **dict.fromkeys(("protocol", "store", "leaderboard"), _PLACE),
    **dict.fromkeys(("progress", "fresh", "compile", "public", "replace"), _FLAG),
    **dict.fromkeys(("attacks", "measures"), _TEXTS),
    "plugins": _Kind((str, Path, list, tuple), "a list of paths"),
    "settings": _Kind((str, list, tuple, Mapping), "a mapping such as {'recipe.epochs': 3}"),
    "arguments": _Kind((Mapping,), "a mapping such as {'depth': 28}"),
    **dict.fromkeys(("examples", "train", "classes", "keep_every"), _Kind((Integral,), "an integer")),
}
"""What each argument must be, where it is not None by default; a default may always be given."""


def checked(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A function that refuses arguments which are not of their `KINDS`, and is left in order after a signal."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*arguments: Arguments.args, **named: Arguments.kwargs) -> Returned:
        bound = signature.bind(*arguments, **named)
        for name, value in bound.arguments.items():
            default = signature.parameters[name].default
            if name in KINDS and not (value is None and default is None):
                _check(name, value, KINDS[name])
        with interruptible():
            return function(*arguments, **named)

    return called


def _check(name: str, value: Any, kind: _Kind) -> None:
    """UsageError unless the value is of this kind."""
    fits = isinstance(value, kind.types) and (kind.types == (bool,) or not isinstance(value, bool))
    if not fits:
        raise UsageError(f"{name}={value!r:.100} is no value of {name}; give {kind.words}")
