r"""Basin width: how far one can go along a random direction before the loss has risen by `target`.

    mean over d and signs of  sup{ r <= largest : L(w +- r d) <= L(w) + target }

with d Gaussian and then scaled so that each filter (||d_f|| = ||w_f||) or each layer (||d_l|| = ||w_l||) has the norm
of its weights: r is relative. L is the oracle's mean loss. Higher is flatter.
Hochreiter & Schmidhuber, Neural Computation 1997; filters: Li et al., NeurIPS 2018, who leave biases at rest; here
each number of a bias is a filter.

The radius is the middle of the last bracket of a bisection (loss curves need not be monotone: it is one crossing).
Details: `residual`, the widest of these brackets; `saturated`, the share of radii that reached `largest`.
standard_error: over directions (both signs of one are one draw), for these examples.
Invariances: to scaling filters (or, by layer, whole layers) without changing the function, as batch normalisation
behind a convolution undoes it, not to scaling single weights. Scaling the last layer, and so the logits, changes it;
with logits="normalised" and the coupling clean it does not.
Near a minimum the value grows as the square root of target.
Cost: two radii per direction, each about log2(largest / r) + log2(1 / tolerance) forward passes; under reattack an
attack with each, under frozen one for all.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import OracleParams

with lazy_imports():
    import numpy as np
    from torch import Tensor, nn

    from robflat_bench.measures.bisection import bracket
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import by_filter, noise, section
    from robflat_bench.numerics.weight_space import Direction, WeightSpace, norm


class BasinWidthParams(OracleParams):
    """target: rise of the loss that is borne. normalisation: what of a direction has the norm of its weights.

    largest: radius tried first, relative to these norms. tolerance: of each radius, relative.
    """

    target: Number = Field(default=0.1, gt=0)
    directions: int = Field(default=10, ge=2)
    normalisation: Literal["filter", "layer"] = "filter"
    largest: Number = Field(default=2.0, gt=0)
    tolerance: Number = Field(default=0.01, ge=1e-9, lt=1)


INFO = MeasureInfo(
    name="basin-width",
    summary="mean relative distance along random directions at which the loss has risen by the target",
    factory=f"{__name__}:BasinWidth",
    params=BasinWidthParams,
    citation=(
        "Hochreiter, Schmidhuber: Flat minima. Neural Computation 1997; Li et al.: Visualizing the loss "
        "landscape of neural nets. NeurIPS 2018"
    ),
    title="basin width by {normalisation} ({coupling}), target={target:g}, {directions} directions",
    example={"directions": 2, "steps": 2, "tolerance": 0.25},
    couplings=("clean", "frozen", "reattack"),
    powers={"layers": 0, "filters": 0},
)


class BasinWidth(Measure):
    """Arrays: `radii` [directions, 2] along d and -d, `reference` [N]."""

    params: BasinWidthParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, space, oracle = self.params, WeightSpace(model), Oracle(self.threat, self.params)
        oracle.freeze(model, examples, section(workspace, "images"))
        reference = oracle.losses(model, examples, section(workspace, "reference"))
        highest = float(reference.mean()) + params.target

        def brackets(direction: Direction, name: str) -> tuple[float, float]:
            def within(radius: float) -> bool:
                with space.moved({layer: radius * tensor for layer, tensor in direction.items()}):
                    losses = oracle.losses(model, examples, section(workspace, f"{name}-{radius!r}"))
                return float(losses.mean()) <= highest

            return bracket(within, params.largest, params.tolerance)

        found = []
        for draw in range(params.directions):
            direction = self._direction(space, workspace.seed, draw)
            opposite = {name: -tensor for name, tensor in direction.items()}
            found.append([brackets(direction, f"plus-{draw}"), brackets(opposite, f"minus-{draw}")])
        ends = np.array(found)
        radii = ends.mean(2)
        return Measurement(
            value=float(radii.mean()),
            standard_error=float(radii.mean(1).std(ddof=1)) / math.sqrt(len(radii)),
            n=len(examples),
            details={
                "residual": float(np.ptp(ends, axis=2).max()),
                "saturated": float((ends[:, :, 0] == params.largest).mean()),
                "loss": float(reference.mean()),
            },
            arrays={"radii": radii, "reference": reference.cpu().numpy()},
        )

    def _direction(self, space: WeightSpace, seed: int, draw: int) -> Direction:
        z = noise(space, seed, "basin-width", draw)
        return {name: self._as_long_as(layer, z[name]) for name, layer in space.layers.items()}

    def _as_long_as(self, layer: Tensor, z: Tensor) -> Tensor:
        """z with the norms of the layer's weights."""
        if self.params.normalisation == "layer":
            return z * (norm(layer) / norm(z))
        return z * (by_filter(layer) / by_filter(z))
