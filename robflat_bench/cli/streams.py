"""stdout and stderr of the command line: everything that it prints passes through here.

Text is printed in a form that a terminal shows and does not obey, and a stream that cannot be written ends no command.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from robflat_bench.front.text import unfiltered, visible

_COLOUR = re.compile(r"(\x1b\[[0-9;:]*m)")


class Lossy:
    """A text stream that can always be written: after the first failure, what is written is lost.

    Parameters
    ----------
    raw : TextIO or None
        The stream; None (Python's name for one that is closed) loses everything.
    """

    def __init__(self, raw: TextIO | None) -> None:
        self.raw = raw or _nowhere()
        self.error: OSError | None = None
        """The first failure."""
        if hasattr(self.raw, "reconfigure"):
            self.raw.reconfigure(errors="backslashreplace")  # the terminal's encoding may lack the character

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        self._try(self.raw.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.raw.flush)

    def _try(self, operation: Callable[..., Any], *arguments: str) -> None:
        try:
            operation(*arguments)
        except OSError as error:
            self.error = error
            with _nowhere() as nowhere:  # where Python, when it exits, flushes what is still buffered
                os.dup2(nowhere.fileno(), self.raw.fileno())


class Printed:
    """A stream that prints hidden characters as escapes, and drops colours, which libraries like to print.

    Parameters
    ----------
    raw : TextIO or None
        The stream below. `unfiltered` writes to it text whose escape sequences are this package's own.
    coloured : bool
        Keep colours.
    """

    def __init__(self, raw: TextIO | None, coloured: bool = False) -> None:
        self.unfiltered, self.coloured = Lossy(raw), coloured

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)

    def write(self, text: str) -> int:
        parts = _COLOUR.split(text)  # every second one is a colour
        parts[::2] = map(visible, parts[::2])
        self.unfiltered.write("".join(parts if self.coloured else parts[::2]))
        return len(text)


def prepare(coloured: bool) -> None:
    """Print through `Printed` from now on, to the end of this process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file that is opened would become stdout
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = Printed(sys.stdout, coloured), Printed(sys.stderr, coloured)


def reserve() -> Lossy:
    """stdout for one document. What else is printed from now on goes to stderr, by file descriptor too."""
    kept: Lossy = unfiltered(sys.stdout)
    if _number(kept) == 1:
        kept.flush()
        kept = Lossy(os.fdopen(os.dup(1), "w", encoding="utf-8"))
        os.dup2(2, 1)
    sys.stdout = sys.stderr
    return kept


def _nowhere() -> TextIO:
    return open(os.devnull, "w")


def _number(stream: Any) -> int | None:
    try:
        number: int = stream.fileno()
    except OSError:  # a stream in memory
        return None
    return number
