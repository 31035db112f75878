"""Best against last checkpoint in the plane of flatness and robust loss: does early stopping find flatter minima?

Every arrow leads from the early-stopped weights (hollow) to the last ones (filled).   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robflat_bench.experiments.document import Document, Reading, names
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.readings import Loss, counts, measures_of, read, unit

__all__ = ["Row", "draw", "read"]
Row = Loss


def draw(document: Document[Loss]) -> Figure:
    """A panel for each measure; a colour for each run."""
    runs: dict[str, dict[str, Reading[Loss]]] = {}
    for reading in document.readings:
        runs.setdefault(reading.model.run or reading.model.label, {})[reading.model.checkpoint] = reading
    called = names([pair["last"].model for pair in runs.values()], among=("seed", "run"))
    measures = measures_of(document)
    made, panels = figure(len(measures), width=4.4, height=3.6, sharey=True)

    legend = []
    for k, (name, pair) in enumerate(zip(called, runs.values(), strict=True)):
        color, marker, _ = look(k)
        for axes, measure in zip(panels[0], measures, strict=True):
            ends = []
            for checkpoint, fill in (("best", "white"), ("last", color)):
                values = pair[checkpoint].values
                flatness, loss = values.measures[measure], values.robust_loss["test"]
                axes.errorbar(
                    flatness.value,
                    loss.value,
                    xerr=flatness.standard_error,
                    yerr=loss.standard_error,
                    color=color,
                    marker=marker,
                    markersize=7,
                    markerfacecolor=fill,
                    elinewidth=0.9,
                )
                ends.append((flatness.value, loss.value))
            arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.4, "shrinkA": 6, "shrinkB": 6}
            if ends[0] != ends[1]:
                axes.annotate("", ends[1], ends[0], arrowprops=arrow)
        legend.append(Line2D([], [], color=color, marker=marker, linestyle="", markersize=7, label=plain(name)))

    for axes, (measure, title) in zip(panels[0], measures.items(), strict=True):
        axes.set_title(plain(title))
        axes.set_xlabel(plain(f"{unit(measure)}; flatter to the left"))
        log_where_wide(axes, [r.values.measures[measure].value for r in document.readings], axis="x")
        log_where_wide(axes, [r.values.robust_loss["test"].value for r in document.readings])
    attack = document.readings[0].values.attack
    panels[0][0].set_ylabel(plain(f"robust loss, test: cross-entropy under {attack} (nats)"))
    legend += [
        Line2D(
            [], [], color="#555555", marker="o", markerfacecolor="white", linestyle="", label="best (early-stopped)"
        ),
        Line2D([], [], color="#555555", marker="o", linestyle="", label="last epoch"),
    ]
    notes = f"Arrows lead from best to last; bars: one standard error. {counts(document)}"
    return finish(made, document, "Best against last checkpoint", notes, legend)
