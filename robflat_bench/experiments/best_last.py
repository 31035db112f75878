"""Best against last checkpoint in the plane of flatness and robust loss: does early stopping find flatter minima?

An arrow leads from the early-stopped weights (hollow) to the last ones (filled).   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
from typing import Any

from robflat_bench.core import lazy_imports
from robflat_bench.experiments.document import Document, ValueWithError, names
from robflat_bench.experiments.losses import RobustLosses, axis_unit, by_run, counts, measures_of

with lazy_imports():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robflat_bench.experiments import figures as fig

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "best": {"markersize": 10, "markerfacecolor": "none"},
    "last": {"markersize": 5},
}
"""A ring and a dot: both are visible where they coincide."""
POINTS_PER_INCH, APART = 72, 20


Point = tuple[ValueWithError, ValueWithError]
"""Flatness and robust loss."""


class BestLast(RobustLosses):
    """The values of one checkpoint, best or last."""

    name = "best-last"
    summary = "Best against last checkpoint in the plane of flatness and robust loss."
    reads = "both"

    @staticmethod
    def draw(document: Document[RobustLosses]) -> Figure:
        """A panel for each measure; a colour for each run."""
        runs, measures = by_run(document), measures_of(document)
        made, (panels,) = fig.panels(len(measures), width=4.4, height=3.6, sharey=True)
        for axes, (measure, title) in zip(panels, measures.items(), strict=True):
            axes.set_title(fig.plain(title))
            axes.set_xlabel(fig.plain(f"{axis_unit(measure)}; flatter to the left"))
            ends = [
                [(run[checkpoint].values.measures[measure], run[checkpoint].values.robust_loss["test"]) for run in runs]
                for checkpoint in CHECKPOINTS
            ]
            for points, shape in zip(ends, CHECKPOINTS.values(), strict=True):
                for k, (x, y) in enumerate(points):
                    style = {"color": fig.look(k)["color"], "marker": fig.look(k)["marker"], "elinewidth": 0.9, **shape}
                    axes.errorbar(x.drawn, y.drawn, xerr=x.standard_error, yerr=y.standard_error, **style)
            fig.log_where_wide(axes, [values.measures[measure].drawn for values in document.values], axis="x")
            fig.log_where_wide(axes, [values.robust_loss["test"].drawn for values in document.values])
            for k, (best, last) in enumerate(zip(*ends, strict=True)):
                _arrow(axes, best, last, k)
        panels[0].set_ylabel("robust loss, test (nats)")
        legend = fig.entries(names([run["last"].model for run in runs], among=("seed", "run")), linestyle="")
        for checkpoint, label in {"best": "best (early-stopped)", "last": "last epoch"}.items():
            legend.append(fig.entry(label, marker="o", linestyle="", **CHECKPOINTS[checkpoint]))
        notes = f"Arrows lead from best to last where they are apart; bars: one standard error. {counts(document)}"
        return fig.finish(made, document, "Best against last checkpoint", notes, legend)


def _arrow(
    axes: Axes, best: tuple[ValueWithError, ValueWithError], last: tuple[ValueWithError, ValueWithError], k: int
) -> None:
    """Draw an arrow between points that lie further apart than their markers are wide."""
    start, end = ((x.drawn, y.drawn) for x, y in (best, last))
    axes.autoscale_view()  # otherwise put off until the figure is drawn
    there, here = axes.transData.transform([start, end])
    if math.dist(there, here) / axes.figure.dpi * POINTS_PER_INCH > APART:
        style = {"arrowstyle": "-|>", "color": fig.look(k)["color"], "linewidth": 1.4, "shrinkA": 6, "shrinkB": 4}
        axes.annotate("", end, start, arrowprops=style)


INFO = BestLast
