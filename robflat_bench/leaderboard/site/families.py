"""Families of methods, which a picture tells apart by colour and shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from markupsafe import Markup

from robflat_bench.leaderboard.model import BoardRow
from robflat_bench.leaderboard.site.svg import Drawing


class Family(NamedTuple):
    """look: class of the mark; the style sheet gives its colour. shape: as in `svg.Drawing.mark`."""

    title: str
    look: str
    shape: str


PLAIN = Family("adversarial training (AT)", "f0", "circle")
MODIFIED = Family("AT with a modifier", "f1", "square")
OBJECTIVE = Family("another robust objective", "f2", "diamond")
CLEAN = Family("no attack in training", "f3", "triangle")
FAMILIES = (PLAIN, MODIFIED, OBJECTIVE, CLEAN)


def present(rows: Iterable[BoardRow]) -> list[Family]:
    """The families that rows are of, in the order of `FAMILIES`."""
    here = {family(row) for row in rows}
    return [one for one in FAMILIES if one in here]


def mark(of: Family) -> Markup:
    """The mark of a family alone, for a legend."""
    drawing = Drawing("legend", "", "", 14, 14)
    drawing.mark(7, 7, f"point {of.look}", of.title, of.shape)
    return Markup(drawing.parts[0])


def draw_row(drawing: Drawing, x: float, y: float, row: BoardRow, hint: str = "") -> None:
    """A row's mark: hollow without a rank, with a ring for extra data."""
    kind = family(row)
    if row.extra_data:
        drawing.mark(x, y, f"ring {kind.look}", "", "ring")
    drawing.mark(x, y, f"{'hollow' if row.unranked else 'point'} {kind.look}", hint, kind.shape)


def family(row: BoardRow) -> Family:
    """The family of a row, by the name of its method and by whether a modifier is added."""
    base, _, modifiers = row.method.partition("+")
    return {"at": MODIFIED if modifiers else PLAIN, "standard": CLEAN}.get(base.partition("(")[0], OBJECTIVE)
