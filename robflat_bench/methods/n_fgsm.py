r"""N-FGSM:  L(w) = mean_i \ell_CE(f(x_i'; w), y_i),   \eta ~ U(-k eps, k eps),

    x' = clip_{[0,1]}( x + \eta + \alpha eps sign \nabla_x \ell_CE(f(x + \eta), y) )

de Jorge et al.: Make some noise: reliable and efficient single-step adversarial training. NeurIPS 2022.

There is no projection onto the ball: the noise augments the image, and ||x' - x|| may reach (k + alpha) eps. Under an
l2 threat, \eta is uniform in the l2 ball of radius k eps, and the step has l2 length along the gradient. As in the
equation, the gradient is taken at x + \eta; the released code clips that point to [0,1] first. BN statistics see only
x'. The gradient is taken in the recipe's BN mode for attacks; the released code takes it in train mode, and BN
statistics move.
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


class NFGSMParams(Params):
    norms = ENGINE_NORMS

    k: float = Field(
        default=2.0, ge=0, description="Radius of the uniform noise, in radii. Default: the released code's."
    )
    alpha: float = Field(default=1.0, gt=0, description="Size of the step, in radii. Default: the released code's.")


INFO = MethodInfo(
    name="n-fgsm",
    summary="one step from strong noise, without projection onto the ball",
    factory=f"{__name__}:NFGSM",
    params=NFGSMParams,
    citation=cite("dejorge2022make"),
    attack=Passes("1", "1"),
    claims=("attack",),
    sharded=True,
)


class NFGSM(AT):
    """AT whose attack is one step from strong noise."""

    params: NFGSMParams

    def radius(self, epsilon: float) -> float:
        return (self.params.k + self.params.alpha) * epsilon

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        norm = climbed(inner.norm)
        noise = norm.noise_like(batch.x, batch.moment.random("noise"))
        noisy = batch.x + self.params.k * inner.epsilon * noise
        gradient = inner.gradient(model, noisy, cross_entropy(batch.y))
        return (noisy + self.params.alpha * inner.epsilon * norm.steepest(gradient)).clamp(0, 1)
