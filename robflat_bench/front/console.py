"""Consoles of rich for text from anywhere."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from robflat_bench.front.text import unfiltered, visible


class CleanConsole(Console):
    """A console that prints hidden characters as escapes; its own colours and cursor movements stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


PIPED = 200
"""Columns of output that goes to no terminal, where COLUMNS says nothing."""


def columns() -> int:
    """The width that COLUMNS names; 0 where it names none."""
    named = os.environ.get("COLUMNS", "")
    return int(named) if named.isdecimal() else 0


def console(stderr: bool = False) -> Console:
    """A console on stdout (or stderr), as wide as COLUMNS says or as the terminal is; without both, `PIPED`."""
    stream = unfiltered(sys.stderr if stderr else sys.stdout)
    width = columns() or (None if stream.isatty() else PIPED)
    return CleanConsole(file=stream, stderr=stderr, width=width, highlight=False)


def written(parts: Iterable[RenderableType], width: int = PIPED) -> str:
    """What a console without colours writes."""
    plain: dict[str, Any] = {"no_color": True, "highlight": False, "force_terminal": False, "force_jupyter": False}
    out = CleanConsole(file=io.StringIO(), width=width, **plain)
    for part in parts:
        out.print(part, markup=False, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()).strip("\n")  # type: ignore[attr-defined]
