r"""AWP:  min_w max_{||nu_l|| <= \gamma ||w_l||} L(w + nu)   for every weight tensor l,

    nu <- \Pi( nu + s ||w_l|| g_l / ||g_l|| ),   g = dL/dw at w + nu,   from nu = 0

Wu, Xia, Wang: Adversarial weight perturbation helps robust generalization. NeurIPS 2020.

By default there is one step, of size s = \gamma. Biases and normalisation layers are not perturbed. The adversarial
images are found at w; the gradient at w + nu is applied to w. The ascent normalises by the batch without moving BN
statistics; the forward pass at the last w + nu moves them. The last nu is used, whatever its loss. Weight decay is
taken at w; the released code takes it at w + nu, because its optimizer steps there and nu is subtracted afterwards.
"""

from __future__ import annotations

from pydantic import Field, PositiveInt

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.modifiers.descent import descend_at, gradient_from
    from robflat_bench.numerics.weight_space import WeightSpace


class AWPParams(Params):
    gamma: Number = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Radius of the ball, relative to each layer's norm. Default: the released code's for AT.",
    )
    steps: PositiveInt = Field(default=1, description="Steps of the ascent.")
    step: Number | None = Field(default=None, gt=0, description="Size of a step, relative as gamma; None is gamma.")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="Fraction of training without perturbation.")


INFO = ModifierInfo(
    name="awp",
    summary="adversarial weight perturbation: descends the loss at the worst weights nearby",
    factory=f"{__name__}:AWP",
    params=AWPParams,
    citation=cite("wu2020adversarial"),
    joints=("backward",),
    losses="1 + steps",
    least_losses="1 + steps * (warmup == 0)",
    sharded=True,
)


class AWP(Modifier):
    """Descends at adversarially perturbed weights."""

    params: AWPParams

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        space = WeightSpace(model, training=True)
        nu, gamma = space.zero(), self.params.gamma
        if batch.moment.progress >= self.params.warmup:
            for _ in range(self.params.steps):
                nu = space.step(nu, gradient_from(space, nu, loss), self.params.step or gamma, gamma)
        return descend_at(space, nu, loss, optimizer)
