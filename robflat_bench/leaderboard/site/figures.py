"""The board's figures: each a drawing, a caption in words, and the numbers it shows as a table.

Rows that are not ranked are hollow and enter no line, rows with extra data are squares: colour alone tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robflat_bench.leaderboard.model import Board, Correlation, Quantity, Row, Statistic, Value
from robflat_bench.leaderboard.site.svg import WIDTH, Drawing, Scale, hint, scale
from robflat_bench.leaderboard.site.words import amount, interval, number, ranks, spread, within

LEFT, RIGHT, TOP = 60, WIDTH - 14, 14
NAMED = 40
"""So many rows are named in a figure, and so many have a line in one of ranks; the table below has them all."""


class Figure(NamedTuple):
    """What a page shows. rows: the table's cells, the first of each its heading."""

    drawing: Drawing
    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    @property
    def body(self) -> Markup:
        """The table's rows; there are many of them, so they are written here and not in a template."""
        lines = (
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join([f'<td class="n">{escape(cell)}</td>' for cell in row[1:]])
            for row in self.rows
        )
        return Markup("".join(f"{line}</tr>\n" for line in lines))


class Axis(NamedTuple):
    """What is read from a row along one direction."""

    title: str
    unit: str
    read: Callable[[Row], Value | None]
    log: bool = False

    @property
    def heading(self) -> str:
        named = {"fraction": "%", "nats": "nats"}.get(self.unit)
        return f"{self.title} ({named})" if named else self.title

    def written(self, value: Value) -> str:
        return amount(value.mean) if self.log else spread(value, self.unit)


def axis(board: Board, name: str) -> Axis:
    """The quantity of that id at the board's checkpoint."""
    quantity = find(board, name)
    return Axis(quantity.title, quantity.unit, lambda row: row.values.get(board.checkpoint, {}).get(name))


def find(board: Board, name: str) -> Quantity:
    """A quantity by its id; ValueError for one that the board does not define."""
    found = next((quantity for quantity in board.quantities if quantity.id == name), None)
    if found is None:
        raise ValueError(f"board {board.id} has no quantity {name!r:.120}")
    return found


def of_board(board: Board) -> dict[str, list[Figure]]:
    """All that is drawn of one board's rows, by topic: the project's picture first, one for each ranked measure."""
    robust = axis(board, board.rankings[0])
    clean = axis(board, "clean_error")
    passes = Axis("Image passes of training", "", _passes, log=True)
    drawn = {
        "flatness": [_picture(board, k, name, robust) for k, name in enumerate(board.rankings[1:])],
        "others": [
            _scatter(board, "clean", clean, robust, "pareto"),
            _scatter(board, "budget", passes, robust, "pareto"),
        ],
        "ranks": [_ranks(board, k, name) for k, name in enumerate(board.rankings)],
    }
    return {topic: [figure for figure in found if figure.rows] for topic, found in drawn.items()}


def _passes(row: Row) -> Value:
    return Value(mean=row.forward + row.backward, seeds=len(row.runs))


def _picture(board: Board, k: int, name: str, robust: Axis) -> Figure:
    figure = _scatter(board, f"flatness-{k}", axis(board, name), robust, "regression")
    shown = (name, board.rankings[0], board.checkpoint)
    known = [correlated(c) for c in board.correlations if (c.quantity, c.target, c.checkpoint) == shown]
    return figure._replace(caption=" ".join([figure.caption, *known]))


def correlated(correlation: Correlation) -> str:
    """A correlation in a sentence."""
    return "; ".join(said(statistic) for statistic in correlation.statistics) + f" over {correlation.models} models."


def said(statistic: Statistic) -> str:
    """`Spearman 0.81 (0.55 to 0.93)`, or why there is none."""
    name = statistic.name.capitalize()
    if statistic.value is None:
        return f"{name}: {statistic.reason or 'not defined'}"
    ends = interval(statistic.low, statistic.high, "ratio")
    return f"{name} {number(statistic.value, 'ratio')}{f' ({ends})' if ends else ''}"


def _scatter(board: Board, name: str, across: Axis, up: Axis, line: str) -> Figure:
    shown = [
        (row, a, b)
        for row in board.rows
        if (a := across.read(row)) and (b := up.read(row)) and (a.mean > 0 or not across.log)
    ]
    ranked = [(a.mean, b.mean) for row, a, b in shown if not row.unranked]
    title = f"{up.title} against {within(across.title)}"
    desc = f"Each of {len(shown)} methods is a point; the table below holds the same numbers."
    drawing = Drawing(f"{board.id}-{name}", title, desc, 360)
    trend = _regression(ranked) if line == "regression" else _pareto(ranked)
    x = scale(_ends(value for _, value, _ in shown), LEFT, RIGHT, across.unit, across.log, floor=0.0)
    y = scale([*_ends(value for _, _, value in shown), *(v for _, v in trend)], 360 - 50, TOP, up.unit)
    drawing.frame(x, y, across.heading, up.heading)
    if len(trend) > 1:
        drawing.line([(x(a), y(b)) for a, b in trend], "trend")
    for _, a, b in shown:
        if a.low is not None and a.high is not None:
            drawing.line([(x(a.low), y(b.mean)), (x(a.high), y(b.mean))], "whisker")
        if b.low is not None and b.high is not None:
            drawing.line([(x(a.mean), y(b.low)), (x(a.mean), y(b.high))], "whisker")
    for row, a, b in shown:
        said = hint(row.label, (up.title, b.mean, up.unit), (across.title, a.mean, across.unit))
        look = "hollow" if row.unranked else "point"
        drawing.mark(x(a.mean), y(b.mean), look, said, "square" if row.extra_data else "circle")
    for row, a, b in shown[:NAMED]:
        drawing.label(x(a.mean), y(b.mean), row.label, (LEFT + 2, 2, RIGHT + 12, y.start - 2))
    caption = {
        "regression": "Line: least squares over the ranked methods.",
        "pareto": "Line: no method is lower in one without being higher in the other.",
    }[line] + (" Whiskers: 95 % intervals." if any(v.low is not None for _, a, b in shown for v in (a, b)) else "")
    caption += " Hollow: not ranked." * any(row.unranked for row, _, _ in shown)
    caption += " Squares: trained on extra data." * any(row.extra_data for row, _, _ in shown)
    table = [(row.label, across.written(a), up.written(b)) for row, a, b in shown]
    return Figure(drawing, caption, ("Method", across.heading, up.heading), table)


def _ends(values: Iterable[Value]) -> list[float]:
    return [end for value in values for end in (value.low, value.mean, value.high) if end is not None]


def _regression(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The ends of the least-squares line over the points; none for fewer than three."""
    if len(points) < 3 or len({x for x, _ in points}) < 2:
        return []
    n = len(points)
    mean_x, mean_y = math.fsum(x for x, _ in points) / n, math.fsum(y for _, y in points) / n
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / math.fsum((x - mean_x) ** 2 for x, _ in points)
    return [(x, mean_y + slope * (x - mean_x)) for x in (min(points)[0], max(points)[0])]


def _pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the stairs below and left of which there is no point."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not corners or y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return corners


def _ranks(board: Board, k: int, name: str) -> Figure:
    quantity = find(board, name)
    ranked = sorted((row for row in board.rows if name in row.places), key=lambda row: row.places[name].rank)
    shown, last = ranked[:NAMED], max([row.places[name].high for row in ranked[:NAMED]], default=1)
    height, width = 22 * len(shown) + 62, 380
    drawing = Drawing(
        f"{board.id}-ranks-{k}",
        f"Ranks by {within(quantity.title)}",
        "One line per method: its rank as a point, the 95 % interval of its rank as a bar, and its letters.",
        height,
        width,
    )
    x = Scale(0.5, last + 0.5, 160, width - 42)
    for tick in sorted({1, *(t for t in x.ticks if t == int(t) and t >= 1)}):
        drawing.line([(x(tick), 8), (x(tick), height - 48)], "grid")
        drawing.text(x(tick), height - 32, f"{tick:g}", "tick middle")
    drawing.text((x.start + x.end) / 2, height - 12, "Rank", "title middle")
    for at, row in enumerate(shown):
        place, y = row.places[name], 22.0 * at + 20
        label = row.label if len(row.label) <= 22 else f"{row.label[:21]}\u2026"
        drawing.text(150, y + 4, label, "label end")
        drawing.line([(x(place.low), y), (x(place.high), y)], "bar")
        drawing.mark(x(place.rank), y, "point", f"{row.label}: rank {place.rank}, {ranks(place)}", "circle")
        drawing.text(width - 28, y + 4, place.letters, "letters")
    caption = "Bars: 95 % of the bootstrap's ranks. Methods that share a letter are not told apart."
    caption += f" The first {NAMED} of {len(ranked)}." * (len(ranked) > NAMED)
    table = [(row.label, str(p.rank), ranks(p), p.letters) for row in ranked if (p := row.places[name])]
    return Figure(drawing, caption, ("Method", "Rank", "95 % interval", "Letters"), table)


def heat(board: Board) -> list[dict[str, Any]]:
    """The correlations as maps, one for each checkpoint, the board's first, and statistic, Spearman's first, for one
    method far off decides Pearson's: rows are measures, columns targets."""
    maps = []
    for checkpoint in sorted({c.checkpoint for c in board.correlations}, key=lambda name: name != board.checkpoint):
        here = [c for c in board.correlations if c.checkpoint == checkpoint]
        names = dict.fromkeys(s.name for c in here for s in c.statistics)
        for name in sorted(names, key=lambda name: name != "spearman"):
            rows: dict[str, dict[str, tuple[Correlation, Statistic]]] = {}
            for c in here:
                for statistic in (s for s in c.statistics if s.name == name):
                    rows.setdefault(c.quantity, {})[c.target] = (c, statistic)
            targets = [*dict.fromkeys(c.target for c in here)]
            maps.append({"title": f"{name.capitalize()}, {checkpoint} checkpoint", "targets": targets, "rows": rows})
    return maps


def shade(value: float | None) -> str:
    """The class of a cell of the map: -5 to 5 of five."""
    return "none" if value is None else f"h{'m' if value < 0 else 'p'}{min(5, round(abs(value) * 5))}"
