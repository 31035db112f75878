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


def console(stderr: bool = False) -> Console:
    """A console on stdout (or stderr); piped output is as wide as COLUMNS says, or 200 columns."""
    stream = unfiltered(sys.stderr if stderr else sys.stdout)
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else 200
    return CleanConsole(file=stream, stderr=stderr, width=width, highlight=False)


def written(parts: Iterable[RenderableType], width: int = 200) -> str:
    """What a console without colours writes."""
    plain: dict[str, Any] = {"no_color": True, "highlight": False, "force_terminal": False, "force_jupyter": False}
    out = CleanConsole(file=io.StringIO(), width=width, **plain)
    for part in parts:
        out.print(part, markup=False, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines()).strip("\n")  # type: ignore[attr-defined]
