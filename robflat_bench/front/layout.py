"""How a table fits a width: words wrap, names lose their middle, whole columns are left out, and no number is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

PROSE, NAME = 28, 22
"""Narrowest widths of a column of sentences, and of a column of names."""
LONGEST = 40
"""Words up to this length are never broken."""
BETWEEN, EDGE = 3, 1
"""Characters between two columns, and at the edge."""


@dataclass(frozen=True)
class Column:
    """One column that is shown. place: in the table. width: in characters. elided: its cells are names, which fit by
    losing their middle."""

    place: int
    width: int
    elided: bool


def layout(columns: Sequence[str], rows: Sequence[Sequence[str]], right: int | None, width: int) -> list[Column]:
    """The columns that fit, from the left.

    Parameters
    ----------
    columns : sequence of str
        Headings.
    rows : sequence of sequence of str
        Cells; a row may be shorter than the columns.
    right : int or None
        Columns from this one on are numbers; those before it always stay. None: all stay, and their words wrap.
    width : int
        Characters of a line.
    """
    found = [_needs(heading, [row[k] for row in rows if k < len(row)], k, right) for k, heading in enumerate(columns)]
    always = len(found) if right is None else max(1, right)
    for count in range(len(found), 0, -1):
        taken = found[:count]
        room = width - EDGE - BETWEEN * count
        if sum(least for _, least, _ in taken) <= room or count <= always:
            return [
                Column(place, size, elided)
                for (place, size), (_, _, elided) in zip(enumerate(_shares(taken, room)), taken, strict=True)
            ]
    return []


def _needs(heading: str, cells: Sequence[str], place: int, right: int | None) -> tuple[int, int, bool]:
    """The widest and the narrowest width of a column, and whether its cells may be elided."""
    lines = [line for cell in cells for line in cell.splitlines()]
    widest = max(map(cell_len, [*lines, heading]), default=0)
    word = max(map(cell_len, heading.split()), default=0)
    if right is not None and place >= right:
        return widest, max([word, *map(cell_len, lines)]), False
    names = all(" " not in line for line in lines)
    words = [cell_len(part) for line in lines for part in line.split()]
    least = NAME if names else max(PROSE, *(size for size in words if size <= LONGEST), 0)
    return widest, min(widest, max(word, least)), names


def _shares(needs: Sequence[tuple[int, int, bool]], room: int) -> list[int]:
    """The widths of columns in `room` characters: the most generous ones give first."""
    sizes = [widest for widest, _, _ in needs]
    while sum(sizes) > room:
        spare = [size - least for size, (_, least, _) in zip(sizes, needs, strict=True)]
        if max(spare) <= 0:
            break
        sizes[spare.index(max(spare))] -= 1
    return sizes


def elide(text: str, width: int) -> str:
    """`at+label\u2026(tau=0.3)`: the text without its middle if it is wider than `width` characters."""
    if cell_len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}\u2026{text[len(text) - (width - 1 - head) :]}"
