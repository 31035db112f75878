r"""Average-case (adaptive) sharpness: the mean rise of the loss under random moves, each weight by its own size,

    E_\nu[ L(w + \nu) ] - L(w),   \nu ~ N(0, rho^2 diag(c^2))  (ball l2)  or  U(-rho c, rho c)  (ball linf)

with c = |w| (adaptive) or 1; L is the oracle's mean loss. Lower is flatter; nothing is clipped at 0.
Andriushchenko et al., ICML 2023, who also move normalisation layers; here these stay.

Invariances: adaptive, to every rescaling of single weights that keeps the function (a neuron's by a, the next
layer's by 1/a; a convolution before batch normalisation). Otherwise to none: near a minimum the value grows as rho^2,
so scaling all layers by c without changing the function divides it by c^2. Scaling the last layer, and so the
logits, changes it; adaptive, with logits="normalised" and the coupling clean, it does not.
Cost: draws + 1 forward passes, an attack more for each under reattack, one for all under frozen.
The released code reads the clean loss only; here any coupling, and a standard error over draws and examples.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION, OracleParams, read

with lazy_imports():
    from torch import nn

    from robflat_bench.core.randomness import normal_like, uniform_like
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import losses_after, mean_rise, noise
    from robflat_bench.numerics.weight_space import Direction, WeightSpace


class AdaptiveAverageParams(OracleParams):
    """ball: Gaussian (l2) or uniform (linf) moves of size rho. adaptive: times each weight's magnitude."""

    ball: Literal["l2", "linf"] = "l2"
    adaptive: bool = True
    rho: Number = Field(default=0.1, ge=0)
    draws: int = Field(default=20, ge=2)


INFO = MeasureInfo(
    name="adaptive-average",
    summary="mean rise of the loss under random moves, each weight in proportion to its magnitude",
    factory=f"{__name__}:AdaptiveAverage",
    params=AdaptiveAverageParams,
    citation=(
        "Andriushchenko et al.: A modern look at the relationship between sharpness and generalization. ICML 2023"
    ),
    title="average sharpness ({coupling}), {ball}, rho={rho:g}, adaptive={adaptive}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=read("draws + 1"),
    powers=FUNCTION,
)


class AdaptiveAverage(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: AdaptiveAverageParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        space, oracle = WeightSpace(model), Oracle(self.threat, self.params)
        moves = (self._move(space, workspace.seed, draw) for draw in range(self.params.draws))
        return mean_rise(*losses_after(oracle, space, model, examples, workspace, moves))

    def _move(self, space: WeightSpace, seed: int, draw: int) -> Direction:
        z = noise(
            space, seed, "adaptive-average", draw, draw={"l2": normal_like, "linf": uniform_like}[self.params.ball]
        )
        return {
            name: self.params.rho * z[name] * (layer.detach().abs() if self.params.adaptive else 1)
            for name, layer in space.layers.items()
        }
