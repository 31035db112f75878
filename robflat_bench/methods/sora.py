r"""SORA:  L(w) = mean_i \ell_CE(f(x_i'), y_i),   x' = clip_{[0,1]}( x + \eta + a eps u sign g ),

    \eta ~ U(-eps, eps) with x + \eta clipped to images,   g = \nabla_x \ell_CE(f(x + \eta), y),
    u ~ U(0,1) for each number of an image,   a = A min( 1, \kappa / (1 - c) ),
    c <- (1 - \theta) c + \theta clip_{[-1,1]}( mean_i <sign g_i, h_i> / ||g_i||_1 ),   h = \nabla_x \ell_CE(f(x'), y)

Teymourian et al.: SORA: Free second-order attacks in fast adversarial training. ICML 2026.

The ratio is 1 while the loss is linear between start and end of the step. Where the loss curves, the ratio falls, and
so does the largest step a of later updates. h is what the update's own backward pass finds at x', so c costs no pass.
There is no projection onto the ball: ||x' - x||_inf may reach (1 + A) eps.

Both gradients are taken in train mode, whatever the recipe's BN mode for attacks is: with running statistics in one and
those of the batch in the other, the ratio would not be 1 on a linear loss. BN statistics stand still while g is taken
(in the released code they move), so they see only x'. c is in the saved state of a run (`method.state.alignment`). If a
modifier differentiates the loss several times, the last gradient that reaches the images decides. The published runs
take 30 epochs with `recipe.schedule=cyclic` and `recipe.learning_rate=0.2`.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import frozen_statistics
    from robflat_bench.core.randomness import uniform_like
    from robflat_bench.methods.fgsm_rs import random_start
    from robflat_bench.methods.gradalign import loss_gradient


class SORAParams(Params):
    largest: float = Field(
        default=2.0, gt=0, description="Largest step, in radii (A). Default: the released code's, 16/255 at 8/255."
    )
    tolerance: float = Field(
        default=0.02,
        gt=0,
        description="Misalignment 1 - c up to which the step is the largest (kappa). Default: the released code's.",
    )
    rate: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Weight of an update in the running alignment c (theta). Default: the released code's.",
    )
    initial: float = Field(default=0.99, ge=-1, le=1, description="First alignment c. Default: the released code's.")


INFO = MethodInfo(
    name="sora",
    summary="one step of random length, whose largest length follows the curvature of the loss",
    factory=f"{__name__}:SORA",
    params=SORAParams,
    citation=cite("teymourian2026sora"),
    attack=Passes("1", "1"),
    claims=("attack",),
    sharded="the length of its step follows the gradients of earlier updates",
)


class SORA(AT):
    """x_adv is a leaf of the loss's graph, so the backward pass that moves the weights also finds the alignment."""

    params: SORAParams
    saved = ("alignment",)

    def setup(self, training: Training) -> None:
        self.alignment = next(training.model.parameters()).new_tensor(self.params.initial, dtype=torch.float64)

    def radius(self, epsilon: float) -> float:
        return (1 + self.params.largest) * epsilon

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        start = random_start(batch, inner)
        with frozen_statistics(model):
            gradient = loss_gradient(model, start, batch.y)
        length = (1 + uniform_like(start, batch.moment.random("length"))) / 2
        step = self._step().to(start) * inner.epsilon * length * gradient.sign()
        x_adv = (start + step).clamp(0, 1).requires_grad_()
        before = self.alignment

        def observe(later: Tensor) -> None:
            found = alignment(gradient, later).clamp(-1, 1)
            self.alignment = (1 - self.params.rate) * before + self.params.rate * found

        x_adv.register_hook(observe)
        return x_adv

    def _step(self) -> Tensor:
        """a, in radii; no division by zero where c is 1."""
        missing = (1 - self.alignment).clamp(min=self.params.tolerance)
        return self.params.largest * self.params.tolerance / missing


def alignment(gradient: Tensor, later: Tensor) -> Tensor:
    """mean_i <sign g_i, h_i> / ||g_i||_1, a float64 scalar; an image with g_i = 0 adds 0.

    Parameters
    ----------
    gradient: g [B,C,H,W], the gradient of the sum of all losses.
    later: the gradient of their mean, [B,C,H,W]: its rows are h_i times the weights of the images in the mean.
    """
    one, two = gradient.double().flatten(1), later.double().flatten(1)
    size = one.abs().sum(1).clamp(min=torch.finfo(one.dtype).tiny)
    return ((one.sign() * two).sum(1) / size).sum()
