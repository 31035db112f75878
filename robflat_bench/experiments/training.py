"""Robust loss and flatness through training: when robust overfitting sets in, does the loss landscape sharpen?

One row per kept checkpoint; the line marks the epoch early stopping chooses.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from robflat_bench.experiments.document import Document, Reading, Value, names
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.readings import Loss, counts, measures_of, read, unit

__all__ = ["Row", "draw", "read"]
Row = Loss


def draw(document: Document[Loss]) -> Figure:
    """Robust loss in the first panel, each measure in one of its own, over epochs trained."""
    runs: dict[str, list[Reading[Loss]]] = {}
    for reading in document.readings:
        runs.setdefault(reading.model.run or reading.model.label, []).append(reading)
    called = names([readings[0].model for readings in runs.values()], among=("seed", "run"))
    measures = measures_of(document)
    made, panels = figure(1 + len(measures), width=3.9)
    axes = panels[0]

    legend = []
    for k, (name, readings) in enumerate(zip(called, runs.values(), strict=True)):
        readings = sorted(readings, key=lambda reading: reading.model.epoch or 0)
        color, marker, _ = look(k)
        for split, fill, dashes in (("test", color, "-"), ("train", "white", "--")):
            losses = {epoch(r): r.values.robust_loss[split] for r in readings if split in r.values.robust_loss}
            curve(axes[0], losses, color, marker, linestyle=dashes, markerfacecolor=fill)
        for panel, measure in zip(axes[1:], measures, strict=True):
            curve(panel, {epoch(r): r.values.measures[measure] for r in readings}, color, marker)
        best = readings[0].model.best_epoch
        turns = (3 * k, (3, 3 * max(len(runs) - 1, 1)))  # lines at one epoch take turns, none hides another
        for panel in axes if best is not None else ():
            panel.axvline((best or 0) + 1, color=color, linestyle=turns, linewidth=1.3)
        legend.append(Line2D([], [], color=color, marker=marker, label=plain(name)))

    label(axes[0], "robust loss", "cross-entropy under attack (nats)")
    log_where_wide(axes[0], [v.drawn for r in document.readings for v in r.values.robust_loss.values()])
    for panel, (measure, title) in zip(axes[1:], measures.items(), strict=True):
        label(panel, title, unit(measure))
        log_where_wide(panel, [r.values.measures[measure].drawn for r in document.readings])
    legend += [
        Line2D([], [], color="#555555", marker="o", label="test"),
        Line2D([], [], color="#555555", marker="o", markerfacecolor="white", linestyle="--", label="train"),
        Line2D([], [], color="#555555", linestyle=(0, (3, 3)), linewidth=1.3, label="early stopping (best)"),
    ]
    train = document.readings[0].values.robust_loss.get("train")
    notes = f"{counts(document)} Bars: one standard error."
    notes += f" Train: {train.n} training images without augmentation." if train else ""
    return finish(made, document, "Robust loss and flatness through training", notes, legend)


def epoch(reading: Reading[Loss]) -> int:
    """Epochs trained: weights of epoch 0 have seen one."""
    return (reading.model.epoch or 0) + 1


def curve(axes: Axes, values: Mapping[int, Value], color: str, marker: str, **style: Any) -> None:
    errors = [value.standard_error or 0.0 for value in values.values()]
    axes.errorbar([*values], [value.drawn for value in values.values()], errors, color=color, marker=marker, **style)


def label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(plain(title))
    axes.set_ylabel(plain(unit))
    axes.set_xlabel("epochs trained")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
