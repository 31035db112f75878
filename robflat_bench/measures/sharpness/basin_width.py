r"""Basin width: how far one can go along a random direction before the loss has risen by `target`,

    mean over d and signs of  sup{ r <= largest : L(w +- r d) <= L(w) + target }

with d Gaussian, then scaled so that each filter (||d_f|| = ||w_f||) or each layer (||d_l|| = ||w_l||) has the norm of
its weights: r is relative. L is the oracle's mean loss. Higher is flatter.
Hochreiter & Schmidhuber, Neural Computation 1997; filters: Li et al., NeurIPS 2018, where biases do not move. Here each
number of a bias is a filter.

A radius is the middle of the last bracket of a bisection. A loss curve that is not monotone has several crossings; the
bisection finds one. Details: `residual`, the widest bracket; `saturated`, the share of radii that reached `largest`.
Standard error: over directions (both signs of one are one draw), given these examples.
Invariances: to scaling filters (or whole layers, where d is scaled by layer) without changing the function, as batch
normalisation undoes it behind a convolution; not to scaling single weights. Scaling the last layer, and so the logits,
changes it; with logits="normalised" and the coupling clean it does not. Near a minimum it grows as the root of target.
Cost: two radii per direction, each about log2(largest / r) + log2(1 / tolerance) forward passes; `reattack` adds an
attack for each, `frozen` one attack in all.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import OracleParams, Tolerance, WeightSpaceParams

with lazy_imports():
    import numpy as np
    from torch import Tensor, nn

    from robflat_bench.core.estimates import estimated
    from robflat_bench.measures.bisection import bracket
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import by_filter, random_moves
    from robflat_bench.measures.units import section
    from robflat_bench.numerics.weight_space import Direction, WeightSpace, norm


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
    citation=(
        "Hochreiter, Schmidhuber: Flat minima. Neural Computation 1997, doi 10.1162/neco.1997.9.1.1; Li et al.: "
        "Visualizing the loss landscape of neural nets. NeurIPS 2018, arXiv 1712.09913"
    ),
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
        oracle = Oracle.of(self, model, examples, section(workspace, "images"))
        reference = oracle.losses(model, examples, section(workspace, "reference"))
        loss = float(reference.mean())

        def edge(d: Direction, sign: int, name: str) -> tuple[float, float]:
            def within(radius: float) -> bool:
                with space.moved({layer: sign * radius * tensor for layer, tensor in d.items()}):
                    losses = oracle.losses(model, examples, section(workspace, f"{name}-{radius!r}"))
                return float(losses.mean()) <= loss + params.target

            return bracket(within, params.largest, params.tolerance)

        directions = enumerate(random_moves(space, self._scaled, params.directions, workspace.seed, INFO.name))
        ends = np.array([[edge(d, 1, f"plus-{draw}"), edge(d, -1, f"minus-{draw}")] for draw, d in directions])
        details = {
            "residual": float(np.ptp(ends, axis=2).max()),
            "saturated": float((ends[:, :, 0] == params.largest).mean()),
        }
        return estimated(INFO.estimate, {"radii": ends.mean(2), "reference": reference.cpu().numpy()}, details)

    def _scaled(self, z: Tensor, w: Tensor) -> Tensor:
        """z with the norms of the weights."""
        if self.params.normalisation == "layer":
            return z * (norm(w) / norm(z))
        return z * (by_filter(w) / by_filter(z))
