r"""SCORE:  L(w) = mean_i [ ||p(x_i) - t_i||_2^2 + \beta ||p(x_i') - p(x_i)||_2^2 ],

    t = (1 - K s / (K - 1)) y + s / (K - 1),   x_i' = argmax_{||x' - x_i||_inf <= eps} ||p(x') - p(x_i)||_2^2

Pang et al.: Robustness and accuracy could be reconcilable by (proper) definition. ICML 2022.

y is the target, one-hot unless a modifier has changed it: smoothing adds to that of a modifier.
The attack treats the clean prediction as a constant; in the loss the gradient flows through both predictions. Clean
and adversarial images are two forward passes, and each updates BN statistics. The released code freezes BN statistics
during the attack; here every attack does. At x itself the attack's gradient is zero, so the recipe's start must be
random.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor, nn


class SCOREParams(Params):
    beta: float = Field(
        default=3.0, ge=0, description="Weight of the distance between the predictions. The released code has 3 to 4."
    )
    smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="Target of all wrong classes together (s). Default: the released code's."
    )


INFO = MethodInfo(
    name="score",
    summary="squared errors of the predictions instead of cross-entropy and divergence",
    factory=f"{__name__}:SCORE",
    params=SCOREParams,
    citation=cite("pang2022robustness"),
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    random_start=True,
    sharded=True,
)


class SCORE(Method):
    """TRADES with squared distances between predictions."""

    params: SCOREParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean = inner.predict(model, batch.x).softmax(1)
        return inner(model, batch.x, lambda logits: _squared(logits.softmax(1) - clean))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x).softmax(1), model(x_adv).softmax(1)
        classes = batch.target.shape[1]
        each = self.params.smoothing / (classes - 1)
        target = (1 - classes * each) * batch.target + each
        return _squared(clean - target) + self.params.beta * _squared(adversarial - clean)


def _squared(difference: Tensor) -> Tensor:
    return difference.square().sum(1)
