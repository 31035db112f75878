r"""The loss along directions in weight space,  s -> mean_i \ell_i(w + s D),  the adversary following as coupled.

Random directions give a mean curve over s in [-1,1], one ascended direction a curve over s in [0,1] (see `directions`).
Bands are one standard error of the rise over s = 0: over directions and examples, crossed, or over examples alone.
Stutz et al., ICCV 2021; Li et al., NeurIPS 2018. Unlike the released code (Q10): l2 norms, all of the protocol's
examples, and an adversarial curve is one direction, not a mean that is called worst.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robflat_bench.config.protocol import Strict
from robflat_bench.experiments import LandscapeParams, choose
from robflat_bench.experiments.directions import COUPLINGS, Landscape, offsets
from robflat_bench.experiments.document import Document, names
from robflat_bench.experiments.document import Row as Base
from robflat_bench.experiments.figures import figure, finish, log_where_wide, look, plain
from robflat_bench.experiments.subject import Subject
from robflat_bench.measures.per_example import error_of_mean
from robflat_bench.measures.random_moves import crossed_errors
from robflat_bench.numerics.weight_space import Direction
from robflat_bench.results.store import StoredJournal


class Curve(Strict):
    """Mean loss (nats) at s, the standard error of its rise over s = 0, and the mean loss of each direction."""

    s: tuple[float, ...]
    loss: tuple[float, ...]
    standard_error: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]


class Row(Base):
    """Curves of one model."""

    random: Curve
    adversarial: Curve

    @property
    def brief(self) -> dict[str, float | None]:
        middle = len(self.random.s) // 2
        half = middle + (middle + 1) // 2
        return {
            "loss at w (nats)": self.random.loss[middle],
            f"random, s = {self.random.s[half]:.2g}": self.random.loss[half],
            "random, s = 1": self.random.loss[-1],
            "adversarial, s = 1": self.adversarial.loss[-1],
        }


def read(subject: Subject, params: LandscapeParams, journal: StoredJournal) -> Row:
    """Every point of every direction is a unit of the journal."""
    landscape = Landscape(subject, params, journal)
    there = offsets(params.points)
    random = [
        _losses(landscape, lambda k=k: landscape.random(k), there, journal.section(f"random {k}"))  # type: ignore[misc]
        for k in range(params.directions)
    ]
    ahead = there[len(there) // 2 :]
    uphill = _losses(landscape, lambda: landscape.adversarial(journal), ahead, journal.section("adversarial"))
    return Row(
        n=len(landscape.examples), random=_curve(there, np.stack(random)), adversarial=_curve(ahead, uphill[None])
    )


def _losses(
    landscape: Landscape, direction: Callable[[], Direction], there: tuple[float, ...], journal: StoredJournal
) -> np.ndarray:
    """Losses [points, N] along one direction."""
    found = direction()

    def unit(s: float) -> dict[str, np.ndarray]:
        return {"loss": landscape.losses((s, found))}

    return np.stack([journal.unit(f"{k}", lambda s=s: unit(s))["loss"] for k, s in enumerate(there)])  # type: ignore[misc]


def _curve(s: tuple[float, ...], losses: np.ndarray) -> Curve:
    """Of losses [directions, points, N]."""
    rise = losses - losses[:, [s.index(0.0)]]
    if len(losses) > 1:
        errors = [crossed_errors(rise[:, k])["standard_error"] for k in range(len(s))]
    else:
        errors = [error_of_mean(rise[0, k]) or 0.0 for k in range(len(s))]
    means = losses.mean(2)
    return Curve(
        s=s,
        loss=tuple(means.mean(0).tolist()),
        standard_error=tuple(errors),
        directions=tuple(map(tuple, means.tolist())),
    )


def draw(document: Document[Row]) -> Figure:
    """A panel for each kind of direction, a colour for each model."""
    params = choose(document.experiment).params
    assert isinstance(params, LandscapeParams)
    made, panels = figure(2, width=4.6, height=3.4)
    legend = []
    called = names([reading.model for reading in document.readings])
    for k, (name, reading) in enumerate(zip(called, document.readings, strict=True)):
        color, _, dashes = look(k)
        for axes, curve in zip(panels[0], (reading.values.random, reading.values.adversarial), strict=True):
            loss, error = np.array(curve.loss), np.array(curve.standard_error)
            axes.plot(curve.s, loss, color=color, linestyle=dashes)
            low = np.maximum(loss - error, loss / 10)  # a log scale has no room for less than 0
            axes.fill_between(curve.s, low, loss + error, color=color, alpha=0.2, linewidth=0)
        legend.append(Line2D([], [], color=color, linestyle=dashes, label=plain(name)))

    per = {"layer": r"$\|D_l\| = %g\,\|w_l\|$ per layer", "filter": r"$\|D_f\| = %g\,\|w_f\|$ per filter"}
    random, adversarial = panels[0]
    random.set_title(f"mean of {params.directions} random directions")
    adversarial.set_title("one adversarial direction")
    random.set_xlabel(f"s   (w + s D, {per[params.normalisation] % params.random})")
    adversarial.set_xlabel(f"s   (w + s D, {per['layer'] % params.adversarial})")
    random.set_ylabel(f"{COUPLINGS[params.coupling].axis} (nats)")
    curves = [[r.values.random, r.values.adversarial] for r in document.readings]
    for axes, column in zip(panels[0], zip(*curves, strict=True), strict=True):
        log_where_wide(axes, [value for curve in column for value in curve.loss])
    bands = "Bands: one standard error of the rise over s = 0, over directions (if several) and images."
    notes = f"{COUPLINGS[params.coupling].caption(params)} {bands}"
    return finish(made, document, "Loss landscape in weight space", notes, legend)
