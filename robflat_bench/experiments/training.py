"""Robust loss and flatness through training: when robust overfitting sets in, does the loss landscape sharpen?

Every kept checkpoint is read; a vertical line marks the early-stopping epoch.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from robflat_bench.core import lazy_imports
from robflat_bench.experiments.document import Document, ModelReading, names
from robflat_bench.experiments.losses import RobustLosses, axis_unit, by_run, counts, measures_of

with lazy_imports():
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from robflat_bench.experiments import figures as fig


class ThroughTraining(RobustLosses):
    """The values of one kept checkpoint."""

    name = "training"
    summary = "Robust loss and flatness through training, the early-stopping point marked (needs run --keep-every)."
    reads = "kept"

    @staticmethod
    def draw(document: Document[RobustLosses]) -> Figure:
        """Robust loss in the first panel and each measure in a further one, over epochs trained."""
        runs = [sorted(run.values(), key=_epochs) for run in by_run(document)]
        measures = measures_of(document)
        made, (panels,) = fig.panels(1 + len(measures), width=3.9)

        for k, readings in enumerate(runs):
            color = fig.look(k)["color"]
            for split, fill, dashes in (("test", color, "-"), ("train", "white", "--")):
                there = [reading for reading in readings if split in reading.values.robust_loss]
                losses = [reading.values.robust_loss[split] for reading in there]
                fig.errorbars(panels[0], list(map(_epochs, there)), losses, k, linestyle=dashes, markerfacecolor=fill)
            for axes, measure in zip(panels[1:], measures, strict=True):
                fig.errorbars(axes, list(map(_epochs, readings)), [r.values.measures[measure] for r in readings], k)
            best = readings[0].model.best_epoch
            # Dashes of lines at the same epoch take turns, so that none hides another.
            turns = (3 * k, (3, 3 * max(len(runs) - 1, 1)))
            for axes in panels if best is not None else ():
                axes.axvline((best or 0) + 1, color=color, linestyle=turns, linewidth=1.3)

        shown = [[loss.drawn for values in document.values for loss in values.robust_loss.values()]]
        shown += [[values.measures[measure].drawn for values in document.values] for measure in measures]
        titles = {"robust loss": "cross-entropy under attack (nats)"}
        titles |= {title: axis_unit(measure) for measure, title in measures.items()}
        for axes, (title, label), values in zip(panels, titles.items(), shown, strict=True):
            axes.set_title(fig.plain(title))
            axes.set_ylabel(fig.plain(label))
            axes.set_xlabel("epochs trained")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            fig.log_where_wide(axes, values)
        legend = fig.entries(names([run[0].model for run in runs], among=("seed", "run")), linestyle="-")
        legend += [
            fig.entry("test", marker="o"),
            fig.entry("train", marker="o", markerfacecolor="white", linestyle="--"),
            fig.entry("early stopping (best)", linestyle=(0, (3, 3)), linewidth=1.3),
        ]
        train = document.values[0].robust_loss.get("train")
        notes = f"{counts(document)} Bars: one standard error."
        notes += f" Train: {train.n} training images without augmentation." if train else ""
        return fig.finish(made, document, "Robust loss and flatness through training", notes, legend)


def _epochs(reading: ModelReading[RobustLosses]) -> int:
    """Epochs trained: weights of epoch 0 have seen one."""
    return (reading.model.epoch or 0) + 1


INFO = ThroughTraining
