"""Measures as functions of their own parameters, one axis at a time: radius, draws, restarts, ball, steps, ...

A shorter run of draws or restarts is the beginning of a longer one, and the journal hands it what the longer one did:
so the largest value is read first, and the rest of that axis costs nothing.
Stutz et al., ICCV 2021, whose supplement ablates its two measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from robflat_bench.config.protocol import Strict
from robflat_bench.core import UsageError
from robflat_bench.experiments import AblationParams
from robflat_bench.experiments.document import Document, Text, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.measured import Found, changed, measured
from robflat_bench.experiments.readings import unit
from robflat_bench.experiments.subject import Subject
from robflat_bench.registry.components import Component, resolve, write
from robflat_bench.results.store import StoredJournal

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
"""Usual values, by measure and axis."""
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "average-case": ("draws",),
    "worst-case": ("restarts", "xi"),  # the ascents at xi = 0 are the reference of every xi
}
"""Parameters that say which units of work a measure asks for, and change none of them."""


class Line(Strict):
    """One measure along one axis: the settings, what was found there, and the setting all other axes keep."""

    measure: Text
    axis: Text
    settings: tuple[Setting, ...]
    usual: Setting | None
    found: tuple[Found, ...]


class Row(Base):
    """A line for each panel."""

    lines: tuple[Line, ...]

    @property
    def brief(self) -> dict[str, float | None]:
        """Of each measure, what it is where no axis moves."""
        own = [(line, s, found) for line in self.lines for s, found in zip(line.settings, line.found, strict=True)]
        return {line.measure: found.value for line, setting, found in own if setting == line.usual}


def read(subject: Subject, params: AblationParams, journal: StoredJournal) -> Row:
    """Measurements that share units of work share a section of the journal."""
    model, examples = subject.load(), subject.examples("test", params.examples)
    lines = []
    for text in params.measures:
        base = resolve(subject.registry, "measure", text)
        for axis, settings in axes_of(base, params).items():
            variants = [changed(subject.registry, base, **values(axis, setting)) for setting in settings]
            found = {}
            for variant in sorted(variants, key=amount, reverse=True):
                place = journal.section(shared(variant))
                found[variant.canonical], _ = measured(subject, variant, model, examples, place)
            lines.append(
                Line(
                    measure=base.brief,
                    axis=axis,
                    settings=settings,
                    usual=usual(base, axis),
                    found=tuple(found[variant.canonical] for variant in variants),
                )
            )
    return Row(n=len(examples), lines=tuple(lines))


def axes_of(measure: Component, params: AblationParams) -> dict[str, tuple[Setting, ...]]:
    """Axis -> settings; UsageError where there is nothing to move."""
    usual = dict(GRIDS.get(measure.name, {}))
    if params.axis == "all":
        chosen = usual
    else:
        chosen = {params.axis: params.values or usual.get(params.axis, ())}
        if params.axis not in type(measure.params).model_fields:
            raise UsageError(
                f"{measure.name} has no parameter '{params.axis}'; see `robflat-bench info {measure.name}`"
            )
    if not chosen or not all(chosen.values()):
        raise UsageError(
            f"no usual values of {'any parameter' if params.axis == 'all' else params.axis} for {measure.name}; "
            f"give some: \"ablation(measures=['{measure.name}'], axis=..., values=[...])\""
        )
    return chosen


def values(axis: str, setting: Setting) -> dict[str, Any]:
    """The parameters that a setting sets: a ball comes with its norm."""
    return dict(zip((axis, "norm"), setting.split("-"), strict=False)) if axis == "ball" else {axis: setting}  # type: ignore[union-attr]


def usual(measure: Component, axis: str) -> Setting | None:
    """The measure's own setting."""
    own = measure.params.model_dump()
    return f"{own['ball']}-{own['norm']}" if axis == "ball" and "norm" in own else own[axis]


def amount(measure: Component) -> float:
    """How many units of work it asks for."""
    own = measure.params.model_dump()
    return max((own[name] for name in ("draws", "restarts") if name in PREFIXES.get(measure.name, ())), default=0)


def shared(measure: Component) -> str:
    """Of measurements whose units of work are the same."""
    own = measure.params.model_dump()
    # The last restart of a warm ascent starts elsewhere, and how many come before it decides which it is.
    prefixes = () if own.get("warm") else PREFIXES.get(measure.name, ())
    return write(measure.name, {key: value for key, value in own.items() if key not in prefixes})


def draw(document: Document[Row]) -> Figure:
    """A panel for each axis, a row of panels for each measure."""
    lines = document.readings[0].values.lines
    measures = list(dict.fromkeys(line.measure for line in lines))
    columns = max(sum(line.measure == measure for line in lines) for measure in measures)
    made, panels = figure(columns, len(measures), width=2.7, height=2.7)
    seen: dict[str, int] = dict.fromkeys(measures, 0)
    called = names([reading.model for reading in document.readings])
    for number, line in enumerate(lines):
        axes = panels[measures.index(line.measure)][seen[line.measure]]
        if not seen[line.measure]:
            axes.set_ylabel(plain(f"{line.measure}\n{unit(line.measure)}"))
        seen[line.measure] += 1
        panel(axes, [reading.values.lines[number] for reading in document.readings])
    for measure, row in zip(measures, panels, strict=True):
        for axes in row[seen[measure] :]:
            axes.set_visible(False)
    legend = [
        Line2D([], [], color=look(k).color, marker=look(k).marker, label=plain(name)) for k, name in enumerate(called)
    ]
    legend.append(Line2D([], [], color="#555555", linestyle="--", linewidth=0.9, label="the setting of other panels"))
    notes = (
        "Thin bars: one standard error over images and, for means of draws, draws; thick bars: over draws alone. "
        "All settings of a panel meet the same images and random numbers."
    )
    return finish(made, document, "Measures as functions of their own parameters", notes, legend)


def panel(axes: Axes, lines: list[Line]) -> None:
    """One axis for all models; numbers are placed by their size, words side by side."""
    first = lines[0]
    numbers = not any(isinstance(setting, str) for setting in first.settings)
    for k, line in enumerate(lines):
        color, marker, _ = look(k)
        x = line.settings if numbers else [i + 0.12 * (k - (len(lines) - 1) / 2) for i in range(len(line.settings))]
        y, errors = [f.drawn for f in line.found], [f.standard_error or 0.0 for f in line.found]
        thick = [f.details.get("standard_error_draws", 0.0) for f in line.found]
        axes.errorbar(x, y, errors, color=color, marker=marker, linestyle="-" if numbers else "", elinewidth=0.9)
        if any(thick):
            axes.errorbar(x, y, thick, color=color, linestyle="", elinewidth=3, capsize=0, alpha=0.5)
    axes.set_title(plain(first.axis))
    log_where_wide(axes, [found.drawn for line in lines for found in line.found])
    if numbers:
        if 0 < 10 * min(map(float, first.settings)) <= max(map(float, first.settings)):  # usually chosen by ratios
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks([float(s) for s in first.settings], [f"{s:g}" for s in first.settings])
        at = first.usual
    else:
        axes.set_xticks(range(len(first.settings)), [str(s) for s in first.settings], rotation=40, ha="right")
        at = first.settings.index(first.usual) if first.usual in first.settings else None
    if at is not None:
        axes.axvline(float(at), color="#555555", linestyle="--", linewidth=0.9)
