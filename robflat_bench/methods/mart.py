r"""MART:  L(w) = mean_i [ BCE(p(x_i'), y_i) + \beta KL( p(x_i) || p(x_i') ) (1 - p_{y_i}(x_i)) ],

BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k),   x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i).
Wang et al.: ICLR 2020.

The constants are the released ones: 1.0001 instead of 1 in BCE, so that its logarithm is at most 9.2, and 1.0000001
in the weight. Its 1e-12 inside logarithms is left out: log-softmax needs none. With soft targets, -log p_y is the
cross-entropy against the target; the class y of the other two terms stays the label.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, lazy_imports

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class MARTParams(Params):
    """beta: weight of the divergence term (lambda in some papers)."""

    beta: float = Field(default=6.0, ge=0)


INFO = MethodInfo(
    name="mart",
    summary="boosted cross-entropy on PGD examples plus divergence, more of it where the clean image is doubtful",
    factory=f"{__name__}:MART",
    params=MARTParams,
    citation="Wang et al.: Improving adversarial robustness requires revisiting misclassified examples. ICLR 2020",
    attack=Passes("T + 1", "T"),
    loss=Passes("2", "2"),
)


class MART(Method):
    """The gradient flows through everything, the weight 1 - p_y included, as published. Clean and adversarial
    images are two forwards, so BN statistics are updated by each."""

    params: MARTParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        return inner(model, batch.x, cross_entropy(batch.y))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        label = batch.y[:, None]
        rival = adversarial.softmax(1).scatter(1, label, 0).amax(1)
        boosted = soft_cross_entropy(adversarial, batch.target) - (1.0001 - rival).log()
        doubt = 1.0000001 - clean.softmax(1).gather(1, label)[:, 0]
        loss: Tensor = boosted + self.params.beta * divergence(clean, adversarial) * doubt
        return loss
