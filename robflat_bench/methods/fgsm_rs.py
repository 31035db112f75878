r"""FGSM-RS (fast AT):  L(w) = mean_i \ell_CE(f(x_i'; w), y_i),  d ~ U(-eps, eps) clipped to images,

    d <- clip_{[-eps,eps]}( d + \alpha eps sign \nabla_x \ell_CE(f(x + d), y) ),   x' = clip_{[0,1]}(x + d).

Wong, Rice, Kolter: ICLR 2020. BN statistics see x' only; the gradient is taken in the recipe's BN mode for attacks
(the authors' code: train mode, whose statistics move).
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.methods.at import AT

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy, project
    from robflat_bench.core.randomness import uniform_like


class FGSMRSParams(Params):
    """alpha: size of the step, in radii."""

    alpha: float = Field(default=1.25, gt=0)


INFO = MethodInfo(
    name="fgsm-rs",
    summary="fast adversarial training: one step from a random start",
    factory=f"{__name__}:FGSMRS",
    params=FGSMRSParams,
    citation="Wong, Rice, Kolter: Fast is better than free: revisiting adversarial training. ICLR 2020",
    attack=Passes("1", "1"),
    claims=("attack",),
)


def random_start(batch: Batch, epsilon: float) -> Tensor:
    """Uniform in the ball, clipped to images."""
    noise = epsilon * uniform_like(batch.x, batch.moment.random("start"))
    return project(batch.x + noise, batch.x, epsilon)


def one_step(model: nn.Module, batch: Batch, inner: InnerAttack, start: Tensor, alpha: float) -> Tensor:
    """A sign step of alpha eps from start, back into the ball and the image box."""
    gradient = inner.gradient(model, start, cross_entropy(batch.y))
    return project(start + alpha * inner.epsilon * gradient.sign(), batch.x, inner.epsilon)


class FGSMRS(AT):
    """AT with one step from a random start; the last image is used, whatever its loss."""

    params: FGSMRSParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return one_step(model, batch, inner, random_start(batch, inner.epsilon), self.params.alpha)
