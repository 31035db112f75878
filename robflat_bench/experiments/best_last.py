"""Best against last checkpoint in the plane of flatness and robust loss: does early stopping find flatter minima?

Every arrow leads from the early-stopped weights (hollow) to the last ones (filled).   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robflat_bench.experiments.document import Document, Reading, Value, names
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.readings import Loss, counts, measures_of, read, unit

__all__ = ["Row", "draw", "read"]
Row = Loss
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best": {"markersize": 10, "markerfacecolor": "none"},
    "last": {"markersize": 5},
}
"""A ring and a dot: both are seen where they coincide."""
POINTS_PER_INCH, APART = 72, 20


def draw(document: Document[Loss]) -> Figure:
    """A panel for each measure; a colour for each run."""
    runs: dict[str, dict[str, Reading[Loss]]] = {}
    for reading in document.readings:
        runs.setdefault(reading.model.run or reading.model.label, {})[reading.model.checkpoint] = reading
    called = names([pair["last"].model for pair in runs.values()], among=("seed", "run"))
    measures = measures_of(document)
    made, panels = figure(len(measures), width=4.4, height=3.6, sharey=True)

    for axes, (measure, title) in zip(panels[0], measures.items(), strict=True):
        axes.set_title(plain(title))
        axes.set_xlabel(plain(f"{unit(measure)}; flatter to the left"))
        ends = {checkpoint: [pair[checkpoint].values for pair in runs.values()] for checkpoint in CHECKPOINTS}
        for checkpoint, shape in CHECKPOINTS.items():
            for k, values in enumerate(ends[checkpoint]):
                point(axes, values.measures[measure], values.robust_loss["test"], k, shape)
        log_where_wide(axes, [r.values.measures[measure].drawn for r in document.readings], axis="x")
        log_where_wide(axes, [r.values.robust_loss["test"].drawn for r in document.readings])
        for k, (best, last) in enumerate(zip(*ends.values(), strict=True)):
            arrow(axes, place(best, measure), place(last, measure), k)
    panels[0][0].set_ylabel("robust loss, test (nats)")

    legend = [
        Line2D([], [], color=look(k).color, marker=look(k).marker, linestyle="", label=plain(name))
        for k, name in enumerate(called)
    ]
    legend += [
        Line2D([], [], color="#555555", marker="o", linestyle="", label=label, **CHECKPOINTS[checkpoint])
        for checkpoint, label in {"best": "best (early-stopped)", "last": "last epoch"}.items()
    ]
    notes = f"Arrows lead from best to last where they are apart; bars: one standard error. {counts(document)}"
    return finish(made, document, "Best against last checkpoint", notes, legend)


def place(values: Loss, measure: str) -> tuple[float, float]:
    """(flatness, robust loss)"""
    return values.measures[measure].drawn, values.robust_loss["test"].drawn


def point(axes: Axes, x: Value, y: Value, k: int, shape: dict[str, Any]) -> None:
    """A checkpoint of the k-th run, its standard errors as bars."""
    color, marker, _ = look(k)
    style: dict[str, Any] = {"color": color, "marker": marker, "elinewidth": 0.9, **shape}
    axes.errorbar(x.drawn, y.drawn, xerr=x.standard_error, yerr=y.standard_error, **style)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], k: int) -> None:
    """Between points that lie further apart than their markers are wide."""
    axes.autoscale_view()  # which is put off until the figure is drawn
    there, here = axes.transData.transform([start, end])
    if math.dist(there, here) / axes.figure.dpi * POINTS_PER_INCH > APART:
        style = {"arrowstyle": "-|>", "color": look(k).color, "linewidth": 1.4, "shrinkA": 6, "shrinkB": 4}
        axes.annotate("", end, start, arrowprops=style)
