"""A measure on training and test examples, clean and robust; and test robust loss as train robust loss plus gap.

Is the loss flat where the network was trained, or where it is tested, and for the images or for the attacked ones?
Stutz et al., ICCV 2021 (RLoss = train RLoss + gap; clean against robust, train against test flatness).
"""

from __future__ import annotations

import math
import textwrap
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt

from robflat_bench.core import Params, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, MeasuredValue, Text, ValueWithError

with lazy_imports():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.losses import axis_unit, losses_and_measures
    from robflat_bench.experiments.trained_model import TrainedModel, short_title
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.records.quantities import SPLITS
    from robflat_bench.registry.components import resolve


class SplitsParams(Params):
    measure: str = Field(default="average-case", description="Measure that is read on training and on test examples.")
    couplings: tuple[str, ...] = Field(default=(), description="Couplings of the measure; none: all that it has.")
    examples: NonNegativeInt = Field(default=0, description="Number of examples of each split; 0: the protocol's.")


class TrainTestSplits(Experiment):
    """The measure and the robust loss of one model on both splits.

    Attributes
    ----------
    title, attack
        Titles of the measure and of the protocol's first attack.
    found
        The measure by split and coupling.
    robust_loss
        Mean cross-entropy under the attack, by split.
    gap
        Test loss minus train loss, with the standard error of a difference of independent means.
    """

    name = "splits"
    summary = (
        "A measure on training and test examples, clean and robust; test robust loss as train robust loss and gap."
    )
    params = SplitsParams

    title: Text
    attack: Text
    found: dict[str, dict[str, MeasuredValue]]
    robust_loss: dict[str, ValueWithError]
    gap: ValueWithError

    @property
    def brief(self) -> dict[str, float | None]:
        losses = {f"robust loss, {split} (nats)": value.value for split, value in self.robust_loss.items()}
        values = {f"{split}, {c}": v.value for split, found in self.found.items() for c, v in found.items()}
        return {**losses, "gap (nats)": self.gap.value, **values}

    @property
    def measured(self) -> list[MeasuredValue]:
        """The measure's values on both splits."""
        return [value for split in self.found.values() for value in split.values()]

    @classmethod
    def read(cls, model: TrainedModel, params: SplitsParams, journal: StoredJournal) -> Self:
        """Take losses from the record where it has them; each measurement has a section of its own."""
        measure = resolve(model.registry, "measure", params.measure)
        takes = measure.info.couplings if "coupling" in type(measure.params).model_fields else ()
        unknown = [coupling for coupling in params.couplings if coupling not in takes]
        if unknown or not takes:
            lacks = f"no coupling {unknown[0]}" if unknown else "no coupling at all"
            raise UsageError(
                f"{measure.name} takes {lacks}, only: {', '.join(takes) or '-'}; see `robflat-bench list measures`"
            )
        losses: dict[str, Any] = losses_and_measures(model, [], journal.section("losses"))
        loss = losses["robust_loss"]
        if "train" not in loss:
            raise UsageError(
                f"{model.found.protocol.name} attacks no training examples, so there is no gap; "
                "add some to its first attack: train = 300"
            )
        network = model.load()

        def value(split: Literal["test", "train"], coupling: str) -> MeasuredValue:
            here, place = model.variant(measure, coupling=coupling), journal.section(f"{split}, {coupling}")
            return model.measure(here, network, examples[split], place)[0]

        examples = {split: model.examples(split, params.examples) for split in SPLITS}
        return cls(
            n=losses["n"],
            title=short_title(measure, coupling="by coupling"),
            attack=losses["attack"],
            found={split: {c: value(split, c) for c in params.couplings or takes} for split in SPLITS},
            robust_loss=loss,
            gap=gap_between(loss["test"], loss["train"]),
        )

    @staticmethod
    def draw(document: Document[TrainTestSplits]) -> Figure:
        """The measure by coupling and split; the loss as bars, the gap stacked on the training loss."""
        models, first = document.values, document.values[0]
        made, ((left, right),) = fig.panels(2, width=4.4, height=3.4)
        _draw_measure(left, models)
        left.set_title(fig.plain(first.title))
        left.set_ylabel(fig.plain(axis_unit(first.title).replace("robust loss", "loss")))
        left.set_xlabel("coupling of the adversary with the weights")
        _draw_losses(right, models, document.names)
        legend = [
            *fig.entries(document.names, linestyle=""),
            fig.entry("test", marker="o", linestyle=""),
            fig.entry("train", marker="o", linestyle="", markerfacecolor="white"),
            Patch(facecolor="#bbbbbb", edgecolor=fig.GREY, label="train loss"),
            Patch(facecolor="white", edgecolor=fig.GREY, hatch="///", label="gap (test - train)"),
        ]
        n = sorted({value.n for values in models for value in values.measured})
        trained = sorted({values.robust_loss["train"].n for values in models})
        notes = (
            f"Measure on {' to '.join(map(str, n))} images of each split. Loss: cross-entropy under {first.attack}, on "
            f"{' to '.join(map(str, trained))} training images without augmentation. Bars: one standard error."
        )
        return fig.finish(made, document, "Train and test, clean and robust", notes, legend)


def gap_between(test: ValueWithError, train: ValueWithError) -> ValueWithError:
    """The difference of the means of two independent samples."""
    errors = [test.standard_error, train.standard_error]
    error = None if None in errors else math.hypot(*(e or 0.0 for e in errors))
    return ValueWithError(value=test.drawn - train.drawn, standard_error=error, n=min(test.n, train.n))


def _draw_measure(axes: Axes, models: list[TrainTestSplits]) -> None:
    """For every coupling the models side by side, test before train."""
    couplings = list(models[0].found["test"])
    step = 0.8 / (2 * len(models))
    for k, values in enumerate(models):
        for s, (split, fill) in enumerate({"test": fig.look(k)["color"], "train": "white"}.items()):
            x = [at + (2 * k + s - len(models) + 0.5) * step for at in range(len(couplings))]
            y = [values.found[split][coupling] for coupling in couplings]
            fig.errorbars(axes, x, y, k, markerfacecolor=fill, markersize=5.5, linestyle="")
    axes.set_xticks(range(len(couplings)), couplings)
    axes.set_xlim(-0.5, len(couplings) - 0.5)
    axes.grid(visible=False, axis="x")
    if not fig.log_where_wide(axes, [value.drawn for values in models for value in values.measured]):
        axes.axhline(0, color="#999999", linewidth=0.8)


def _draw_losses(axes: Axes, models: list[TrainTestSplits], names: list[str]) -> None:
    """Train robust loss, the gap on top of it (below its top, where it is negative), the test loss with its error."""
    for k, values in enumerate(models):
        color, gap = fig.look(k)["color"], values.gap
        test, train = values.robust_loss["test"], values.robust_loss["train"]
        axes.bar(k, train.drawn, 0.6, color=color, alpha=0.45, edgecolor=color)
        axes.bar(k, gap.drawn, 0.6, bottom=train.drawn, facecolor="none", edgecolor=color, hatch="///")
        axes.errorbar(k - 0.15, train.drawn, train.standard_error, color="#222222")
        axes.errorbar(k + 0.15, test.drawn, test.standard_error, color="#222222")
        top = max(test.drawn + (test.standard_error or 0.0), train.drawn)
        text = f"{train.drawn:.2f} + {gap.drawn:.2f} ± {gap.standard_error or 0.0:.2f}\n= {test.drawn:.2f}"
        axes.annotate(text, (k, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_title("robust loss, test = train + gap")
    axes.set_ylabel("cross-entropy under attack (nats)")
    axes.set_xticks(range(len(models)), [fig.plain(textwrap.fill(name, 16)) for name in names])
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.margins(y=0.22)
    axes.grid(visible=False, axis="x")


INFO = TrainTestSplits
