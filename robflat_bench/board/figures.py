"""The board's figures: each a drawing, a caption in words, and the numbers it shows as a table.

Rows that are not ranked are hollow and enter no line; rows with extra data are squares. Nothing is told by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from robflat_bench.board.model import Board, Correlation, Quantity, Row, Statistic, Value
from robflat_bench.board.svg import WIDTH, Drawing, Scale, hint, scale
from robflat_bench.board.words import amount, interval, number, ranks, spread
from robflat_bench.protocol import Strict
from robflat_bench.record import RunRecord
from robflat_bench.spec import ProtocolRef

LEFT, RIGHT, TOP = 60, WIDTH - 14, 14
NAMED = 40
"""So many rows are named in a figure, and so many have a line in one of ranks; the table below has them all."""


class Figure(NamedTuple):
    """What a page shows. rows: the table's cells, the first of each its heading."""

    drawing: Drawing
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]

    @property
    def body(self) -> Markup:
        """The table's rows; there are many of them, so they are written here and not in a template."""
        lines = (
            f'<tr><th scope="row">{escape(row[0])}</th>' + "".join([f'<td class="n">{escape(cell)}</td>' for cell in row[1:]])
            for row in self.rows
        )
        return Markup("</tr>\n".join(lines))


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
    passes = Axis(
        "Image passes of training", "", lambda row: Value(mean=row.forward + row.backward, seeds=len(row.runs)), log=True
    )
    return {
        "flatness": [_picture(board, k, name, robust) for k, name in enumerate(board.rankings[1:])],
        "others": [
            _scatter(board, "clean", clean, robust, "pareto"),
            _scatter(board, "budget", passes, robust, "pareto"),
        ],
        "ranks": [_ranks(board, k, name) for k, name in enumerate(board.rankings)],
    }


def _picture(board: Board, k: int, name: str, robust: Axis) -> Figure:
    figure = _scatter(board, f"flatness-{k}", axis(board, name), robust, "regression")
    known = [c for c in board.correlations if (c.quantity, c.target, c.checkpoint) == (name, "robust_error", board.checkpoint)]
    return figure._replace(caption=f"{figure.caption} {correlated(known[0])}" if known else figure.caption)


def correlated(correlation: Correlation) -> str:
    """A correlation in a sentence."""
    return "; ".join(said(statistic) for statistic in correlation.statistics) + f" over {correlation.models} models."


def said(statistic: Statistic) -> str:
    """`Spearman 0.81 (0.55 to 0.93)`, or why there is none."""
    name = statistic.name.capitalize()
    if statistic.value is None:
        return f"{name}: {statistic.reason or 'not defined'}"
    within = interval(statistic.low, statistic.high, "ratio")
    return f"{name} {number(statistic.value, 'ratio')}{f' ({within})' if within else ''}"


def _scatter(board: Board, name: str, across: Axis, up: Axis, line: str) -> Figure:
    shown = [(row, x, y) for row in board.rows if (x := across.read(row)) and (y := up.read(row)) and (x.mean > 0 or not across.log)]
    ranked = [(x.mean, y.mean) for row, x, y in shown if not row.unranked]
    title = f"{up.title} against {across.title[:1].lower()}{across.title[1:]}"
    desc = f"Each of {len(shown)} methods is a point; the table below holds the same numbers."
    drawing = Drawing(f"{board.id}-{name}".replace(".", "-"), title, desc, 360)
    trend = _regression(ranked) if line == "regression" else _pareto(ranked)
    x = scale(_ends(value for _, value, _ in shown), LEFT, RIGHT, across.unit, across.log, floor=0.0)
    y = scale([*_ends(value for _, _, value in shown), *(v for _, v in trend)], 360 - 50, TOP, up.unit)
    drawing.frame(x, y, across.heading, up.heading)
    if len(trend) > 1:
        drawing.line([(x(a), y(b)) for a, b in trend], "trend")
    for row, a, b in shown:
        look = "faint whisker" if row.unranked else "whisker"
        if a.low is not None and a.high is not None:
            drawing.line([(x(a.low), y(b.mean)), (x(a.high), y(b.mean))], look)
        if b.low is not None and b.high is not None:
            drawing.line([(x(a.mean), y(b.low)), (x(a.mean), y(b.high))], look)
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
        f"{board.id}-ranks-{k}".replace(".", "-"),
        f"Ranks by {quantity.title[:1].lower()}{quantity.title[1:]}",
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


# ---------------------------------------------------------------------------------------------------------
# Through training
# ---------------------------------------------------------------------------------------------------------


class Number(Strict):
    """A number with its standard error over n examples."""

    value: float | None
    standard_error: float | None
    n: int


class Model(Strict):
    """Which network of which run, by the epoch counted from 0."""

    label: str
    seed: int | None
    checkpoint: str
    epoch: int | None
    best_epoch: int | None
    run: str | None
    weights: str


class Values(Strict):
    """What was read from it; measures and their titles by canonical text."""

    n: int
    attack: str
    robust_loss: dict[str, Number]
    measures: dict[str, Number]
    titles: dict[str, str]


class Reading(Strict):
    """One network of the experiment."""

    model: Model
    values: Values


class Training(Strict):
    """The document of `robflat-bench experiment training`, as data."""

    schema_version: int
    experiment: str
    protocol: ProtocolRef
    dataset: str
    dataset_checksum: str
    canonical_data: bool
    epsilon: float
    evaluation_seed: int
    numerics: int
    readings: tuple[Reading, ...]


class Curve(NamedTuple):
    """One line. points: epoch counted from 1 -> value."""

    name: str
    points: list[tuple[float, float]]
    marks: list[tuple[float, float]] = []  # noqa: RUF012


def training(document: Training, name: str) -> list[Figure]:
    """Robust loss and every measure through the training of the document's runs."""
    runs: dict[tuple[str, int | None], list[Reading]] = {}
    for reading in document.readings:
        if reading.model.epoch is not None:
            runs.setdefault((reading.model.label, reading.model.seed), []).append(reading)
    titles = {title: text for reading in document.readings for title, text in reading.values.titles.items()}

    def panel(k: int, title: str, read: Callable[[Values], Number | None]) -> Figure:
        curves = []
        for (label, seed), readings in runs.items():
            found = [(r.model.epoch, read(r.values)) for r in readings]
            points = sorted((e + 1.0, n.value) for e, n in found if e is not None and n and n.value is not None)
            curves.append(Curve(label if seed is None else f"{label}, seed {seed}", points))
        return _curves(f"{name}-{k}".replace(".", "-"), f"{title} through training", "nats", "nats", curves)

    figures = [panel(0, "Robust loss", lambda values: values.robust_loss.get("test"))]
    for k, (measure, title) in enumerate(titles.items()):
        figures.append(panel(k + 1, title[:1].upper() + title[1:], lambda values, m=measure: values.measures.get(m)))  # type: ignore[misc]
    return figures


def histories(records: Sequence[RunRecord], name: str) -> list[Figure]:
    """Held-out errors and losses by epoch, as the runs wrote them down; dots mark the best checkpoints."""
    panels: list[tuple[str, str, str, dict[str, str]]] = [
        ("%", "Held-out error through training", "fraction", {"robust": "heldout_robust_error", "clean": "heldout_clean_error"}),
        ("nats", "Loss through training", "nats", {"robust, held out": "heldout_robust_loss", "training": "train_loss"}),
    ]  # fmt: skip
    figures = []
    for k, (up, title, unit, fields) in enumerate(panels):
        curves = []
        for what, field in fields.items():
            for record in records:
                points = [(e.epoch + 1.0, v) for e in record.history if (v := getattr(e, field)) is not None]
                best = record.results["best"].epoch if "best" in record.results else None
                marks = [p for p in points if best is not None and p[0] == best + 1 and field.startswith("heldout_robust")]
                curves.append(Curve(f"{what}, seed {record.seed}" if len(records) > 1 else what, points, marks))
        figures.append(_curves(f"{name}-{k}", title, up, unit, curves, len(records)))
    return figures


def _curves(name: str, title: str, up: str, unit: str, curves: Sequence[Curve], alike: int = 1) -> Figure:
    """Lines by epoch; `alike` neighbours in the list look alike and share a name."""
    drawing = Drawing(name, title, "One line per run; the table below holds the same numbers.", 300)
    points = [point for curve in curves for point in curve.points]
    x = scale((e for e, _ in points), LEFT, RIGHT - 6, floor=0.0)
    y = scale((v for _, v in points), 300 - 50, TOP, unit, floor=0.0)
    drawing.frame(x, y, "Epoch", up)
    ends: list[tuple[float, float, str]] = []
    for k, curve in enumerate(curves):
        look = f"curve c{k // alike % 4}"
        if curve.points:
            drawing.line([(x(a), y(b)) for a, b in curve.points], look)
            if len(curve.points) <= 12:
                for a, b in curve.points:
                    drawing.mark(x(a), y(b), f"dot c{k // alike % 4}", f"{curve.name}, epoch {a:g}: {number(b, unit)}", SHAPES[k // alike % 3])
            for a, b in curve.marks:
                drawing.mark(x(a), y(b), f"dot c{k // alike % 4}", f"{curve.name}, best: epoch {a:g}, {number(b, unit)}", "circle")
            if k % alike == 0:
                ends.append((x(curve.points[-1][0]), y(curve.points[-1][1]), curve.name.partition(", seed")[0] if alike > 1 else curve.name))
    for at, (right, level, named) in enumerate(sorted(ends, key=lambda end: end[1])):
        above = min(level - 8, *(other - 22 for _, other, _ in sorted(ends, key=lambda end: end[1])[at + 1 :]), 1e9)
        drawing.text(right, max(above, 12), named, "label end")
    epochs = sorted({a for a, _ in points})
    lines = [dict(curve.points) for curve in curves]
    table = [(f"{epoch:g}", *(number(line.get(epoch), unit) for line in lines)) for epoch in epochs]
    return Figure(drawing, "Dots: the best checkpoints." * any(c.marks for c in curves), ("Epoch", *(c.name for c in curves)), table)


SHAPES = ("circle", "square", "diamond")


def heat(board: Board) -> list[dict[str, Any]]:
    """The correlations at the board's checkpoint, one map for each statistic: rows are measures, columns targets."""
    here = [c for c in board.correlations if c.checkpoint == board.checkpoint]
    targets = list(dict.fromkeys(c.target for c in here))
    maps = []
    for name in dict.fromkeys(s.name for c in here for s in c.statistics):
        rows: dict[str, dict[str, tuple[Correlation, Statistic]]] = {}
        for c in here:
            for statistic in c.statistics:
                if statistic.name == name:
                    rows.setdefault(c.quantity, {})[c.target] = (c, statistic)
        maps.append({"name": name, "targets": targets, "rows": rows})
    return maps


def shade(value: float | None) -> str:
    """The class of a cell of the map: -5 to 5 of five."""
    return "none" if value is None else f"h{'m' if value < 0 else 'p'}{min(5, round(abs(value) * 5))}"
