"""The central picture of a board: what flatness goes with, one drawing for each pair of axes that a reader can choose.

Methods far from all others stand behind a break of the axes and enter no line. The pictures need no script: style alone
shows the chosen one, and each method is a link to its page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import StatisticsError, linear_regression
from typing import NamedTuple

from robflat_bench.leaderboard.model import Board, BoardRow, RowValue
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.families import Family, draw_row, family, present
from robflat_bench.leaderboard.site.svg import BREAK, WIDTH, Drawing, Scale, cut, scale
from robflat_bench.records.quantities import WORST_CASE, column_id

HEIGHT = 400.0
LEFT, TOP, BOTTOM = 58.0, 14.0, HEIGHT - 50
HEADINGS = {
    column_id("gap_robust_loss"): ("Gap in robust loss", "Gap in robust loss, test minus training"),
    column_id("robust_loss"): ("Robust loss", "Robust loss on test images"),
    WORST_CASE: ("Robust error", "Robust error on test images"),
}
"""Column that goes up -> its name on the switch, and on the axis."""
RESAMPLES = 1000
"""Draws of methods behind the band of a line."""
FEWEST = 5
"""Fewest methods of a line with a band."""


class View(NamedTuple):
    """One pair of axes. up, across: their places in `Central.ups` and `Central.acrosses`."""

    up: int
    across: int
    drawing: Drawing
    caption: str


class Central(NamedTuple):
    """The picture of a board.

    Attributes
    ----------
    ups, acrosses : names of the axes that the reader chooses from.
    views : a drawing for every pair of them.
    families : those that the board has.
    quantities : column -> its name on a method's card.
    table : head and rows of the numbers behind all drawings.
    """

    ups: list[str]
    acrosses: list[str]
    views: list[View]
    families: list[Family]
    quantities: dict[str, str]
    table: tuple[list[str], list[list[str]]]


Datum = tuple[BoardRow, RowValue, RowValue]


def central(board: Board, root: str, width: float = WIDTH) -> Central | None:
    """The picture; None without ranked measures or rows. root: relative path to the site's first page. width: of the
    drawings, in units of about a pixel."""
    ups = [name for name in HEADINGS if name in board.titles]
    acrosses = board.primary
    views = [
        view
        for u, up in enumerate(ups)
        for a, across in enumerate(acrosses)
        if (view := _view(board, (u, up), (a, across), root, width))
    ]
    if not views:
        return None
    columns = [board.column(name) for name in (*acrosses, *ups)]
    rows = [
        [row.label, *(words.spread(row.value(board.checkpoint, one.id), one.unit) for one in columns)]
        for row in board.rows
    ]
    return Central(
        ups=[HEADINGS[name][0] for name in ups],
        acrosses=[words.short_title(board.column(name).title) for name in acrosses],
        views=views,
        families=present(board.rows),
        quantities={
            one.id: HEADINGS[one.id][0] if one.id in HEADINGS else words.short_title(one.title) for one in columns
        },
        table=(["Method", *(f"{one.title} ({words.UNITS.get(one.unit, '')})" for one in columns)], rows),
    )


def _view(board: Board, up: tuple[int, str], across: tuple[int, str], root: str, width: float) -> View | None:
    found = [
        (row, a, b)
        for row in board.rows
        if (a := row.value(board.checkpoint, across[1])) and (b := row.value(board.checkpoint, up[1]))
    ]
    if not found:
        return None
    horizontal = Axis(*_titles(board, across[1]), _scale([a for _, a, _ in found], LEFT, width - 16, board, across[1]))
    vertical = Axis(*_titles(board, up[1]), _scale([b for _, _, b in found], BOTTOM, TOP, board, up[1]))
    inside = [
        datum for datum in found if datum[1].mean < horizontal.scale.beyond and datum[2].mean < vertical.scale.beyond
    ]
    ranked = [(a.mean, b.mean) for row, a, b in inside if not row.unranked]
    title = f"{vertical.name} against {words.within(horizontal.name)}"
    drawing = Drawing(f"{board.id}-view-{up[0]}{across[0]}", title, f"{len(found)} methods.", HEIGHT, width)
    drawing.frame(horizontal.scale, vertical.scale, horizontal.title, vertical.title)
    _trend(drawing, horizontal.scale, vertical.scale, ranked)
    for datum in found:
        _mark(drawing, horizontal, vertical, datum, f"{root}{words.href(f'm/{board.id}/{datum[0].id}')}/index.html")
    for row, a, b in found:
        far = a.mean >= horizontal.scale.beyond or b.mean >= vertical.scale.beyond
        said = _said((row, a, b), horizontal, vertical) if far else row.label
        drawing.label(horizontal.scale(a.mean), vertical.scale(b.mean), said, (LEFT + 2, 2, width, BOTTOM - 2))
    return View(up[0], across[0], drawing, _caption(found, inside, ranked))


class Axis(NamedTuple):
    """One direction of a drawing. name: short, for sentences. title: what stands at the axis."""

    name: str
    title: str
    unit: str
    scale: Scale


def _titles(board: Board, id: str) -> tuple[str, str, str]:
    column = board.column(id)
    unit = words.UNITS.get(column.unit, "")
    if id in HEADINGS:
        name, title = HEADINGS[id]
        return name, f"{title} ({unit})", column.unit
    name = words.short_title(column.title)
    return name, f"{name}{f' ({unit})' if unit else ''}: lower is flatter", column.unit


def _scale(values: Sequence[RowValue], start: float, end: float, board: Board, id: str) -> Scale:
    """A scale of the means before the break, which leaves room for those behind it."""
    means = [value.mean for value in values]
    beyond = cut(means)
    inside = [mean for mean in means if mean < beyond]
    room = 0.0 if len(inside) == len(means) else BREAK + 14
    towards = end - room if end > start else end + room
    return replace(scale(inside, start, towards, board.column(id).unit, floor=0.0), beyond=beyond)


def _trend(drawing: Drawing, x: Scale, y: Scale, points: Sequence[tuple[float, float]]) -> None:
    """The least-squares line with its 95 % band, from resampling methods."""
    if (line := fitted(points)) is None:
        return
    ends = min(points)[0], max(points)[0]
    grid = [ends[0] + (ends[1] - ends[0]) * k / 24 for k in range(25)]
    chance, lines = random.Random(0), list[tuple[float, float]]()
    while len(points) >= FEWEST and len(lines) < RESAMPLES:
        if found := fitted(chance.choices(points, k=len(points))):
            lines.append(found)
    if lines:
        drawn = [sorted(a + b * at for a, b in lines) for at in grid]
        low, high = ([row[round(q * (RESAMPLES - 1))] for row in drawn] for q in (0.025, 0.975))
        edge = [*zip(grid, low, strict=True), *zip(reversed(grid), reversed(high), strict=True)]
        top, bottom = min(y.start, y.end), max(y.start, y.end)
        drawing.area([(x(a), min(bottom, max(top, y(b)))) for a, b in edge], "band")
    drawing.line([(x(at), y(line[0] + line[1] * at)) for at in ends], "trend")


def fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Intercept and slope of the least-squares line; None for fewer than three points, or all with one abscissa."""
    if len(points) < 3:
        return None
    try:
        slope, intercept = linear_regression(*zip(*points, strict=True))
    except StatisticsError:
        return None
    return intercept, slope


def _mark(drawing: Drawing, across: Axis, up: Axis, datum: Datum, target: str) -> None:
    """A method as a link, with whiskers that show where it is pointed at."""
    row, a, b = datum
    x, y = across.scale(a.mean), up.scale(b.mean)
    kind = family(row)
    whiskers = []
    for value, along in ((a, True), (b, False)):
        axis, at = (across.scale, y) if along else (up.scale, x)
        if value.low is not None and value.high is not None and value.mean < axis.beyond:
            ends = [axis(min(max(end, axis.low), axis.high)) for end in (value.low, value.high)]
            whiskers.append([(end, at) if along else (at, end) for end in ends])
    with drawing.link(target, _said(datum, across, up)):
        drawing.lines(whiskers, f"whisker {kind.look}")
        draw_row(drawing, x, y, row)


def _said(datum: Datum, across: Axis, up: Axis) -> str:
    """`trades: 0.743 at 1.345`: a method with its values up and across."""
    row, a, b = datum
    return f"{row.label}: {words.format_value(b.mean, up.unit)} at {words.format_value(a.mean, across.unit)}"


def _caption(found: Sequence[Datum], inside: Sequence[Datum], ranked: Sequence[tuple[float, float]]) -> str:
    far = [row.label for row, _, _ in found if row not in [one for one, _, _ in inside]]
    said = {
        "Each mark is a method, the mean over its seeds; pointed at, it shows its 95 % confidence intervals.": True,
        f"Line: least squares over {len(ranked)} ranked methods.": len(ranked) >= 3,
        "Band: 95 % of the lines of resampled methods.": len(ranked) >= FEWEST,
        f"Behind a break of the axes and not in the line: {', '.join(far)}.": bool(far),
        "Hollow: not ranked.": any(row.unranked for row, _, _ in found),
        "Ring: trained on extra data.": any(row.extra_data for row, _, _ in found),
    }
    return words.sentences(said)
