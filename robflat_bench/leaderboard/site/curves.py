"""Curves by epoch: a run's own history, and flatness through training from the document of `experiment training`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from robflat_bench.config.spec import ProtocolRef
from robflat_bench.leaderboard.site.figures import LEFT, RIGHT, TOP, Figure, Points
from robflat_bench.leaderboard.site.svg import Drawing, scale
from robflat_bench.leaderboard.site.words import capital, format_value
from robflat_bench.records.record import Bounded, Count, RunRecord

SHAPES = ("circle", "square", "diamond")
FIELDS = {
    "heldout_robust_error": "robust",
    "heldout_clean_error": "clean",
    "heldout_robust_loss": "robust, held out",
    "train_loss": "training",
}
FEW = 12
"""Largest number of points of a curve that have a mark each."""


class DocumentPart(BaseModel):
    """Part of the document of `experiment training`: the fields that the figures read."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class CurveValue(DocumentPart):
    """In nats; None where the measure has no value."""

    value: Bounded | None


class TrainedNetwork(DocumentPart):
    """Which network of which run. epoch: counted from 0."""

    label: str
    seed: Count | None
    epoch: Count | None


class NetworkValues(DocumentPart):
    """robust_loss: by split. measures, titles: by canonical text of the measure."""

    robust_loss: dict[str, CurveValue]
    measures: dict[str, CurveValue]
    titles: dict[str, str]


class NetworkReading(DocumentPart):
    """One network of the experiment and its values."""

    model: TrainedNetwork
    values: NetworkValues


class TrainingDocument(DocumentPart):
    """The document of `robflat-bench experiment training`."""

    protocol: ProtocolRef
    readings: tuple[NetworkReading, ...]


class EpochCurve(NamedTuple):
    """One line. points, marks: (epoch counted from 1, value)."""

    name: str
    points: Points
    marks: Sequence[tuple[float, float]] = ()


def training_figures(document: TrainingDocument, name: str) -> list[Figure]:
    """Robust loss and every measure through the training of the document's runs."""
    runs: dict[tuple[str, int | None], list[NetworkReading]] = {}
    for reading in document.readings:
        if reading.model.epoch is not None:
            runs.setdefault((reading.model.label, reading.model.seed), []).append(reading)
    titles = {measure: title for reading in document.readings for measure, title in reading.values.titles.items()}

    def panel(k: int, title: str, read: Callable[[NetworkValues], CurveValue | None]) -> Figure:
        curves = []
        for (label, seed), readings in runs.items():
            found = [(each.model.epoch, read(each.values)) for each in readings]
            points = sorted((e + 1.0, v.value) for e, v in found if e is not None and v and v.value is not None)
            curves.append(EpochCurve(label if seed is None else f"{label}, seed {seed}", points))
        return _figure(f"{name}-{k}", f"{title} through training", "nats", "nats", curves)

    def measure_panel(k: int, measure: str) -> Figure:
        title = titles[measure]
        return panel(k, capital(title), lambda values: values.measures.get(measure))

    first = panel(0, "Robust loss", lambda values: values.robust_loss.get("test"))
    return [first, *(measure_panel(k, measure) for k, measure in enumerate(titles, 1))]


def history_figures(records: Sequence[RunRecord], name: str) -> list[Figure]:
    """Errors and losses by epoch from the runs' histories; dots mark the best checkpoints."""
    panels = [
        ("%", "Held-out error through training", "fraction", ("heldout_robust_error", "heldout_clean_error")),
        ("nats", "Loss through training", "nats", ("heldout_robust_loss", "train_loss")),
    ]
    figures = []
    for k, (up, title, unit, fields) in enumerate(panels):
        curves = []
        for field in fields:
            for record in records:
                points = [(each.epoch + 1.0, v) for each in record.history if (v := getattr(each, field)) is not None]
                best = record.results["best"].epoch if "best" in record.results else None
                chosen = best is not None and field.startswith("heldout_robust")
                marks = [point for point in points if chosen and point[0] == (best or 0) + 1]
                seed = f", seed {record.seed}" if len(records) > 1 else ""
                curves.append(EpochCurve(FIELDS[field] + seed, points, marks))
        figures.append(_figure(f"{name}-{k}", title, up, unit, curves, len(records)))
    return figures


def _figure(name: str, title: str, up: str, unit: str, curves: Sequence[EpochCurve], alike: int = 1) -> Figure:
    """Lines by epoch. Groups of `alike` neighbours look alike; the first of each group is named at its end."""
    drawing = Drawing(name, title, "One line per run; the table below holds the same numbers.", 300)
    points = [point for curve in curves for point in curve.points]
    x = scale((epoch for epoch, _ in points), LEFT, RIGHT - 6, floor=0.0)
    y = scale((value for _, value in points), 300 - 50, TOP, unit, floor=0.0)
    drawing.frame(x, y, "Epoch", up)
    ends: list[tuple[float, float, str]] = []
    for k, curve in enumerate(curves):
        colour, shape = f"c{k // alike % 4}", SHAPES[k // alike % 3]
        if curve.points:
            drawing.line([(x(a), y(b)) for a, b in curve.points], f"curve {colour}")
        for a, b in curve.points if len(curve.points) <= FEW else curve.marks:
            tip = f"{curve.name}, epoch {a:g}: {format_value(b, unit)}"
            drawing.mark(x(a), y(b), f"dot {colour}", tip, shape)
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
    table = [(f"{epoch:g}", *(format_value(line.get(epoch), unit) for line in lines)) for epoch in epochs]
    caption = "Dots: the best checkpoints, chosen on held-out images." if any(curve.marks for curve in curves) else ""
    return Figure(drawing, caption, ("Epoch", *(curve.name for curve in curves)), table)
