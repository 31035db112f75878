r"""FGSM-RS (fast AT):  L(w) = mean_i \ell_CE(f(x_i'; w), y_i),

    d ~ U(-eps, eps) clipped to images,   d <- clip_{[-eps,eps]}( d + \alpha eps sign \nabla_x \ell_CE(f(x + d), y) ),
    x' = clip_{[0,1]}(x + d)

Wong, Rice, Kolter: Fast is better than free: revisiting adversarial training. ICLR 2020.

Under an l2 threat, d starts uniform in the l2 ball, and the step has l2 length alpha eps along the gradient. BN
statistics see only x'. The gradient is taken in the recipe's BN mode for attacks; the released code takes it in train
mode, and BN statistics move. The last image is used, whatever its loss.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import ENGINE_NORMS, Batch, InnerAttack, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.attacks.norms import climbed


class FGSMRSParams(Params):
    norms = ENGINE_NORMS

    alpha: float = Field(default=1.25, gt=0, description="Size of the step, in radii. Default: the paper's.")


INFO = MethodInfo(
    name="fgsm-rs",
    summary="fast adversarial training: one step from a random start",
    factory=f"{__name__}:FGSMRS",
    params=FGSMRSParams,
    citation=cite("wong2020fast"),
    attack=Passes("1", "1"),
    claims=("attack",),
    sharded=True,
)


def random_start(batch: Batch, inner: InnerAttack) -> Tensor:
    """A point drawn uniformly from the ball around each image, clipped to [0,1]."""
    norm = climbed(inner.norm)
    noise = inner.epsilon * norm.noise_like(batch.x, batch.moment.random("start"))
    return norm.project(batch.x + noise, batch.x, inner.epsilon)


def one_step(model: nn.Module, batch: Batch, inner: InnerAttack, start: Tensor, alpha: float) -> Tensor:
    """A step of size alpha eps from `start`, projected onto the ball and clipped to [0,1]."""
    norm, gradient = climbed(inner.norm), inner.gradient(model, start, cross_entropy(batch.y))
    return norm.project(start + alpha * inner.epsilon * norm.steepest(gradient), batch.x, inner.epsilon)


class FGSMRS(AT):
    """AT whose attack is one step from a random start."""

    params: FGSMRSParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return one_step(model, batch, inner, random_start(batch, inner), self.params.alpha)
