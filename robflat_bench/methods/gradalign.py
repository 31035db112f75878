r"""GradAlign:  L(w) = mean_i [ \ell_CE(f(x_i'), y_i) + \lambda (1 - cos(g(x_i), g(x_i + \eta_i))) ],
g(x) = \nabla_x \ell_CE(f(x), y),  \eta ~ U(-eps, eps) with x + \eta clipped to images, x' one sign step from x or
from a random start, as FGSM-RS.

Andriushchenko, Flammarion: NeurIPS 2020. As in the authors' code g(x) is a constant and double backpropagation goes
through g(x + \eta) only. Both gradients are taken in train mode, BN statistics standing still; only the forward at x'
moves them (the authors' code: all three do). Chosen otherwise than in that code, too: an example with a vanishing
gradient counts as aligned (there it leaves the mean), and with a random start the first gradient is still that at x.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from robflat_bench.attacks.engine import frozen_statistics, project
    from robflat_bench.core.randomness import uniform_like
    from robflat_bench.methods.fgsm_rs import one_step, random_start
    from robflat_bench.methods.losses import soft_cross_entropy


class GradAlignParams(Params):
    """weight: of the alignment term (lambda). alpha: size of the attack's step, in radii. start: of the attack, at the
    image or uniform in the ball."""

    weight: float = Field(default=0.2, ge=0)
    alpha: float = Field(default=1.25, gt=0)
    start: Literal["zero", "uniform"] = "zero"


INFO = MethodInfo(
    name="gradalign",
    summary="one-step adversarial training with input gradients kept aligned within the ball",
    factory=f"{__name__}:GradAlign",
    params=GradAlignParams,
    citation="Andriushchenko, Flammarion: Understanding and improving fast adversarial training. NeurIPS 2020",
    attack=Passes("1", "1"),
    loss=Passes("3", "4"),
    claims=("attack",),
)


class GradAlign(Method):
    """One evaluation of the loss: forwards at x', x and x + eta, a backward of each, and one of that at x + eta."""

    params: GradAlignParams

    def setup(self, training: Training) -> None:
        self.epsilon = training.epsilon

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        start = batch.x if self.params.start == "zero" else random_start(batch, inner.epsilon)
        return one_step(model, batch, inner, start, self.params.alpha)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = soft_cross_entropy(model(x_adv), batch.target)
        noise = uniform_like(batch.x, batch.moment.random("alignment"))
        noisy = project(batch.x + self.epsilon * noise, batch.x, self.epsilon)
        with frozen_statistics(model):
            fixed = input_gradient(model, batch.x, batch.y)
            moving = input_gradient(model, noisy, batch.y, create_graph=True)
        return loss + self.params.weight * misalignment(fixed, moving)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """d sum_i CE_i / dx, the model as it is."""
    variable = x.detach().requires_grad_()
    loss = F.cross_entropy(model(variable), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, variable, create_graph=create_graph)
    return gradient


def misalignment(one: Tensor, two: Tensor) -> Tensor:
    """1 - cos of each example's gradients [B,...]: [B]; 0 where either vanishes."""
    one, two = one.flatten(1), two.flatten(1)
    smallest = torch.finfo(one.dtype).tiny ** 0.5  # the squares of smaller gradients underflow
    vanishing = torch.minimum(one.norm(dim=1), two.norm(dim=1)) < smallest
    return torch.where(vanishing, 0.0, 1 - F.cosine_similarity(one, two, dim=1, eps=smallest))
