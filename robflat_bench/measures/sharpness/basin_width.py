r"""Basin width: how far one can go along a random direction before the loss has risen by `target`,

    mean over d and signs of  sup{ r <= largest : L(w +- r d) <= L(w) + target }

with d Gaussian, then scaled so that each filter (||d_f|| = ||w_f||) or each layer (||d_l|| = ||w_l||) has the norm of
its weights: r is relative. L is the oracle's mean loss. Higher is flatter.
Hochreiter & Schmidhuber, Neural Computation 1997; filters: Li et al., NeurIPS 2018, where biases do not move. Here each
number of a bias is a filter.

A radius is the middle of a bracket whose two ends were both read on all images: the rise is within the target at the
lower one and above it at the upper one, surely. A loss curve that is not monotone has several crossings; the search
finds one. A parabola through what was read along d and -d chooses the radii (`bisection`). Details: `residual`, the
widest bracket; `saturated`, the share of radii that reached `largest`.
Standard error: over directions (both signs of one are one draw), given these examples.
Invariances: to scaling filters (or whole layers, where d is scaled by layer) without changing the function, as batch
normalisation undoes it behind a convolution; not to scaling single weights. Scaling the last layer, and so the logits,
changes it; with logits="normalised" and the coupling clean it does not. Near a minimum it grows as the root of target.
Cost: two radii per direction, each about 3 to 6 forward passes, where a bisection needs log2(largest / r) +
log2(1 / tolerance); `largest` itself costs an eighth of a pass where the loss is high there. `reattack` adds an attack
for each, `frozen` one attack in all.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import OracleParams, Tolerance, WeightSpaceParams

with lazy_imports():
    import numpy as np
    from torch import Tensor, nn

    from robflat_bench.core.estimates import estimated
    from robflat_bench.measures.bisection import End, bracket, interpolated, power_law
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import by_filter, random_move
    from robflat_bench.measures.units import section
    from robflat_bench.numerics.weight_space import Direction, WeightSpace, norm

SLOPE, CURVE = 0.5, 0.15
"""Spread of the two coefficients over directions, in the units of `Parabola`."""
NOISE, FAR = 0.02, 0.2
"""Error of a point of the parabola at the target, and its growth with the distance from the target."""
FIRST = 8
"""At `largest`, an eighth of the images is read first, those with the highest loss at w."""


class BasinWidthParams(WeightSpaceParams, OracleParams):
    target: Number = Field(default=0.1, gt=0, description="Rise of the loss that is tolerated, in nats.")
    directions: int = Field(default=10, ge=2, description="Random directions; each is followed both ways.")
    normalisation: Literal["filter", "layer"] = Field(default="filter", description="Part scaled to its weights' norm.")
    largest: Number = Field(default=2.0, gt=0, description="Radius tried first, relative to the norms of the weights.")
    tolerance: Tolerance = 0.01


INFO = MeasureInfo(
    name="basin-width",
    summary="mean relative distance along random directions at which the loss has risen by the target",
    factory=f"{__name__}:BasinWidth",
    params=BasinWidthParams,
    citation=cite("hochreiter1997flat", "li2018visualizing"),
    title="basin width by {normalisation} ({coupling}), target={target:g}, {directions} directions",
    example={"directions": 2, "steps": 2, "tolerance": 0.25},
    couplings=("clean", "frozen", "reattack"),
    powers={"layers": 0, "filters": 0},
    estimate="directions",
)


class BasinWidth(Measure):
    """Arrays: `radii` [directions, 2] along d and -d, `reference` [N]."""

    params: BasinWidthParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, space = self.params, WeightSpace(model, exclude=self.params.exclude)
        oracle = Oracle.of(self, model, examples, workspace)
        reference = oracle.reference(model, examples, workspace)
        threshold = float(reference.mean()) + params.target
        highest = reference.argsort(descending=True, stable=True)[: -(-len(examples) // FIRST)]

        def excess(d: Direction, signed: float, place: Workspace) -> float:
            with space.moved({layer: signed * tensor for layer, tensor in d.items()}):
                if abs(signed) == params.largest:  # losses are at least 0: a few images may exceed the sum of all
                    first = oracle.part(highest).losses(model, examples[highest], section(place, "first"))
                    if float(first.sum()) > threshold * len(examples):
                        return math.inf
                return float(oracle.losses(model, examples, place).mean()) - threshold

        def edge(d: Direction, parabola: Parabola, sign: int, name: str) -> tuple[float, float]:
            def tried(radius: float) -> float:
                found = excess(d, sign * radius, section(workspace, f"{name}-{radius!r}"))
                parabola.passes(sign * radius, found)
                return found

            return bracket(tried, params.largest, params.tolerance, partial(parabola.root, sign))

        ends: list[list[tuple[float, float]]] = []
        for draw in range(params.directions):
            d = random_move(space, self._scaled, workspace.seed, INFO.name, draw)
            usual = math.exp(np.log(np.mean(ends, 2)).mean()) if ends else math.nan
            parabola = Parabola(params.target, usual)
            ends.append([edge(d, parabola, 1, f"plus-{draw}"), edge(d, parabola, -1, f"minus-{draw}")])
        found = np.array(ends)
        details = {
            "residual": float(np.ptp(found, axis=2).max()),
            "saturated": float((found[:, :, 0] == params.largest).mean()),
        }
        return estimated(INFO.estimate, {"radii": found.mean(2), "reference": reference.cpu().numpy()}, details)

    def _scaled(self, z: Tensor, w: Tensor) -> Tensor:
        """z with the norms of the weights."""
        if self.params.normalisation == "layer":
            return z * (norm(w) / norm(z))
        return z * (by_filter(w) / by_filter(z))


class Parabola:
    r"""The rise along one direction, in units of the target and of a usual radius: \gamma t + \kappa t^2.

    Both signs of t share it, so that one side predicts the other. \gamma and \kappa are a least-squares fit with the
    priors 0 +- `SLOPE` and 1 +- `CURVE`; a point counts less, the further its rise is from the target.

    Parameters
    ----------
    target : float
        The rise at the roots.
    usual : float
        A radius at which other directions reach the target; NaN if none is known.
    """

    def __init__(self, target: float, usual: float) -> None:
        self.target, self.usual = target, usual
        self.rises: dict[float, float] = {}

    def passes(self, signed: float, excess: float) -> None:
        """Add a point of the curve, where it is finite."""
        if math.isfinite(excess):
            self.rises[signed] = excess / self.target + 1

    def root(self, sign: int, low: End, high: End) -> float:
        """The predicted root on this side; NaN where nothing is known."""
        if not math.isnan(line := interpolated(low, high)):
            return line
        own = {abs(x): rise for x, rise in self.rises.items() if x * sign > 0 and rise > 0}
        known = [(abs(math.log(rise)), x, rise) for x, rise in self.rises.items() if rise > 0]
        if len(own) > 1 or not known:
            return power_law(own, 2) if own else self.usual
        _, x, rise = min(known)
        return self._fitted(sign, self.usual if math.isfinite(self.usual) else abs(x) / math.sqrt(rise))

    def _fitted(self, sign: int, unit_radius: float) -> float:
        """The root of the fit to all points of both signs."""
        t, rise = np.array(list(self.rises)) / unit_radius, np.array(list(self.rises.values()))
        weights = (NOISE + FAR * np.abs(rise - 1)) ** -2.0
        basis, precision = np.stack([t, t**2], 1), np.diag([SLOPE**-2, CURVE**-2])
        right = basis.T @ (weights * rise) + precision @ [0, 1]
        gamma, kappa = np.linalg.solve((basis.T * weights) @ basis + precision, right)
        inside = gamma**2 + 4 * kappa
        reach = sign * gamma + math.sqrt(inside) if inside >= 0 else math.nan
        return float(2 * unit_radius / reach) if reach > 0 else math.nan
