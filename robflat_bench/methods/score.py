r"""SCORE:  L(w) = mean_i [ ||p(x_i) - t_i||_2^2 + \beta ||p(x_i') - p(x_i)||_2^2 ],

t = (1 - K s / (K - 1)) y + s / (K - 1),   x_i' = argmax_{||x' - x_i||_inf <= eps} ||p(x') - p(x_i)||_2^2,
the clean prediction fixed in the attack.   Pang et al.: ICML 2022.

The released code stops BN statistics in the attack; here no attack ever moves them.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports

with lazy_imports():
    from torch import Tensor, nn


class SCOREParams(Params):
    """beta: weight of the distance between the predictions. smoothing: what the target leaves to the other classes
    (on top of a modifier's)."""

    beta: float = Field(default=3.0, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)


INFO = MethodInfo(
    name="score",
    summary="squared errors of the predictions instead of cross-entropy and divergence",
    factory=f"{__name__}:SCORE",
    params=SCOREParams,
    citation="Pang et al.: Robustness and accuracy could be reconcilable by (proper) definition. ICML 2022",
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
)


class SCORE(Method):
    """The gradient flows through both predictions; clean and adversarial images are two forwards, so BN
    statistics are updated by each. A start at x itself has no gradient: the recipe's start must be random."""

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
