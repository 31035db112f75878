"""A measure on training and test examples, clean and robust; and test robust loss as train robust loss plus gap.

Is the loss flat where the network was trained, or where it is tested, and for the images or for the attacked ones?
Stutz et al., ICCV 2021 (RLoss = train RLoss + gap; clean against robust, train against test flatness).
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from robflat_bench.core import UsageError
from robflat_bench.experiments import SplitsParams
from robflat_bench.experiments.document import Document, Text, Value, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.measured import Found, changed, measured, titled
from robflat_bench.experiments.readings import gathered, unit
from robflat_bench.experiments.subject import Subject
from robflat_bench.registry.components import resolve
from robflat_bench.results.quantities import SPLITS
from robflat_bench.results.store import StoredJournal


class Row(Base):
    """title: of the measure. found: its values by split and coupling. robust_loss: by split, under `attack`; gap: test
    minus train, its error that of a difference of independent means."""

    title: Text
    attack: Text
    found: dict[str, dict[str, Found]]
    robust_loss: dict[str, Value]
    gap: Value

    @property
    def brief(self) -> dict[str, float | None]:
        losses = {f"robust loss, {split}": value.value for split, value in self.robust_loss.items()}
        values = {f"{split}, {c}": v.value for split, found in self.found.items() for c, v in found.items()}
        return {**losses, "gap": self.gap.value, **values}


def read(subject: Subject, params: SplitsParams, journal: StoredJournal) -> Row:
    """Losses from the record where it has them; each measurement in a section of its own."""
    measure = resolve(subject.registry, "measure", params.measure)
    takes = measure.info.couplings if "coupling" in type(measure.params).model_fields else ()
    unknown = [coupling for coupling in params.couplings if coupling not in takes]
    if unknown or not takes:
        raise UsageError(
            f"{measure.name} takes {f'no coupling {unknown[0]}' if unknown else 'no coupling at all'}, only: "
            f"{', '.join(takes) or '-'}; see `robflat-bench list measures`"
        )
    loss = gathered(subject, [], journal.section("losses"))
    if "train" not in loss.robust_loss:
        raise UsageError(
            f"{subject.protocol.name} attacks no training examples, so there is no gap; "
            "give its first attack some: train = 300"
        )
    model = subject.load()
    found: dict[str, dict[str, Found]] = {}
    for split in SPLITS:
        examples, found[split] = subject.examples(split, params.examples), {}
        for coupling in params.couplings or takes:
            here = changed(subject.registry, measure, coupling=coupling)
            place = journal.section(f"{split}, {coupling}")
            found[split][coupling] = measured(subject, here, model, examples, place)[0]
    return Row(
        n=loss.n,
        title=titled(measure, coupling="by coupling"),
        attack=loss.attack,
        found=found,
        robust_loss=loss.robust_loss,
        gap=difference(loss.robust_loss["test"], loss.robust_loss["train"]),
    )


def difference(a: Value, b: Value) -> Value:
    """Of the means of two independent samples."""
    errors = [a.standard_error, b.standard_error]
    error = None if None in errors else math.hypot(*(e or 0.0 for e in errors))
    return Value(value=a.drawn - b.drawn, standard_error=error, n=min(a.n, b.n))


def draw(document: Document[Row]) -> Figure:
    """The measure by coupling and split; the loss as bars, the gap stacked on the training loss."""
    rows = [reading.values for reading in document.readings]
    called = names([reading.model for reading in document.readings])
    couplings = list(rows[0].found["test"])
    made, panels = figure(2, width=4.4, height=3.4)
    left, right = panels[0]
    dots(left, rows, couplings)
    left.set_title(plain(rows[0].title))
    left.set_ylabel(plain(unit(rows[0].title).replace("robust loss", "loss")))
    left.set_xlabel("coupling of the adversary with the weights")
    bars(right, rows, called)
    legend: list[Any] = [
        Line2D([], [], color=look(k).color, marker=look(k).marker, linestyle="", label=plain(name))
        for k, name in enumerate(called)
    ]
    grey: dict[str, Any] = {"color": "#555555", "marker": "o", "linestyle": ""}
    legend += [
        Line2D([], [], label="test", **grey),
        Line2D([], [], markerfacecolor="white", label="train", **grey),
        Patch(facecolor="#bbbbbb", edgecolor="#555555", label="train loss"),
        Patch(facecolor="white", edgecolor="#555555", hatch="///", label="gap (test - train)"),
    ]
    n = sorted({found.n for row in rows for split in row.found.values() for found in split.values()})
    trained = sorted({row.robust_loss["train"].n for row in rows})
    notes = (
        f"Measure on {' to '.join(map(str, n))} images of each split. Loss: cross-entropy under {rows[0].attack}, on "
        f"{' to '.join(map(str, trained))} training images without augmentation. Bars: one standard error."
    )
    return finish(made, document, "Train and test, clean and robust", notes, legend)


def dots(axes: Axes, rows: list[Row], couplings: list[str]) -> None:
    """For every coupling the models side by side, test before train."""
    step = 0.8 / (2 * len(rows))
    for k, row in enumerate(rows):
        color, marker, _ = look(k)
        for s, (split, fill) in enumerate({"test": color, "train": "white"}.items()):
            values = [row.found[split][coupling] for coupling in couplings]
            x = [at + (2 * k + s - len(rows) + 0.5) * step for at in range(len(couplings))]
            style: dict[str, Any] = {"color": color, "marker": marker, "markerfacecolor": fill, "markersize": 5.5}
            axes.errorbar(
                x, [v.drawn for v in values], [v.standard_error or 0.0 for v in values], linestyle="", **style
            )
    axes.set_xticks(range(len(couplings)), couplings)
    axes.set_xlim(-0.5, len(couplings) - 0.5)
    axes.grid(visible=False, axis="x")
    if not log_where_wide(axes, [v.drawn for row in rows for split in row.found.values() for v in split.values()]):
        axes.axhline(0, color="#999999", linewidth=0.8)


def bars(axes: Axes, rows: list[Row], called: list[str]) -> None:
    """Train robust loss, the gap on top of it (below its top, where it is negative), the test loss with its error."""
    for k, row in enumerate(rows):
        color, test, train = look(k).color, row.robust_loss["test"], row.robust_loss["train"]
        axes.bar(k, train.drawn, 0.6, color=color, alpha=0.45, edgecolor=color)
        axes.bar(k, row.gap.drawn, 0.6, bottom=train.drawn, facecolor="none", edgecolor=color, hatch="///")
        axes.errorbar(k - 0.15, train.drawn, train.standard_error, color="#222222")
        axes.errorbar(k + 0.15, test.drawn, test.standard_error, color="#222222")
        top = max(test.drawn + (test.standard_error or 0.0), train.drawn)
        text = f"{train.drawn:.2f} + {row.gap.drawn:.2f} ± {row.gap.standard_error or 0.0:.2f}\n= {test.drawn:.2f}"
        axes.annotate(text, (k, top), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5)
    axes.set_title("robust loss, test = train + gap")
    axes.set_ylabel("cross-entropy under attack (nats)")
    axes.set_xticks(range(len(rows)), [plain(textwrap.fill(name, 16)) for name in called])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.margins(y=0.22)
    axes.grid(visible=False, axis="x")
