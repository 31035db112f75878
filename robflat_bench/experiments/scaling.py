r"""Rescaled copies of a model under every measure: which stay, which move, by what power of c (see `rescaling`).

The fitted exponent is the least-squares slope of log |value_c / value_1| over log c. Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from robflat_bench.config.protocol import Strict
from robflat_bench.core import NoValue, Rescaling, UsageError
from robflat_bench.experiments import ScalingParams, choose
from robflat_bench.experiments.document import Document, Text, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, look, plain
from robflat_bench.experiments.measured import Found, coupled, measured
from robflat_bench.experiments.subject import Subject
from robflat_bench.measures.rescaling import alone, louder, rescaled
from robflat_bench.numerics.folding import pairs
from robflat_bench.registry.components import Component, non_defaults, write
from robflat_bench.results.store import StoredJournal

STAYS = 0.01
"""Exponents below this are rounding, or what an iteration's tolerance leaves."""

LIGHT: Mapping[str, str] = {
    "hessian-trace": "hessian-trace(probes=20)",
    "local-entropy": "local-entropy(draws=20)",
    "lpf": "lpf(draws=20)",
    "pac-bayes-sharpness": "pac-bayes-sharpness(iterations=10, bisections=6)",
    "weighted-curvature": "weighted-curvature(probes=20)",
    "worst-case": "worst-case(restarts=2, strong_steps=10)",
}
"""How the whole catalogue is read: the rest by default. Random numbers are common to all c, so few of them do."""


class Moved(Strict):
    """One measure: its declared powers of c, and its value for every factor under each of the rescalings."""

    name: Text
    declared: dict[Rescaling, float]
    found: dict[str, tuple[Found, ...]]

    def exponent(self, rescaling: str, factors: tuple[float, ...]) -> tuple[float, float, float] | None:
        """The fit, and the lowest and highest of single factors; None without values or where the sign changes."""
        values = [found.drawn for found in self.found.get(rescaling, ())]
        if not values or not all(value / values[0] > 0 if values[0] else False for value in values):
            return None
        rises = [(math.log(v / values[0]), math.log(c)) for v, c in zip(values, factors, strict=True) if c != 1]
        each = [rise / run for rise, run in rises]
        return sum(y * x for y, x in rises) / sum(x * x for _, x in rises), min(each), max(each)

    def stays(self, factors: tuple[float, ...]) -> bool:
        """Under the rescaling that keeps the function."""
        fit = self.exponent("layers", factors)
        return fit is not None and max(map(abs, fit)) < STAYS


class Row(Base):
    """factors: 1, then those asked for. logits_moved: the largest change of a logit under `layers`, over the largest
    logit. measures: by canonical text."""

    factors: tuple[float, ...]
    logits_moved: float
    measures: dict[str, Moved]

    @property
    def brief(self) -> dict[str, float | None]:
        stay = [row.stays(self.factors) for row in self.measures.values()]
        valued = [row.exponent("layers", self.factors) is not None for row in self.measures.values()]
        return {"measures": len(stay), "stay": sum(stay), "move": sum(valued) - sum(stay)} | {
            "function moved": self.logits_moved
        }


def read(subject: Subject, params: ScalingParams, journal: StoredJournal) -> Row:
    """Every measure at every c works in a section of the journal of its own."""
    examples, factors = subject.examples("test", params.examples), (1.0, *params.factors)
    original = subject.load()
    if not pairs(original, examples.x):
        raise UsageError(f"{subject.found.name}: no normalisation undoes what scales a convolution; name another model")
    copies = {
        "layers": [rescaled(original, examples.x, c) for c in factors],
        "alone": [alone(rescaled(original, examples.x, c), examples.x) for c in factors],
    }
    with suppress(NoValue):  # of logits that are no linear layer's
        copies["logits"] = [louder(original, examples, c) for c in factors]
    rows = {}
    for text in params.measures or [LIGHT.get(name, name) for name in subject.registry.names("measure")]:
        measure = coupled(subject.registry, text, params.coupling)
        declared = measure.info.powers
        found = {}
        for rescaling, models in copies.items():
            if rescaling == "alone" and not declared.get("layers"):
                continue
            places = [journal.section(f"{measure.canonical}, {rescaling}, {c!r}") for c in factors]
            if rescaling == "logits":
                places[0] = journal.section(f"{measure.canonical}, layers, 1.0")
            found[rescaling] = tuple(
                measured(subject, measure, model, examples, place)[0]
                for model, place in zip(models, places, strict=True)
            )
        rows[measure.canonical] = Moved(name=label(measure, params.coupling), declared=dict(declared), found=found)
    with torch.no_grad():
        logits = [model(examples.x) for model in copies["layers"]]
    moved = max(float((z - logits[0]).abs().max()) for z in logits) / float(logits[0].abs().max())
    return Row(n=len(examples), factors=factors, logits_moved=moved, measures=rows)


def label(measure: Component, coupling: str) -> str:
    """The measure without what the caption says of all."""
    own = {**non_defaults(measure.params), "coupling": getattr(measure.params, "coupling", None)}
    return write(measure.name, {key: value for key, value in own.items() if (key, value) != ("coupling", coupling)})


# ---------------------------------------------------------------------------------------------------------
# The figure
# ---------------------------------------------------------------------------------------------------------


def draw(document: Document[Row]) -> Figure:
    """A line for each measure: exponents under either rescaling, and the value itself; those that stay come first."""
    rows = [reading.values for reading in document.readings]
    factors, called = rows[0].factors, names([reading.model for reading in document.readings])
    places = placed(rows)
    ratios = [4, 4, 1.1 * len(rows)]
    made, panels = figure(3, width=3.2, height=0.205 * (max(places.values()) + 2), sharey=True, width_ratios=ratios)
    for axes, shown, title in zip(panels[0], ("layers", "logits"), TITLES, strict=False):
        axes.set_title(title)
        axes.set_xlabel("exponent of c")
        axes.axvline(0, color="#999999", linewidth=0.8)
        for text, y in places.items():
            declared = rows[0].measures[text].declared.get(shown)  # type: ignore[call-overload]
            if declared is not None:
                axes.plot(declared, y, marker="D", markersize=11, color="#bbbbbb", markerfacecolor="none")
        for k, row in enumerate(rows):
            shift = (k - (len(rows) - 1) / 2) * min(0.3, 0.8 / len(rows))
            for text, y in places.items():
                dot(axes, row.measures[text], shown, factors, y + shift, k)
        axes.xaxis.set_major_locator(MultipleLocator(1))
        axes.set_xlim(-LIMIT, LIMIT)
    table(panels[0][2], rows, places, called)
    short = [text.partition("(")[0] for text in places]
    ticks = {
        y: name if short.count(name) == 1 else rows[0].measures[text].name
        for name, (text, y) in zip(short, places.items(), strict=True)
    }
    panels[0][0].set_yticks([*ticks], [plain(name) for name in ticks.values()])
    panels[0][0].set_ylim(max(places.values()) + 0.7, -1.7)
    heads(panels[0][0], places)
    params = choose(document.experiment).params
    assert isinstance(params, ScalingParams)
    grey: dict[str, Any] = {"color": "#555555", "linestyle": ""}
    legend = [
        Line2D([], [], color=look(k).color, marker=look(k).marker, linestyle="", label=plain(name))
        for k, name in enumerate(called)
    ]
    legend += [
        Line2D([], [], marker="o", label="all weights", **grey),
        Line2D([], [], marker="o", markerfacecolor="white", label="the scaled weights alone", **grey),
        Line2D(
            [], [], marker="D", markersize=9, markerfacecolor="none", color="#bbbbbb", linestyle="", label="declared"
        ),
    ]
    moved = max(row.logits_moved for row in rows)
    notes = (
        f"Coupling {params.coupling} where there is one. Exponent: slope of log |value| over log c at c = "
        f"{', '.join(f'{c:g}' for c in sorted(factors))}; bars: its range over c. "
        f"Left, logits move by {moved:.0g} of the largest one. Arrows: beyond the axis; no dot: no value, or its sign "
        "changes. Parameters and standard errors: in the JSON."
    )
    return finish(made, document, "What rescaling the weights does to each measure", notes, legend)


TITLES = ("convolutions x c, undone\nby normalisation: same function", "last linear layer x c:\nlogits x c")
LIMIT = 3.4


def placed(rows: list[Row]) -> dict[str, float]:
    """Canonical text -> y: measures that stay under `layers` in every model, a gap, those that move by their power."""

    def power(text: str) -> float:
        fits = [row.measures[text].exponent("layers", row.factors) for row in rows]
        return max((abs(fit[0]) for fit in fits if fit), default=math.inf)

    stay = sorted(text for text in rows[0].measures if all(row.measures[text].stays(row.factors) for row in rows))
    move = sorted({*rows[0].measures} - {*stay}, key=lambda text: (power(text), text))
    there: dict[str, float] = {text: y for y, text in enumerate(stay)}
    return there | {text: len(stay) + (1.7 if stay else 0) + y for y, text in enumerate(move)}


def heads(axes: Axes, places: dict[str, float]) -> None:
    """What the two groups are, above each: the second begins after a gap."""
    ys = list(places.values())
    gaps = [b for a, b in pairwise(ys) if b - a > 1]
    for y, text in ((ys[0], "stay" if gaps else ""), *((gap, "move") for gap in gaps)):
        axes.annotate(
            text,
            (0, y - 0.85),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )


def dot(axes: Axes, moved: Moved, rescaling: str, factors: tuple[float, ...], y: float, k: int) -> None:
    """The exponent of all weights, filled, and of the scaled ones alone, hollow."""
    color, marker, _ = look(k)
    for which, fill in ((rescaling, color), ("alone", "white")):
        fit = moved.exponent(which, factors) if which == rescaling or rescaling == "layers" else None
        if fit is None:
            continue
        middle, low, high = fit
        if abs(middle) > LIMIT:
            end = math.copysign(LIMIT - 0.12, middle)
            axes.plot(end, y, marker=">" if middle > 0 else "<", color=color, markersize=6)
            axes.annotate(
                f"{middle:.1f}",
                (end, y),
                xytext=(-5 if middle > 0 else 5, 0),
                textcoords="offset points",
                ha="right" if middle > 0 else "left",
                va="center",
                fontsize=8,
                color=color,
            )
            continue
        bars = [[max(middle - low, 0)], [max(high - middle, 0)]]
        axes.errorbar(middle, y, xerr=bars, color=color, marker=marker, markerfacecolor=fill, capsize=0, elinewidth=1)


def table(axes: Axes, rows: list[Row], places: dict[str, float], called: list[str]) -> None:
    """The values at w, c = 1."""
    axes.set_axis_off()
    axes.set_title("value at w")
    axes.set_xlim(0, len(rows))
    for k, (row, name) in enumerate(zip(rows, called, strict=True)):
        style: dict[str, Any] = {"color": look(k).color, "ha": "center", "va": "center_baseline", "fontsize": 8.5}
        axes.text(k + 0.5, -1.1, plain(textwrap.shorten(name, 14, placeholder="...")), **style)
        for text, y in places.items():
            value = row.measures[text].found["layers"][0].value
            axes.text(k + 0.5, y, "none" if value is None else f"{value:.3g}", **style)
