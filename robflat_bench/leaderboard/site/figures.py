"""The board's figures: each a drawing, a caption, and its numbers as a table.

Rows without a rank are hollow and enter no line; rows with extra data have a ring. Colour and shape: `families`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robflat_bench.analysis.correlation import STATISTICS
from robflat_bench.leaderboard.model import Board, BoardRow, Correlation, CorrelationValue, RowValue
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.families import draw_row
from robflat_bench.leaderboard.site.svg import WIDTH, Drawing, Scale, hint, scale, short

LEFT, RIGHT, TOP = 60, WIDTH - 14, 14
NAMED = 40
"""Largest number of rows that are named in a figure, and of lines in a figure of ranks; the table has all rows."""
Points = list[tuple[float, float]]


class Figure(NamedTuple):
    """A drawing with its caption, and a table of its numbers unless the page has them elsewhere.

    rows: cells, the first of each row its heading.
    """

    drawing: Drawing
    caption: str
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()

    @property
    def body(self) -> Markup:
        """The table's rows as HTML; there are thousands of them, and a template would take seconds."""
        lines = (
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join([f'<td class="n">{escape(cell)}</td>' for cell in row[1:]])
            for row in self.rows
        )
        return Markup("".join(f"{line}</tr>\n" for line in lines))


class Axis(NamedTuple):
    """One direction of a figure. read: row -> its value there, None where it has none."""

    title: str
    unit: str
    read: Callable[[BoardRow], RowValue | None]
    log: bool = False

    @property
    def heading(self) -> str:
        return f"{self.title} ({words.UNITS[self.unit]})" if self.unit in words.UNITS else self.title


def column_axis(board: Board, id: str) -> Axis:
    """A column at the board's checkpoint."""
    column = board.column(id)
    return Axis(column.title, column.unit, lambda row: row.value(board.checkpoint, id))


def board_figures(board: Board) -> dict[str, list[Figure]]:
    """The figures of a board by topic, whose numbers its table has; `central` draws robustness against flatness."""
    robust = column_axis(board, board.rankings[0])
    clean = column_axis(board, "clean_error")
    passes = Axis("Image passes of training", "", _passes, log=True)
    drawn = {
        "costs": [
            _scatter(board, "clean", clean, robust),
            _scatter(board, "budget", passes, robust),
        ],
        "ranks": [_ranks(board, k, id) for k, id in enumerate(board.rankings)],
    }
    return {topic: [figure for figure in found if figure] for topic, found in drawn.items()}


def _passes(row: BoardRow) -> RowValue:
    return RowValue(mean=row.forward + row.backward, seeds=len(row.runs))


def _scatter(board: Board, name: str, across: Axis, up: Axis) -> Figure | None:
    """Rows as points with whiskers, and the Pareto front of the ranked rows; None where no row has both values."""
    found = [(row, across.read(row), up.read(row)) for row in board.rows]
    shown = [(row, a, b) for row, a, b in found if a and b and (a.mean > 0 or not across.log)]
    if not shown:
        return None
    ranked = [(a.mean, b.mean) for row, a, b in shown if not row.unranked]
    front = pareto(ranked)
    title = f"{words.capital(up.title)} against {words.within(across.title)}"
    desc = f"Each of {len(shown)} methods is a point; the table of the board holds the same numbers."
    drawing = Drawing(f"{board.id}-{name}", title, desc, 360)
    x = scale(_ends(a for _, a, _ in shown), LEFT, RIGHT, across.unit, across.log, floor=0.0)
    y = scale([*_ends(b for _, _, b in shown), *(v for _, v in front)], 360 - 50, TOP, up.unit)
    drawing.frame(x, y, across.heading, up.heading)
    if len(front) > 1:
        drawing.line([(x(a), y(b)) for a, b in front], "trend")
    known = [(a, b) for _, a, b in shown]
    whiskers = [
        [(x(a.low), y(b.mean)), (x(a.high), y(b.mean))] for a, b in known if a.low is not None and a.high is not None
    ]
    whiskers += [
        [(x(a.mean), y(b.low)), (x(a.mean), y(b.high))] for a, b in known if b.low is not None and b.high is not None
    ]
    drawing.lines(whiskers, "whisker")
    for row, a, b in shown:
        tip = hint(row.label, (up.title, b.mean, up.unit), (across.title, a.mean, across.unit))
        draw_row(drawing, x(a.mean), y(b.mean), row, tip)
    for row, a, b in shown[:NAMED]:
        drawing.label(x(a.mean), y(b.mean), row.label, (LEFT + 2, 2, RIGHT + 12, y.start - 2))
    caption = {
        "Each point is a method, the mean over its seeds; lower left is better.": True,
        "Line: Pareto front of the ranked methods.": len(front) > 1,
        "Whiskers: 95 % confidence intervals.": any(value.low is not None for _, a, b in shown for value in (a, b)),
        "Hollow: not ranked.": any(row.unranked for row, _, _ in shown),
        "Ring: trained on extra data.": any(row.extra_data for row, _, _ in shown),
    }
    return Figure(drawing, words.sentences(caption))


def _interval(value: RowValue) -> tuple[float, float] | None:
    return None if value.low is None or value.high is None else (value.low, value.high)


def _ends(values: Iterable[RowValue]) -> list[float]:
    return [end for value in values for end in (value.low, value.mean, value.high) if end is not None]


def pareto(points: Points) -> Points:
    """The corners of the stairs with no point below and to the left of them."""
    corners: Points = []
    for x, y in sorted(points):
        if not corners or y < corners[-1][1]:
            corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return corners


def _ranks(board: Board, k: int, id: str) -> Figure | None:
    """Ranks by one column, with their intervals and letters; None without ranks."""
    ranked = sorted((row for row in board.rows if id in row.places), key=lambda row: row.places[id].rank)
    if not ranked:
        return None
    shown, last = ranked[:NAMED], max(row.places[id].high for row in ranked[:NAMED])
    height, width = 22 * len(shown) + 62, 420
    desc = "One line per method: its rank as a point, the 95 % interval of its rank as a bar, and its letters."
    drawing = Drawing(f"{board.id}-ranks-{k}", f"Ranks by {words.within(board.column(id).title)}", desc, height, width)
    x = Scale(0.5, last + 0.5, 200, width - 42)
    for tick in sorted({1, *(t for t in x.ticks if t == int(t) and t >= 1)}):
        drawing.line([(x(tick), 8), (x(tick), height - 48)], "grid")
        drawing.text(x(tick), height - 32, f"{tick:g}", "tick middle")
    drawing.text((x.start + x.end) / 2, height - 12, "Rank", "title middle")
    for at, row in enumerate(shown):
        place, y = row.places[id], 22.0 * at + 20
        drawing.text(190, y + 4, short(row.label), "label end")
        drawing.line([(x(place.low), y), (x(place.high), y)], "bar")
        drawing.mark(x(place.rank), y, "point", f"{row.label}: rank {place.rank}, {words.rank_interval(place)}")
        drawing.text(width - 28, y + 4, place.letters, "letters")
    caption = {
        "Rank 1 has the lowest value. Bars: 95 % bootstrap intervals.": True,
        "Methods that share a letter do not differ significantly.": True,
        f"The first {NAMED} of {len(ranked)}.": len(ranked) > NAMED,
    }
    return Figure(drawing, words.sentences(caption))


def heat_maps(board: Board) -> list[dict[str, Any]]:
    """The correlations at the board's checkpoint as maps, one for each statistic; rows are measures, columns targets.
    models: the number of methods of most cells. Spearman's comes first, because a single outlying method can decide
    Pearson's."""
    here = [c for c in board.correlations if c.checkpoint == board.checkpoint]
    targets = [*dict.fromkeys(c.target for c in here)]
    models = Counter(c.models for c in here).most_common(1)
    statistics: dict[str, dict[str, dict[str, tuple[Correlation, CorrelationValue]]]] = {}
    for correlation in here:
        for value in correlation.statistics:
            row = statistics.setdefault(value.name, {}).setdefault(correlation.quantity, {})
            row[correlation.target] = (correlation, value)
    return [
        {
            "title": name.capitalize(),
            "meaning": STATISTICS[name].meaning,
            "targets": targets,
            "models": models[0][0],
            "rows": rows,
        }
        for name, rows in sorted(statistics.items(), key=lambda item: item[0] != "spearman")
    ]


def shade(value: float | None) -> str:
    """The class of a cell of a heat map: five shades for either sign."""
    return "none" if value is None else f"h{'m' if value < 0 else 'p'}{min(5, round(abs(value) * 5))}"
