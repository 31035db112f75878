"""Measures as functions of their own parameters, one axis at a time: radius, draws, restarts, ball, steps, ...

The draws or restarts of a small setting are the first ones of a larger setting. The largest setting of an axis is read
first, and smaller ones take its units from the journal at no cost.
Stutz et al., ICCV 2021, whose supplement ablates its two measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, NonNegativeInt, model_validator

from robflat_bench.core import Params, Strict, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, MeasuredValue, Text

with lazy_imports():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.losses import axis_unit
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.registry.components import Component, resolve, write

Setting = int | float | str

BALLS = tuple(f"{shape}-{norm}" for norm in ("l2", "linf") for shape in ("layer", "filter", "element", "global"))
GRIDS: Mapping[str, Mapping[str, tuple[Setting, ...]]] = {
    "average-case": {
        "xi": (0.05, 0.1, 0.25, 0.5, 1.0),
        "draws": (2, 3, 5, 10, 20),
        "ball": BALLS,
        "steps": (1, 2, 5, 10, 20, 40),
        "restarts": (1, 2, 5),
    },
    "worst-case": {
        "xi": (0.003, 0.01, 0.03, 0.1),
        "restarts": (1, 2, 3, 5, 10),
        "ball": BALLS,
        "steps": (2, 5, 10, 20, 40),
        "weight_step": (0.0003, 0.001, 0.003, 0.01, 0.03),
    },
}
"""Usual settings, by measure and axis."""
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "average-case": ("draws",),
    "worst-case": ("restarts", "xi"),  # the ascents at xi = 0 are the reference of every xi
}
"""Parameters that select a measure's units of work and change none of them."""


class AblationParams(Params):
    measures: tuple[str, ...] = Field(
        default=("average-case(draws=5)", "worst-case(xi=0.03, restarts=3)"),
        min_length=1,
        description="Measures with the parameters that stay fixed while the axis varies.",
    )
    axis: str = Field(
        default="all",
        description="The parameter that varies (`ball`: with its norm, e.g. filter-l2); all: each with usual values.",
    )
    values: tuple[int | float | str, ...] = Field(
        default=(), description="Values of that one axis, instead of the usual ones."
    )
    examples: NonNegativeInt = Field(default=0, description="Number of test examples; 0: the protocol's.")

    @model_validator(mode="after")
    def _one_axis(self) -> AblationParams:
        if self.values and self.axis == "all":
            raise ValueError("values belong to one axis; add e.g. axis=xi")
        return self


class AblationLine(Strict):
    """One measure along one axis: its value at each setting, and the `usual` setting, which the other axes keep."""

    measure: Text
    axis: Text
    settings: tuple[Setting, ...]
    usual: Setting | None
    found: tuple[MeasuredValue, ...]


class Ablation(Experiment):
    """The lines of one model, one for each panel."""

    name = "ablation"
    summary = "Measures as functions of their own parameters: radius, draws, restarts, ball, steps."
    params = AblationParams

    lines: tuple[AblationLine, ...]

    @property
    def brief(self) -> dict[str, float | None]:
        """Each measure at its own parameters."""
        own = [(line, s, found) for line in self.lines for s, found in zip(line.settings, line.found, strict=True)]
        return {line.measure: found.value for line, setting, found in own if setting == line.usual}

    @classmethod
    def read(cls, model: TrainedModel, params: AblationParams, journal: StoredJournal) -> Self:
        """Measurements that share units of work share a section of the journal."""
        network, examples = model.load(), model.examples("test", params.examples)
        lines = []
        for text in params.measures:
            base = resolve(model.registry, "measure", text)
            own = base.params.model_dump()
            for axis, settings in axes_of(base, params).items():
                variants = [model.variant(base, **values(axis, setting)) for setting in settings]
                found = {}
                for variant in sorted(variants, key=_units, reverse=True):
                    place = journal.section(_section(variant))
                    found[variant.canonical], _ = model.measure(variant, network, examples, place)
                usual = f"{own['ball']}-{own['norm']}" if axis == "ball" and "norm" in own else own[axis]
                along = tuple(found[variant.canonical] for variant in variants)
                lines.append(AblationLine(measure=base.brief, axis=axis, settings=settings, usual=usual, found=along))
        return cls(n=len(examples), lines=tuple(lines))

    @staticmethod
    def draw(document: Document[Ablation]) -> Figure:
        """A panel for each axis, a row of panels for each measure."""
        grid: dict[str, list[list[AblationLine]]] = {}
        for lines in zip(*(values.lines for values in document.values), strict=True):
            grid.setdefault(lines[0].measure, []).append(list(lines))
        made, panels = fig.panels(max(map(len, grid.values())), len(grid), width=2.7, height=2.7)
        for (measure, along), row in zip(grid.items(), panels, strict=True):
            row[0].set_ylabel(fig.plain(f"{measure}\n{axis_unit(measure)}"))
            for axes, panel in zip(row, along, strict=False):
                _draw_lines(axes, panel)
            for axes in row[len(along) :]:
                axes.set_visible(False)
        legend = [*fig.entries(document.names, linestyle="-"), fig.entry("the setting of other panels", **USUAL)]
        notes = (
            "Thin bars: one standard error over images and, for means of draws, draws; thick bars: over draws alone. "
            "All settings of a panel meet the same images and random numbers."
        )
        return fig.finish(made, document, "Measures as functions of their own parameters", notes, legend)


USUAL: dict[str, Any] = {"linestyle": "--", "linewidth": 0.9}


def axes_of(measure: Component, params: AblationParams) -> dict[str, tuple[Setting, ...]]:
    """Axis -> settings; UsageError where there is none."""
    usual = dict(GRIDS.get(measure.name, {}))
    every = params.axis == "all"
    chosen = usual if every else {params.axis: params.values or usual.get(params.axis, ())}
    if not every and params.axis not in type(measure.params).model_fields:
        raise UsageError(f"{measure.name} has no parameter '{params.axis}'; see `robflat-bench info {measure.name}`")
    if not chosen or not all(chosen.values()):
        raise UsageError(
            f"no usual values of {'any parameter' if every else params.axis} for {measure.name}; "
            f"give some: \"ablation(measures=['{measure.name}'], axis=..., values=[...])\""
        )
    return chosen


def values(axis: str, setting: Setting) -> dict[str, Any]:
    """The parameters that a setting changes: a ball comes with its norm."""
    return dict(zip(("ball", "norm"), str(setting).split("-"), strict=False)) if axis == "ball" else {axis: setting}


def _units(measure: Component) -> float:
    """The number of units of work that the measure asks for."""
    own = measure.params.model_dump()
    return max((own[name] for name in ("draws", "restarts") if name in PREFIXES.get(measure.name, ())), default=0)


def _section(measure: Component) -> str:
    """Name of the journal's section, equal for measurements with the same units of work."""
    own = measure.params.model_dump()
    # The last restart of a warm ascent starts elsewhere, and the number of restarts decides which one is last.
    prefixes = () if own.get("warm") else PREFIXES.get(measure.name, ())
    return write(measure.name, {key: value for key, value in own.items() if key not in prefixes})


def _draw_lines(axes: Axes, lines: list[AblationLine]) -> None:
    """One axis, a line for each model; numbers are placed by their size, words side by side."""
    settings, usual = lines[0].settings, lines[0].usual
    numbers = not any(isinstance(setting, str) for setting in settings)
    for k, line in enumerate(lines):
        shift = 0.12 * (k - (len(lines) - 1) / 2)
        x = line.settings if numbers else [i + shift for i in range(len(line.settings))]
        fig.errorbars(axes, x, line.found, k, linestyle="-" if numbers else "", elinewidth=0.9)
        thick = [found.details.get("standard_error_draws", 0.0) for found in line.found]
        if any(thick):
            style: dict[str, Any] = {"color": fig.look(k)["color"], "linestyle": "", "elinewidth": 3, "alpha": 0.5}
            axes.errorbar(x, [found.drawn for found in line.found], thick, capsize=0, **style)
    axes.set_title(fig.plain(lines[0].axis))
    fig.log_where_wide(axes, [found.drawn for line in lines for found in line.found])
    if numbers:
        if 0 < 10 * min(map(float, settings)) <= max(map(float, settings)):  # such settings are chosen by ratios
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([float(s) for s in settings], [f"{s:g}" for s in settings])
        at = usual
    else:
        axes.set_xticks(range(len(settings)), [str(s) for s in settings], rotation=40, ha="right")
        at = settings.index(usual) if usual in settings else None
    if at is not None:
        axes.axvline(float(at), color=fig.GREY, **USUAL)


INFO = Ablation
