r"""RWP:  nu <- \Pi( nu + \gamma ||w|| g / ||g|| ),  g = d/dw  mean_i 1[\ell_i < c] \ell_i  at w + nu,  from nu = 0,

\Pi onto the ball ||nu|| <= \gamma ||w||, norms over all weight tensors together; biases and normalisation stay. Only
examples that are learned well are made harder, with c = \infty all of them; where none is below c, nu stays. The mean
divides by the whole batch. Then the gradient of the full loss at the last w + nu is applied to w. The adversarial
images are those found at w. The ascent leaves BN statistics alone, the forward at the last w + nu moves them.
Yu et al.: IJCAI 2022. The perturbation of MLCAT_WP (Yu et al.: ICML 2022) is rwp(threshold=1.5).
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.modifiers.descent import descend_at
    from robflat_bench.numerics.weight_space import Ball, WeightSpace


class RWPParams(Params):
    """gamma: radius relative to the norm of all weights, and the length of a step. threshold: examples with a loss
    below it push the weights away; MLCAT has 1.5."""

    gamma: Number = Field(default=0.01, gt=0, lt=1)
    steps: PositiveInt = 10
    threshold: float = Field(default=1.7, gt=0)


INFO = ModifierInfo(
    name="rwp",
    summary="robust weight perturbation: descends the loss at weights that are worst for well-learned examples",
    factory=f"{__name__}:RWP",
    params=RWPParams,
    citation="Yu et al.: Robust weight perturbation for adversarial training. IJCAI 2022",
    example={"steps": 2},
    joints=("backward",),
    losses="1 + steps",
)


class RWP(Modifier):
    """Each step is as long as the radius: the first reaches the sphere, later ones turn nu towards the new gradient."""

    params: RWPParams

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        gamma = self.params.gamma
        space = WeightSpace(model, biases=False, ball=Ball("global"))
        nu = space.zero()
        for _ in range(self.params.steps):
            with space.moved(nu):
                selected = loss(frozen=True, keep=self._learned)
                gradient = torch.autograd.grad(selected, list(space.layers.values()), materialize_grads=True)
            nu = space.step(nu, dict(zip(space.layers, gradient, strict=True)), gamma, gamma)
        return descend_at(space, nu, loss, optimizer)

    def _learned(self, values: Tensor) -> Tensor:
        return (values < self.params.threshold).to(values)
