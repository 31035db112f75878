r"""Rescaled copies of a model under every measure: which stay, which move, by what power of c (see `rescaling`).

The fitted exponent is the least-squares slope of log |value_c / value_1| over log c. Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt

from robflat_bench.core import MeasureInfo, NoValue, Number, Params, Rescaling, Strict, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, MeasuredValue, Text

with lazy_imports():
    import torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.measures.rescaling import alone, louder, rescaled
    from robflat_bench.numerics.folding import pairs
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.registry.components import Component, non_defaults, resolve, write
    from robflat_bench.registry.grammar import parse

STAYS = 0.01
"""Exponents below this are rounding, or within an iteration's tolerance."""

LIGHT: Mapping[str, str] = {
    "hessian-trace": "hessian-trace(probes=20)",
    "local-entropy": "local-entropy(draws=20)",
    "lpf": "lpf(draws=20)",
    "pac-bayes-sharpness": "pac-bayes-sharpness(iterations=10, bisections=6)",
    "weighted-curvature": "weighted-curvature(probes=20)",
    "worst-case": "worst-case(restarts=2, strong_steps=10)",
}
"""Measures with fewer draws, for reading the whole catalogue: all c share random numbers, so few draws are enough."""


def _factor(value: float) -> float:
    if value <= 0 or value == 1:
        raise ValueError("must be positive and not 1, which rescales nothing")
    return value


class ScalingParams(Params):
    factors: tuple[Annotated[Number, AfterValidator(_factor)], ...] = Field(
        default=(0.5, 2.0), min_length=1, description="Factors c of every rescaling, positive and not 1."
    )
    measures: tuple[str, ...] = Field(
        default=(),
        description='Measures, e.g. ["hessian-trace", "lpf(std=0.02)"]; none: the whole catalogue, with fewer draws '
        "than usual.",
    )
    coupling: Literal["clean", "frozen"] = Field(
        default="frozen", description="Coupling of the measures that have one, unless their text names another."
    )
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")


class Moved(Strict):
    """One measure: its declared powers of c, and its value at every factor under each of the rescalings."""

    name: Text
    declared: dict[Rescaling, float]
    found: dict[str, tuple[MeasuredValue, ...]]

    def exponent(self, rescaling: str, factors: tuple[float, ...]) -> tuple[float, float, float] | None:
        """The fit, and the lowest and highest of single factors; None without values or where the sign changes."""
        values = [found.drawn for found in self.found.get(rescaling, ())]
        if not values or not all(value / values[0] > 0 if values[0] else False for value in values):
            return None
        rises = [(math.log(v / values[0]), math.log(c)) for v, c in zip(values, factors, strict=True) if c != 1]
        each = [rise / run for rise, run in rises]
        return sum(y * x for y, x in rises) / sum(x * x for _, x in rises), min(each), max(each)

    def stays(self, factors: tuple[float, ...]) -> bool:
        """Whether the value stays under the rescaling that keeps the function."""
        fit = self.exponent("layers", factors)
        return fit is not None and max(map(abs, fit)) < STAYS


class Scaling(Experiment):
    """The measures of one model's rescaled copies.

    Attributes
    ----------
    factors
        1, then those asked for.
    logits_moved
        The largest change of a logit under `layers`, relative to the largest logit.
    measures
        By canonical text.
    """

    name = "scaling"
    summary = "Rescaled copies of a model under every measure: which stay, which move, by what power."
    params = ScalingParams

    factors: tuple[float, ...]
    logits_moved: float
    measures: dict[str, Moved]

    @property
    def brief(self) -> dict[str, float | None]:
        stay = sum(moved.stays(self.factors) for moved in self.measures.values())
        valued = sum(moved.exponent("layers", self.factors) is not None for moved in self.measures.values())
        counts: dict[str, float | None] = {"measures": len(self.measures), "stay": stay, "move": valued - stay}
        return {**counts, "function moved": self.logits_moved}

    @classmethod
    def read(cls, model: TrainedModel, params: ScalingParams, journal: StoredJournal) -> Self:
        """Every measure at every c has a section of the journal."""
        examples, factors = model.examples("test", params.examples), (1.0, *params.factors)
        original = model.load()
        if not pairs(original, examples.x):
            raise UsageError(
                f"{model.found.name}: no normalisation undoes the scaling of a convolution; name another model"
            )
        copies = {
            "layers": [rescaled(original, examples.x, c) for c in factors],
            "alone": [alone(rescaled(original, examples.x, c), examples.x) for c in factors],
        }
        with suppress(NoValue):  # the logits are not those of a linear layer
            copies["logits"] = [louder(original, examples, c) for c in factors]
        measures = {}
        for text in params.measures or [LIGHT.get(name, name) for name in model.registry.names("measure")]:
            measure = _coupled(model, text, params.coupling)
            declared = dict(measure.info.powers)
            found = {}
            for rescaling, networks in copies.items():
                if rescaling == "alone" and not declared.get("layers"):
                    continue
                sections = [f"{measure.canonical}, {rescaling}, {c!r}" for c in factors]
                if rescaling == "logits":
                    sections[0] = f"{measure.canonical}, layers, 1.0"
                found[rescaling] = tuple(
                    model.measure(measure, network, examples, journal.section(section))[0]
                    for network, section in zip(networks, sections, strict=True)
                )
            name = _short_text(measure, params.coupling)
            measures[measure.canonical] = Moved(name=name, declared=declared, found=found)
        with torch.no_grad():
            logits = [network(examples.x) for network in copies["layers"]]
        moved = max(float((z - logits[0]).abs().max()) for z in logits) / float(logits[0].abs().max())
        return cls(n=len(examples), factors=factors, logits_moved=moved, measures=measures)

    @staticmethod
    def draw(document: Document[Scaling]) -> Figure:
        """A line for each measure: exponents under either rescaling, and the value itself; those that stay first."""
        models, params = document.values, document.params
        factors, measures = models[0].factors, models[0].measures
        places = placed(models)
        ratios, height = [4, 4, 1.1 * len(models)], 0.205 * (max(places.values()) + 2)
        made, ((left, middle, right),) = fig.panels(3, width=3.2, height=height, sharey=True, width_ratios=ratios)
        for axes, rescaling, title in zip((left, middle), ("layers", "logits"), TITLES, strict=True):
            axes.set_title(title)
            _draw_exponents(axes, models, rescaling, places)
        _write_values(right, models, places, document.names)
        short = [text.partition("(")[0] for text in places]
        ticks = [
            name if short.count(name) == 1 else measures[text].name for name, text in zip(short, places, strict=True)
        ]
        left.set_yticks(list(places.values()), list(map(fig.plain, ticks)))
        left.set_ylim(max(places.values()) + 0.7, -1.7)
        _name_groups(left, list(places.values()))
        legend = [
            *fig.entries(document.names, linestyle=""),
            fig.entry("all weights", marker="o", linestyle=""),
            fig.entry("the scaled weights alone", marker="o", linestyle="", markerfacecolor="white"),
            fig.entry("declared", markersize=9, linestyle="", **DECLARED),
        ]
        logits = max(values.logits_moved for values in models)
        notes = (
            f"Coupling {params.coupling} where there is one. Exponent: slope of log |value| over log c at c = "
            f"{', '.join(f'{c:g}' for c in sorted(factors))}; bars: its range over c. "
            f"Left, logits move by {logits:.0g} of the largest one. Arrows: beyond the axis; no dot: no value, or its "
            "sign changes. Parameters and standard errors: in the JSON."
        )
        return fig.finish(made, document, "What rescaling the weights does to each measure", notes, legend)


def _coupled(model: TrainedModel, text: str, coupling: str) -> Component[MeasureInfo]:
    """The measure under this coupling, unless it has no coupling or its text names another."""
    name, values = parse(text)
    if "coupling" in model.registry.get("measure", name).info.params.model_fields:
        values = {"coupling": coupling, **values}
    return resolve(model.registry, "measure", write(name, values))


def _short_text(measure: Component, coupling: str) -> str:
    """The measure's text without the coupling that the caption names for all."""
    own = {**non_defaults(measure.params), "coupling": getattr(measure.params, "coupling", None)}
    return write(measure.name, {key: value for key, value in own.items() if (key, value) != ("coupling", coupling)})


# ---------------------------------------------------------------------------------------------------------
# The figure
# ---------------------------------------------------------------------------------------------------------

TITLES = ("convolutions x c, undone\nby normalisation: same function", "last linear layer x c:\nlogits x c")
LIMIT = 3.4
"""The largest exponent on the axis."""
DECLARED: dict[str, Any] = {"marker": "D", "color": "#bbbbbb", "markerfacecolor": "none"}


def placed(models: list[Scaling]) -> dict[str, float]:
    """Canonical text -> y: measures that stay under `layers` in every model, a gap, those that move by their power."""

    def power(text: str) -> float:
        fits = [values.measures[text].exponent("layers", values.factors) for values in models]
        return max((abs(fit[0]) for fit in fits if fit), default=math.inf)

    texts = models[0].measures
    stay = sorted(text for text in texts if all(values.measures[text].stays(values.factors) for values in models))
    move = sorted({*texts} - {*stay}, key=lambda text: (power(text), text))
    there: dict[str, float] = {text: y for y, text in enumerate(stay)}
    return there | {text: len(stay) + (1.7 if stay else 0) + y for y, text in enumerate(move)}


def _draw_exponents(axes: Axes, models: list[Scaling], rescaling: str, places: dict[str, float]) -> None:
    """Exponents under one rescaling: of all weights, filled, of the scaled ones alone, hollow, and the declared one."""
    axes.set_xlabel("exponent of c")
    axes.axvline(0, color="#999999", linewidth=0.8)
    for text, y in places.items():
        declared = models[0].measures[text].declared.get(rescaling)  # type: ignore[call-overload]
        if declared is not None:
            axes.plot(declared, y, markersize=11, **DECLARED)
    for k, values in enumerate(models):
        shift = (k - (len(models) - 1) / 2) * min(0.3, 0.8 / len(models))
        shown = {rescaling: fig.look(k)["color"], **({"alone": "white"} if rescaling == "layers" else {})}
        for text, y in places.items():
            for which, fill in shown.items():
                if fit := values.measures[text].exponent(which, models[0].factors):
                    _dot(axes, fit, y + shift, k, fill)
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.set_xlim(-LIMIT, LIMIT)


def _dot(axes: Axes, fit: tuple[float, float, float], y: float, k: int, fill: str) -> None:
    """An exponent with its range, or an arrow and the number where it lies beyond the axis."""
    (middle, low, high), color = fit, fig.look(k)["color"]
    if abs(middle) <= LIMIT:
        style = {
            "color": color,
            "marker": fig.look(k)["marker"],
            "markerfacecolor": fill,
            "capsize": 0,
            "elinewidth": 1,
        }
        axes.errorbar(middle, y, xerr=[[max(middle - low, 0)], [max(high - middle, 0)]], **style)
        return
    up, end = middle > 0, math.copysign(LIMIT - 0.12, middle)
    axes.plot(end, y, marker=">" if up else "<", color=color, markersize=6)
    style = {"ha": "right" if up else "left", "va": "center", "fontsize": 8, "color": color}
    axes.annotate(f"{middle:.1f}", (end, y), xytext=(-5 if up else 5, 0), textcoords="offset points", **style)


def _name_groups(axes: Axes, ys: list[float]) -> None:
    """Write "stay" and "move" above the two groups of measures; the second begins after a gap."""
    gaps = [b for a, b in pairwise(ys) if b - a > 1]
    style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": "bold", "annotation_clip": False}
    style |= {"xycoords": ("axes fraction", "data"), "xytext": (-6, 0), "textcoords": "offset points"}
    for y, text in ((ys[0], "stay" if gaps else ""), *((gap, "move") for gap in gaps)):
        axes.annotate(text, (0, y - 0.85), **style)


def _write_values(axes: Axes, models: list[Scaling], places: dict[str, float], names: list[str]) -> None:
    """The values at w, c = 1."""
    axes.set_axis_off()
    axes.set_title("value at w")
    axes.set_xlim(0, len(models))
    for k, (values, name) in enumerate(zip(models, names, strict=True)):
        style: dict[str, Any] = {
            "color": fig.look(k)["color"],
            "ha": "center",
            "va": "center_baseline",
            "fontsize": 8.5,
        }
        axes.text(k + 0.5, -1.1, fig.plain(textwrap.shorten(name, 14, placeholder="...")), **style)
        for text, y in places.items():
            value = values.measures[text].found["layers"][0].value
            axes.text(k + 0.5, y, "none" if value is None else f"{value:.3g}", **style)


INFO = Scaling
