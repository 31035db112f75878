"""A table of text that shows itself: in a terminal by rich, in a notebook as HTML. Nothing in it is read as markup."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from robflat_bench.front.text import number, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


_LEFT = "text-align: left; vertical-align: top"
_RIGHT = "text-align: right; vertical-align: top; white-space: nowrap"


@dataclass(frozen=True, repr=False)
class Grid:
    """A table of text; `grid` makes one.

    Parameters
    ----------
    heading : str
        The line above it.
    columns : tuple of str
        Names of the columns.
    rows : tuple of tuple of str
        Cells. A row may be shorter than the columns.
    right : int or None
        Columns from this one on are right-aligned.
    keep : int
        So many columns stay at any width, from the left.
    spare : tuple of str
        Columns that go first where there is no room.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: int | None = None
    keep: int = 1
    spare: tuple[str, ...] = ()

    def is_right(self, column: int) -> bool:
        """Whether a column is right-aligned."""
        return self.right is not None and column >= self.right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        from robflat_bench.front.layout import layout, wrap

        width = options.max_width
        yield Text(wrap(self.heading, width), style="table.title")  # a title of the table is as narrow as the table
        made = Table(box=box.SIMPLE_HEAD, show_header=any(self.columns))
        shown = layout(self.columns, self.rows, self.right, width, self.keep, self.spare)
        cells = []
        for column in shown:
            justify: Literal["left", "right"] = "right" if self.is_right(column.place) else "left"
            heading = wrap(self.columns[column.place], column.width, fold=True)
            made.add_column(Text(heading), width=column.width, justify=justify)
            cells.append(column.fitted([row[column.place] if column.place < len(row) else "" for row in self.rows]))
        for row in zip(*cells, strict=True):
            made.add_row(*map(Text, row))
        yield made
        places = {column.place for column in shown}
        if hidden := [name for place, name in enumerate(self.columns) if place not in places]:
            line = f"no room for {'; '.join(hidden)}: widen the terminal, or add --json"
            yield Text(wrap(line, width), style="dim")

    def __repr__(self) -> str:
        return as_text([self])

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:
            styles = (_RIGHT if self.is_right(place) else _LEFT for place in range(len(self.columns)))
            filled = (*cells, *[""] * (len(self.columns) - len(cells)))
            pairs = zip(filled, styles, strict=True)
            inside = (f'<{tag} style="{style}">{html.escape(cell)}</{tag}>' for cell, style in pairs)
            return f"<tr>{''.join(inside)}</tr>"

        body = "\n".join(line("td", row) for row in self.rows)
        caption = f'<caption style="text-align: left; caption-side: top">{html.escape(self.heading)}</caption>'
        head = f"<thead>{line('th', self.columns)}</thead>\n" if any(self.columns) else ""
        return f"<table>{caption}\n{head}<tbody>\n{body}\n</tbody></table>"


def grid(
    heading: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[Any]],
    right: int | None = None,
    keep: int = 1,
    spare: tuple[str, ...] = (),
) -> Grid:
    """A `Grid` of cells that are text, a float, an integer or None (a dash); hidden characters are escapes."""

    def text(cell: Any) -> str:
        return visible(number(cell) if cell is None or isinstance(cell, float) else str(cell))

    cells = tuple(tuple(map(text, row)) for row in rows)
    return Grid(visible(heading), tuple(map(visible, columns)), cells, right, keep, spare)


def as_text(parts: Iterable[Grid | str]) -> str:
    """Grids and lines as plain text, at most 200 columns wide."""
    from robflat_bench.front.console import written

    return written(parts)


def as_html(parts: Iterable[Grid | str]) -> str:
    """Grids as tables and lines as paragraphs of HTML."""
    return "\n".join(
        f"<p>{html.escape(visible(part))}</p>" if isinstance(part, str) else part._repr_html_() for part in parts
    )
