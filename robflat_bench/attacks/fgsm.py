r"""FGSM, one step of the whole radius:

    x_adv = \Pi_{[0,1]} ( x + \epsilon sign \nabla_x \ell_CE(f(x), y) )

Under l2 the step is \epsilon g / ||g||_2 along the gradient g. Goodfellow, Shlens, Szegedy: Explaining and harnessing
adversarial examples. ICLR 2015, arXiv 1412.6572.
"""

from __future__ import annotations

from robflat_bench.core import ENGINE_NORMS, Attack, AttackInfo, Examples, Params, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked, cross_entropy, gradient_at
    from robflat_bench.attacks.norms import climbed


class FGSMParams(Params):
    norms = ENGINE_NORMS


INFO = AttackInfo(
    name="fgsm",
    summary="one step of the whole radius along the sign of the gradient",
    factory=f"{__name__}:FGSM",
    params=FGSMParams,
    citation=cite("goodfellow2015explaining"),
    title="FGSM",
    passes=Passes("1", "1"),
)


class FGSM(Attack):
    """Returns the full step even where it lowers the loss."""

    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        x, epsilon, objective = examples.x, self.threat.epsilon, cross_entropy(examples.y)
        norm = climbed(self.threat.norm)
        with attacked(model):
            gradient = gradient_at(x, lambda images: objective(model(images)))
        return norm.project(x + epsilon * norm.steepest(gradient), x, epsilon)
