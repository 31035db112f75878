"""How a table fits a width: columns go, words wrap, names lose their middle and stay distinct; no number is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

PROSE, NAME = 28, 22
"""Narrowest widths of a column of sentences, and of a column of names."""
LONGEST = 40
"""Words up to this length are never broken."""
BETWEEN, EDGE = 3, 1
"""Characters between two columns, and at the edge."""

_NUMBER = re.compile(r"\d[\d.,]*(?:e[+-]?\d+)?")
_WORD = re.compile(r"`[^`]+`\S*|\S+")
"""A word; so is a `command` with its spaces."""
_ATOM = re.compile(rf"{_NUMBER.pattern}|[^\W\d]+|.")
"""Where a word is broken that is wider than its line: between these, never inside a number."""
_SHARES = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 7 / 8)
"""Shares of a shortened name that its beginning may have; the first one that keeps all names apart is taken."""


@dataclass(frozen=True)
class Column:
    """One column that is shown. place: in the table. width: in characters. elided: its cells are names, which fit by
    losing their middle."""

    place: int
    width: int
    elided: bool

    def fitted(self, cells: Sequence[str]) -> list[str]:
        """The cells, each within the width: names without their middle, texts in lines."""
        if self.elided:
            return elided(cells, self.width)
        return [wrap(cell, self.width, fold=True) for cell in cells]


@dataclass(frozen=True)
class _Need:
    """The widest and the narrowest width of a column, and whether its cells are names."""

    widest: int
    least: int
    elided: bool


# ---------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------


def layout(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: int | None,
    width: int,
    keep: int = 1,
    spare: Sequence[str] = (),
) -> list[Column]:
    """The columns that fit.

    Parameters
    ----------
    columns : sequence of str
        Headings.
    rows : sequence of sequence of str
        Cells; a row may be shorter than the columns.
    right : int or None
        Columns from this one on are numbers, which are shown whole; None: no column is.
    width : int
        Characters of a line.
    keep : int
        So many columns always stay, from the left. The others go from the right until the rest fits. Without any
        heading all stay.
    spare : sequence of str
        Headings of columns that go before all others, in this order.
    """
    needs = [
        _need(heading, [row[k] for row in rows if k < len(row)], right is not None and k >= right)
        for k, heading in enumerate(columns)
    ]
    kept = keep if any(columns) else len(columns)
    first = [columns.index(heading) for heading in spare]
    leaving = first + [k for k in range(len(columns) - 1, kept - 1, -1) if k not in first]
    shown = [*range(len(columns))]
    while leaving and sum(needs[k].least for k in shown) > _room(width, len(shown)):
        shown.remove(leaving.pop(0))
    sizes = _sizes([needs[k] for k in shown], _room(width, len(shown)))
    return [Column(k, size, needs[k].elided) for k, size in zip(shown, sizes, strict=True)]


def _room(width: int, columns: int) -> int:
    return width - EDGE - BETWEEN * columns


def _need(heading: str, cells: Sequence[str], numbers: bool) -> _Need:
    lines = [line for cell in cells for line in cell.splitlines()]
    widest = max(map(cell_len, [*lines, heading]), default=0)
    word = max(map(cell_len, heading.split()), default=0)
    if numbers:
        return _Need(widest, max([word, *map(cell_len, lines)]), False)
    if all(" " not in line for line in lines):
        return _Need(widest, max(word, _distinct(lines, min(widest, NAME))), True)
    words = [cell_len(part) for line in lines for part in line.split()]
    least = max(PROSE, *(size for size in words if size <= LONGEST), 0)
    return _Need(widest, min(widest, max(word, least)), False)


def _sizes(needs: Sequence[_Need], room: int) -> list[int]:
    """The widths of columns in `room` characters: the most generous ones give first, below their least only where
    nothing else is left."""
    sizes = [need.widest for need in needs]
    while sum(sizes) > room:
        spare = [size - need.least for size, need in zip(sizes, needs, strict=True)]
        if max(spare) <= 0:
            spare = [size - 1 for size in sizes]
        if max(spare) <= 0:
            break
        sizes[spare.index(max(spare))] -= 1
    return sizes


# ---------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------


def elide(text: str, width: int, share: float = 1 / 2) -> str:
    """`at+label\u2026(tau=0.3)`: the text without its middle if it is wider than `width` characters. A number at the
    cut goes as a whole. share: part of the width that the beginning has."""
    if cell_len(text) <= width:
        return text
    head = int((width - 1) * share)
    tail = max(head, len(text) - (width - 1 - head))
    for number in _NUMBER.finditer(text):
        head = number.start() if number.start() < head < number.end() else head
        tail = number.end() if number.start() < tail < number.end() else tail
    short = f"{text[:head]}\u2026{text[tail:]}"
    over = cell_len(short) - width  # of wide characters
    return elide(text, width - over, share) if 0 < over < width else short


def elided(names: Sequence[str], width: int) -> list[str]:
    """The names within a width; names that differ stay different where the width allows it."""
    tries = [[elide(name, width, share) for name in names] for share in _SHARES]
    return max(tries, key=lambda shown: len({*shown}))


def _distinct(names: Sequence[str], least: int) -> int:
    """The smallest width from `least` on at which names that differ stay different."""
    different = sorted({*names})
    widest = max(map(cell_len, different), default=least)
    found = (width for width in range(least, widest) if len({*elided(different, width)}) == len(different))
    return next(found, max(least, widest))


# ---------------------------------------------------------------------------------------------------------
# Sentences
# ---------------------------------------------------------------------------------------------------------


def wrap(text: str, width: int, fold: bool = False) -> str:
    """Text in lines of at most `width` characters, broken between words.

    Parameters
    ----------
    fold : bool
        Break also words, and commands in backticks, that are wider than a line: outside numbers, where possible.
        Otherwise they stay whole, so that they can be copied.
    """
    return "\n".join(line for each in text.splitlines() for line in _lines(each, width, fold))


def _lines(text: str, width: int, fold: bool) -> Iterator[str]:
    line = text if cell_len(text) <= width else ""
    for word in _words(text, width, fold) if not line else ():
        longer = f"{line} {word}" if line else word
        if line and cell_len(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _words(text: str, width: int, fold: bool) -> Iterator[str]:
    """Words of a text; where they are folded, none is wider than `width`, and indentation is part of the first one."""
    indent = text[: len(text) - len(text.lstrip())]
    for k, word in enumerate(_WORD.findall(text)):
        whole = f"{indent}{word}" if k == 0 else word
        if not fold or cell_len(whole) <= width:
            yield whole
        elif " " in word:
            yield from (part for each in word.split() for part in _folded(each, width))
        else:
            yield from _folded(whole, width)


def _folded(word: str, width: int) -> Iterator[str]:
    line = ""
    for atom in _ATOM.findall(word):
        for part in [atom] if cell_len(atom) <= width else chop_cells(atom, width):
            if line and cell_len(line + part) > width:
                yield line
                line = ""
            line += part
    yield line
