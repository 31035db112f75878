"""Numbers and foreign text as a person reads them, and lines on stderr. `--help` reads it: nothing heavy here."""

from __future__ import annotations

import shlex
import sys
import unicodedata
from pathlib import Path
from typing import Any, TextIO

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters (direction marks among them), surrogates, and separators of
lines: a terminal obeys them or shows nothing."""


class _Escapes(dict[int, str]):
    """Character -> how it is printed."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        hidden = unicodedata.category(character) in _HIDDEN
        self[code] = character.encode("unicode_escape").decode() if hidden else character
        return self[code]


_ESCAPES = _Escapes({ord("\n"): "\n", ord("\t"): "\t", ord("\r"): "\n"})


def visible(text: str) -> str:
    r"""The text with every hidden character as an escape, e.g. `\x1b`; newlines and tabs stay, a carriage return ends
    the line."""
    return text.translate(_ESCAPES)


def percent(value: float | None, error: float | None = None) -> str:
    """`35.0 %` or `35.0 ± 2.1 %`; None is a dash."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if error is None else f"{100 * value:.1f} ± {100 * error:.1f} %"


def number(value: float | None, error: float | None = None) -> str:
    """`0.530` or `0.530 ± 0.021`; below 0.01 and from 10,000 on with four significant digits; None is a dash."""
    if value is None:
        return "-"
    style = ".3f" if value == 0 or 0.01 <= abs(value) < 10_000 else ".3e"
    return f"{value:{style}}" if error is None else f"{value:{style}} ± {error:{style}}"


def unfiltered(stream: TextIO) -> Any:
    """Where a console writes: past the filter of `cli.streams`, since it filters text before it adds colours."""
    return getattr(stream, "unfiltered", stream)


def say(line: str) -> None:
    """Write a line on stderr."""
    sys.stderr.write(visible(line) + "\n")
    sys.stderr.flush()


def next_line(*words: str) -> str:
    """The last line of what a command shows: what to type next, after `robflat-bench`."""
    return f"next: `{shlex.join(['robflat-bench', *words])}`"


def options(store: Path, protocol: str = "", checkpoint: str = "last") -> list[str]:
    """The options of a command that have not their default; a protocol of "" is left out."""
    from robflat_bench.config.protocol import DEFAULT

    given = {
        "--protocol": (protocol, ("", DEFAULT)),
        "--checkpoint": (checkpoint, ("last",)),
        "--store": (str(store), ("runs",)),
    }
    return [word for name, (value, usual) in given.items() if value not in usual for word in (name, value)]


def note(text: str) -> None:
    """One line for the person, on stderr."""
    say(f"robflat-bench: {text}")
