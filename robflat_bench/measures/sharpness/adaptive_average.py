r"""Average-case adaptive sharpness: the mean rise of the loss under random moves, each weight by its own size,

    E_\nu[ L(w + \nu) ] - L(w),   \nu ~ N(0, rho^2 diag(c^2))  (ball l2)  or  U(-rho c, rho c)  (ball linf)

with c = |w| (adaptive) or 1; L is the oracle's mean loss. Lower is flatter; nothing is clipped at 0. The standard error
is over draws and examples.
Andriushchenko et al., ICML 2023. Their code also moves normalisation layers, and reads the clean loss only.

Invariances: with `adaptive`, to every rescaling of single weights that keeps the function (a neuron's by a, the next
layer's by 1/a; a convolution before batch normalisation). Without it, none: near a minimum the value grows as rho^2, so
scaling all layers by c, at the same function, divides it by c^2. Scaling the last layer, and so the logits, changes it;
with `adaptive`, logits="normalised" and the coupling clean it does not.
Cost: draws + 1 forward passes, and `frozen` one attack in all. `reattack`: an attack at w, `full_draws` full attacks
and `draws` short ones (`random_moves`).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION, Adaptive, Draws, DrawsParams, FullDraws, passes_of_draws

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.core.randomness import normal_like, uniform_like
    from robflat_bench.measures.random_moves import losses_after, mean_rise, random_move
    from robflat_bench.numerics.weight_space import WeightSpace


class AdaptiveAverageParams(DrawsParams):
    ball: Literal["l2", "linf"] = Field(default="l2", description="Gaussian (l2) or uniform (linf) moves.")
    adaptive: Adaptive = True
    rho: Number = Field(
        default=0.1,
        ge=0,
        description="Size of the moves, relative to |w_i| with `adaptive`. The paper tries 0.05 to 0.8.",
    )
    draws: Draws = 20
    full_draws: FullDraws = 8


INFO = MeasureInfo(
    name="adaptive-average",
    summary="mean rise of the loss under random moves, each weight in proportion to its magnitude",
    factory=f"{__name__}:AdaptiveAverage",
    params=AdaptiveAverageParams,
    citation=cite("andriushchenko2023modern"),
    title="average sharpness ({coupling}), {ball}, rho={rho:g}, adaptive={adaptive}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=passes_of_draws(),
    powers=FUNCTION,
    estimate="draws and examples",
)


class AdaptiveAverage(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference); `shortfall`
    [full_draws, N], if short attacks are corrected (`random_moves`)."""

    params: AdaptiveAverageParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, space = self.params, WeightSpace(model, exclude=self.params.exclude)
        noise = normal_like if params.ball == "l2" else uniform_like
        move = partial(random_move, space, self._scaled, workspace.seed, INFO.name, noise=noise)
        return mean_rise(losses_after(self, space, examples, workspace, move))

    def _scaled(self, z: Tensor, w: Tensor) -> Tensor:
        return self.params.rho * z * (w.abs() if self.params.adaptive else 1)
