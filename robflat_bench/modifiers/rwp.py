r"""RWP:  descend dL/dw at w + nu,   nu <- \Pi( nu + \gamma ||w|| g / ||g|| )   from nu = 0,

    g = d/dw  mean_i 1[\ell_i < c] \ell_i   at w + nu

Yu et al.: Robust weight perturbation for adversarial training. IJCAI 2022.

\Pi projects onto the ball ||nu|| <= \gamma ||w||; norms are over all weight tensors together. Biases and
normalisation layers are not perturbed. Only examples that are already learned, \ell_i < c, push the weights away; the
mean still divides by the whole batch. If no loss is below c, nu stays. Each step is as long as the radius: the first
reaches the sphere, and later ones turn nu towards the new gradient. With gradients="raw", as in both released
versions, g is added as it is to the sum s of all so far, and nu = \gamma ||w|| s / ||s||. The adversarial images are
found at w; the gradient of the full loss at the last w + nu is applied to w. The ascent leaves BN statistics alone;
the forward pass at the last w + nu moves them. The perturbation of MLCAT_WP (Yu et al.: ICML 2022) is
rwp(threshold=1.5).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.modifiers.descent import descend_at, gradient_from
    from robflat_bench.numerics.weight_space import Ball, WeightSpace


class RWPParams(Params):
    gamma: Number = Field(default=0.01, gt=0, lt=1, description="Radius and step, relative to the norm of all weights.")
    steps: PositiveInt = Field(default=10, description="Steps of the ascent.")
    gradients: Literal["normalised", "raw"] = Field(
        default="normalised", description="Whether a step is as long as the radius, or as the gradient (released code)."
    )
    threshold: float = Field(default=1.7, gt=0, description="Examples with a loss below it push the weights away (c).")


INFO = ModifierInfo(
    name="rwp",
    summary="robust weight perturbation: descends the loss at weights that are worst for well-learned examples",
    factory=f"{__name__}:RWP",
    params=RWPParams,
    citation=cite("yu2022robust"),
    example={"steps": 2},
    joints=("backward",),
    losses="1 + steps",
    sharded=True,
)


class RWP(Modifier):
    """Descends at weights that are perturbed against well-learned examples."""

    params: RWPParams

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        space, gamma = WeightSpace(model, training=True, ball=Ball("global")), self.params.gamma
        nu = total = space.zero()
        for _ in range(self.params.steps):
            slope = gradient_from(space, nu, loss, keep=self._learned)
            if self.params.gradients == "raw":
                total = {name: so_far + slope[name] for name, so_far in total.items()}
                nu = space.step(space.zero(), total, gamma, gamma)
            else:
                nu = space.step(nu, slope, gamma, gamma)
        return descend_at(space, nu, loss, optimizer)

    def _learned(self, values: Tensor) -> Tensor:
        return (values < self.params.threshold).to(values)
