r"""Random weight perturbation:  min_w E_nu L(w + nu),   nu uniform on the spheres ||nu_l|| = \xi ||w_l||

Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

One nu is drawn per update, for every weight tensor l; biases and normalisation layers are not perturbed. The
adversarial images are found at w; the gradient at w + nu is applied to w. The forward pass at w + nu, the only one,
moves BN statistics. The released code clips the gradient; here it is not clipped. Draws are keyed by the moment and
the tensor's name, as a measure's are by sample and name.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, Loss, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from robflat_bench.modifiers.descent import descend_at
    from robflat_bench.numerics.weight_space import WeightSpace


class RandomWPParams(Params):
    xi: Number = Field(
        default=0.5,
        gt=0,
        description="Length relative to each layer's norm, as in average-case. Stutz et al. try 0.05 to 1.",
    )


INFO = ModifierInfo(
    name="random-wp",
    summary="random weight perturbation: descends the loss at weights a random step away",
    factory=f"{__name__}:RandomWP",
    params=RandomWPParams,
    citation=cite("stutz2021relating"),
    joints=("backward",),
    sharded=True,
)


class RandomWP(Modifier):
    """Descends at randomly perturbed weights."""

    params: RandomWPParams

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        space, now = WeightSpace(model, training=True), batch.moment
        nu = space.on_sphere(self.params.xi, now.seed, "random-wp", now.epoch, now.update)
        return descend_at(space, nu, loss, optimizer)
