r"""Robust generalization against flatness, a point for each network:  does a flatter network generalize better?

    y = gap in robust loss, test - train  (or robust loss, or robust error on test images),   x = flatness measure

The line is y = a + b x by least squares over the networks, from three on. The band is its 95 % confidence interval

    a + b x +- t_{n-2} s sqrt( 1/n + (x - m)^2 / \sum_i (x_i - m)^2 ),   m = mean x_i

    s^2 = \sum_i (y_i - a - b x_i)^2 / (n - 2)

which takes the networks as independent: several seeds of one method make it too narrow. On a logarithmic axis the line
is straight in the logarithm. Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field

from robflat_bench.core import UsageError, lazy_imports
from robflat_bench.experiments.document import Document, ValueWithError
from robflat_bench.experiments.losses import MeasuresParams, RobustLosses, axis_unit, counts, measures_of
from robflat_bench.experiments.splits import gap_between

with lazy_imports():
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from scipy.special import stdtrit

    from robflat_bench.experiments import figures as fig
    from robflat_bench.experiments.labels import name_points
    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.records.journal import StoredJournal

Outcome = Literal["gap", "loss", "error"]
OUTCOMES: dict[Outcome, str] = {
    "gap": "gap in robust loss, test - train (nats)",
    "loss": "robust loss, test (nats)",
    "error": "robust error, test",
}
"""Value on the vertical axis -> its label."""
FEWEST = 3
"""Fewest networks of a line."""
GRID = 101


class ScatterParams(MeasuresParams):
    outcome: Outcome = Field(
        default="gap", description="Vertical axis: gap in robust loss, robust loss, or robust error."
    )


class FlatnessVsRobustness(RobustLosses):
    """The values of one network; robust_error is under the attack of the robust loss, by split."""

    name = "flatness-vs-robustness"
    summary = "Gap in robust loss (or robust loss, or robust error) against flatness, a point for each network."
    params = ScatterParams

    robust_error: dict[str, ValueWithError]

    @property
    def outcomes(self) -> dict[Outcome, ValueWithError | None]:
        """The values that the vertical axis can show; the gap is None without attacked training images."""
        test, train = self.robust_loss["test"], self.robust_loss.get("train")
        return {"gap": train and gap_between(test, train), "loss": test, "error": self.robust_error["test"]}

    @property
    def brief(self) -> dict[str, float | None]:
        shown = {OUTCOMES[name]: found.value for name, found in self.outcomes.items() if found}
        return shown | {self.titles.get(name, name): value.value for name, value in self.measures.items()}

    @classmethod
    def read(cls, model: TrainedModel, params: Any, journal: StoredJournal) -> Self:
        """As `RobustLosses`; UsageError for a gap where the protocol attacks no training images."""
        if params.outcome == "gap" and not model.fixed.attacks[0].train:
            raise UsageError(
                f"{model.found.protocol.name} attacks no training examples, so there is no gap; "
                "type 'flatness-vs-robustness(outcome=loss)'"
            )
        return super().read(model, params, journal)

    @staticmethod
    def draw(document: Document[Any]) -> Figure:
        """A panel for each measure, a point for each network; colour, marker and name say the method or file."""
        outcome: Outcome = document.params.outcome
        none = ValueWithError(value=None, standard_error=None, n=0)
        heights = [values.outcomes[outcome] or none for values in document.values]
        measures = measures_of(document)
        made, (panels,) = fig.panels(len(measures), width=4.6, height=4.0, sharey=True)
        groups = _groups(document)
        for axes, (measure, title) in zip(panels, measures.items(), strict=True):
            flatness = [values.measures[measure] for values in document.values]
            for k, members in enumerate(groups.values()):
                style = {"color": fig.look(k)["color"], "marker": fig.look(k)["marker"], "elinewidth": 0.8}
                for x, y in ((flatness[member], heights[member]) for member in members):
                    axes.errorbar(x.drawn, y.drawn, xerr=x.standard_error, yerr=y.standard_error, **style)
            axes.set_title(fig.plain(title))
            axes.set_xlabel(fig.plain(f"{axis_unit(measure)}; lower is flatter"))
            fig.log_where_wide(axes, [x.drawn for x in flatness], axis="x")
            fig.log_where_wide(axes, [y.drawn for y in heights])
        panels[0].set_ylabel(f"{OUTCOMES[outcome]}; lower is better")
        notes = (
            "One point for each network; a name stands at the middle one of its method. Bars: one standard error over "
            f"images. {counts(document)} Line: least squares over the networks, from {FEWEST} on; band: its 95 % "
            "confidence interval, networks taken as independent."
        )
        fig.finish(made, document, "Flatness against robust generalization", notes)
        points = {
            measure: [(values.measures[measure], y) for values, y in zip(document.values, heights, strict=True)]
            for measure in measures
        }
        lines = [_draw_line(axes, points[measure]) for axes, measure in zip(panels, measures, strict=True)]
        made.draw_without_rendering()
        for axes, measure, line in zip(panels, measures, lines, strict=True):
            _name(axes, points[measure], groups, avoid=line)
        return made


def _groups(document: Document[Any]) -> dict[str, list[int]]:
    """Label -> its networks, by their place in the document: seeds and checkpoints of one method."""
    groups: dict[str, list[int]] = {}
    for k, reading in enumerate(document.readings):
        groups.setdefault(reading.model.label, []).append(k)
    return groups


class Line(NamedTuple):
    """A least-squares line through n points: y = intercept + slope x.

    Attributes
    ----------
    centre, spread : mean of x, and sum of its squared distances from there.
    noise : standard deviation of the residuals, with n - 2 degrees of freedom.
    """

    intercept: float
    slope: float
    centre: float
    spread: float
    noise: float
    n: int

    def at(self, x: np.ndarray) -> np.ndarray:
        """The line's height."""
        return self.intercept + self.slope * x

    def half_width(self, x: np.ndarray) -> np.ndarray:
        """Distance of the 95 % band's edges from the line."""
        error = self.noise * np.sqrt(1 / self.n + (x - self.centre) ** 2 / self.spread)
        return np.asarray(stdtrit(self.n - 2, 0.975) * error)


def fitted(x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float]) -> Line | None:
    """The line through finite points; None for fewer than three, or where all x are equal."""
    across, up = np.asarray(x, float), np.asarray(y, float)
    if len(across) < FEWEST or np.ptp(across) == 0:
        return None
    moved = across - across.mean()
    spread = float(moved @ moved)
    slope = float(moved @ up) / spread
    intercept = float(up.mean() - slope * across.mean())
    residuals = up - intercept - slope * across
    noise = float(np.sqrt(residuals @ residuals / (len(up) - 2)))
    return Line(intercept, slope, float(across.mean()), spread, noise, len(up))


Point = tuple[ValueWithError, ValueWithError]
"""Flatness, and the value on the vertical axis."""


def _draw_line(axes: Axes, points: Sequence[Point]) -> list[tuple[float, float]]:
    """Draw the line, straight on these axes, and its band; points along the line."""
    scales = [axis.get_transform() for axis in (axes.xaxis, axes.yaxis)]
    finite = np.array([place for x, y in points if np.isfinite(place := (x.drawn, y.drawn)).all()]).reshape(-1, 2)
    x, y = (scale.transform(finite[:, k]) for k, scale in enumerate(scales))
    if (line := fitted(x, y)) is None:
        return []
    grid = np.linspace(x.min(), x.max(), GRID)
    middle, half = line.at(grid), line.half_width(grid)
    across = scales[0].inverted().transform(grid)
    low, up, high = (scales[1].inverted().transform(middle + side * half) for side in (-1, 0, 1))
    axes.plot(across, up, color=fig.GREY, linewidth=1.2)
    edge = [*zip(across, low, strict=True), *zip(across[::-1], high[::-1], strict=True)]
    band = PolyCollection([edge], facecolor=fig.GREY, alpha=0.15, linewidth=0)
    axes.add_collection(band, autolim=False)  # a wide band would leave no room for the points
    return list(zip(across.tolist(), up.tolist(), strict=True))


def _name(
    axes: Axes, points: Sequence[Point], groups: dict[str, list[int]], avoid: Sequence[tuple[float, float]]
) -> None:
    """Write each label once, at the network of that label that is nearest to the middle of them."""
    places = np.array([(x.drawn, y.drawn) for x, y in points])
    bars = [end for (x, y), place in zip(points, places, strict=True) for end in _ends(place, x, y)]
    named = {}
    for k, (label, members) in enumerate(groups.items()):
        here = places[[member for member in members if np.isfinite(places[member]).all()]]
        if len(here):
            drawn = axes.transData.transform(here)
            middle = np.linalg.norm(drawn - drawn.mean(0), axis=1).argmin()
            named[label] = tuple(here[middle]), fig.look(k)["color"]
    shown, colours = [point for point, _ in named.values()], [colour for _, colour in named.values()]
    name_points(axes, shown, list(named), colours, [*bars, *avoid])


def _ends(place: np.ndarray, x: ValueWithError, y: ValueWithError) -> list[tuple[float, float]]:
    """Points along a network's error bars."""
    if not np.isfinite(place).all():
        return []
    errors = np.array([x.standard_error or 0.0, y.standard_error or 0.0])
    steps = np.linspace(-1, 1, 9)[:, None] * errors
    return [tuple(place + step * way) for step in steps for way in ((1, 0), (0, 1))]


INFO = FlatnessVsRobustness
