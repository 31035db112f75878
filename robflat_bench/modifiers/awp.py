r"""AWP:  min_w max_{||nu_l|| <= \gamma ||w_l||} L(w + nu),  for every weight tensor l; biases and normalisation stay.

nu starts at 0 and takes steps nu <- \Pi( nu + s ||w_l|| g_l / ||g_l|| ), g = dL/dw at w + nu; by default one step
of s = \gamma. The adversarial images are those found at w, the descent direction is dL/dw at w + nu, applied to w.
The ascent normalises by the batch without moving BN statistics; the forward at w + nu moves them.
Wu, Xia, Wang: NeurIPS 2020.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.modifiers.descent import descend_at
    from robflat_bench.numerics.weight_space import WeightSpace


class AWPParams(Params):
    """gamma: radius relative to each layer's norm. steps of size `step` (relative, too), by default one step of
    the whole radius. warmup: the fraction of training without perturbation."""

    gamma: Number = Field(default=0.01, gt=0, lt=1)
    steps: PositiveInt = 1
    step: Number | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.0, ge=0, lt=1)


INFO = ModifierInfo(
    name="awp",
    summary="adversarial weight perturbation: descends the loss at the worst weights nearby",
    factory=f"{__name__}:AWP",
    params=AWPParams,
    citation="Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization. NeurIPS 2020",
    joints=("backward",),
    losses="1 + steps",
)


class AWP(Modifier):
    """The last nu is used, whatever its loss: one step does perturb."""

    params: AWPParams

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        space = WeightSpace(model, biases=False)
        nu = space.zero()
        if batch.moment.progress >= self.params.warmup:
            for _ in range(self.params.steps):
                with space.moved(nu):
                    gradient = torch.autograd.grad(
                        loss(frozen=True), list(space.layers.values()), materialize_grads=True
                    )
                size = self.params.step or self.params.gamma
                nu = space.step(nu, dict(zip(space.layers, gradient, strict=True)), size, self.params.gamma)
        return descend_at(space, nu, loss, optimizer)
