"""Curves by epoch: a run's own history, and flatness through training as the experiment of that name has read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from robflat_bench.config.protocol import Strict
from robflat_bench.config.spec import ProtocolRef
from robflat_bench.leaderboard.site.figures import LEFT, RIGHT, TOP, Figure
from robflat_bench.leaderboard.site.svg import Drawing, scale
from robflat_bench.leaderboard.site.words import number
from robflat_bench.results.record import RunRecord

SHAPES = ("circle", "square", "diamond")
FIELDS = {
    "heldout_robust_error": "robust",
    "heldout_clean_error": "clean",
    "heldout_robust_loss": "robust, held out",
    "train_loss": "training",
}
FEW = 12
"""So many points have marks of their own."""


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
    marks: Sequence[tuple[float, float]] = ()


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
        return _curves(f"{name}-{k}", f"{title} through training", "nats", "nats", curves)

    figures = [panel(0, "Robust loss", lambda values: values.robust_loss.get("test"))]
    for k, (measure, title) in enumerate(titles.items()):
        figures.append(panel(k + 1, title[:1].upper() + title[1:], partial(_measure, measure)))
    return figures


def _measure(name: str, values: Values) -> Number | None:
    return values.measures.get(name)


def histories(records: Sequence[RunRecord], name: str) -> list[Figure]:
    """Held-out errors and losses by epoch, as the runs wrote them down; dots mark the best checkpoints."""
    panels = [
        ("%", "Held-out error through training", "fraction", ("heldout_robust_error", "heldout_clean_error")),
        ("nats", "Loss through training", "nats", ("heldout_robust_loss", "train_loss")),
    ]
    figures = []
    for k, (up, title, unit, fields) in enumerate(panels):
        curves = []
        for field in fields:
            for record in records:
                points = [(e.epoch + 1.0, v) for e in record.history if (v := getattr(e, field)) is not None]
                best = record.results["best"].epoch if "best" in record.results else None
                chosen = best if field.startswith("heldout_robust") else None
                marks = [point for point in points if chosen is not None and point[0] == chosen + 1]
                named = f"{FIELDS[field]}, seed {record.seed}" if len(records) > 1 else FIELDS[field]
                curves.append(Curve(named, points, marks))
        figures.append(_curves(f"{name}-{k}", title, up, unit, curves, len(records)))
    return figures


def _curves(name: str, title: str, up: str, unit: str, curves: Sequence[Curve], alike: int = 1) -> Figure:
    """Lines by epoch; `alike` neighbours in the list look alike, and the first of them is named at its end."""
    drawing = Drawing(name, title, "One line per run; the table below holds the same numbers.", 300)
    points = [point for curve in curves for point in curve.points]
    x = scale((e for e, _ in points), LEFT, RIGHT - 6, floor=0.0)
    y = scale((v for _, v in points), 300 - 50, TOP, unit, floor=0.0)
    drawing.frame(x, y, "Epoch", up)
    ends: list[tuple[float, float, str]] = []
    for k, curve in enumerate(curves):
        colour, shape = f"c{k // alike % 4}", SHAPES[k // alike % 3]
        if curve.points:
            drawing.line([(x(a), y(b)) for a, b in curve.points], f"curve {colour}")
        for a, b in curve.points if len(curve.points) <= FEW else curve.marks:
            drawing.mark(x(a), y(b), f"dot {colour}", f"{curve.name}, epoch {a:g}: {number(b, unit)}", shape)
        if curve.points and k % alike == 0:
            a, b = curve.points[-1]
            ends.append((y(b), x(a), curve.name.partition(", seed")[0] if alike > 1 else curve.name))
    lowest = y.start
    for level, right, named in sorted(ends, reverse=True):  # upwards, each above the one before
        lowest = max(min(level - 8, lowest), 12.0)
        drawing.text(right, lowest, named, "label end")
        lowest -= 14
    lines = [dict(curve.points) for curve in curves]
    epochs = sorted({epoch for epoch, _ in points})
    table = [(f"{epoch:g}", *(number(line.get(epoch), unit) for line in lines)) for epoch in epochs]
    caption = "Dots: the best checkpoints." if any(curve.marks for curve in curves) else ""
    return Figure(drawing, caption, ("Epoch", *(curve.name for curve in curves)), table)
