r"""GradAlign:  L(w) = mean_i [ \ell_CE(f(x_i'), y_i) + \lambda (1 - cos(g(x_i), g(x_i + \eta_i))) ],

    g(x) = \nabla_x \ell_CE(f(x), y),   \eta ~ U(-eps, eps) with x + \eta clipped to images,

and x' is one step from x or from a random start, as in FGSM-RS. Under an l2 threat, \eta is uniform in the l2 ball.

Andriushchenko, Flammarion: Understanding and improving fast adversarial training. NeurIPS 2020.

As in the released code, g(x) is a constant, and double backpropagation goes through g(x + \eta) only. Both gradients
are taken in train mode while BN statistics stand still; only the forward pass at x' moves them. In the released code
all three move them. Three more differences: x + \eta is clipped to images (there it is not); an example whose
gradient vanishes counts as aligned (the released code leaves it out of the mean), and with a random start the first
gradient is still taken at x.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, MethodInfo, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import frozen_statistics
    from robflat_bench.attacks.norms import climbed
    from robflat_bench.methods.fgsm_rs import one_step, random_start


class GradAlignParams(Params):
    norms = ENGINE_NORMS

    weight: float = Field(
        default=0.2, ge=0, description="Weight of the alignment term (lambda). Default: the authors' at 8/255."
    )
    alpha: float = Field(
        default=1.25,
        gt=0,
        description="Size of the attack's step, in radii. Default: the released code's for a random start.",
    )
    start: Literal["zero", "uniform"] = Field(
        default="zero", description="Start of the attack: the image, or a point drawn uniformly from the ball."
    )


INFO = MethodInfo(
    name="gradalign",
    summary="one-step adversarial training with input gradients kept aligned within the ball",
    factory=f"{__name__}:GradAlign",
    params=GradAlignParams,
    citation=cite("andriushchenko2020understanding"),
    attack=Passes("1", "1"),
    loss=Passes("3", "4"),
    claims=("attack",),
    sharded=True,
)


class GradAlign(AT):
    """One loss has forward passes at x', x and x + eta, a backward pass of each, and a second one at x + eta."""

    params: GradAlignParams

    def setup(self, training: Training) -> None:
        self.epsilon, self.norm = training.epsilon, climbed(training.norm)

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        start = batch.x if self.params.start == "zero" else random_start(batch, inner)
        return one_step(model, batch, inner, start, self.params.alpha)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = super().loss(model, batch, x_adv)
        noise = self.norm.noise_like(batch.x, batch.moment.random("alignment"))
        noisy = self.norm.project(batch.x + self.epsilon * noise, batch.x, self.epsilon)
        with frozen_statistics(model):
            fixed = loss_gradient(model, batch.x, batch.y)
            moving = loss_gradient(model, noisy, batch.y, create_graph=True)
        return loss + self.params.weight * misalignment(fixed, moving)


def loss_gradient(model: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """d sum_i CE_i / dx [B,C,H,W], with the model in its present mode."""
    variable = x.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model(variable), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, variable, create_graph=create_graph)
    return gradient


def misalignment(one: Tensor, two: Tensor) -> Tensor:
    """1 - cos of each example's gradients [B,...], as [B]; 0 if either gradient vanishes."""
    one, two = one.flatten(1), two.flatten(1)
    smallest = torch.finfo(one.dtype).tiny ** 0.5  # the squares of smaller gradients underflow
    vanishing = torch.minimum(one.norm(dim=1), two.norm(dim=1)) < smallest
    return torch.where(vanishing, 0.0, 1 - nn.functional.cosine_similarity(one, two, dim=1, eps=smallest))
