r"""ALP:  L(w) = mean_i [ \ell_CE(f(x_i'), y_i) + \lambda ||f(x_i) - f(x_i')||_2^2 ],   f the logits,

    x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i)

Kannan, Kurakin, Goodfellow: Adversarial logit pairing. arXiv 1803.06373, 2018.

With `clean`, \ell_CE(f(x_i), y_i) is added. The gradient flows through both logits. Clean and adversarial images are
two forward passes, and each updates BN statistics.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.methods.at import AT

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.methods.losses import soft_cross_entropy


class ALPParams(Params):
    weight: float = Field(default=0.5, ge=0, description="Weight of the squared distance between the logits.")
    clean: bool = Field(default=False, description="Whether the cross-entropy of the clean images is added.")


INFO = MethodInfo(
    name="alp",
    summary=(
        "adversarial logit pairing: squared distance between clean and adversarial logits; known to mask gradients"
    ),
    factory=f"{__name__}:ALP",
    params=ALPParams,
    citation="Kannan, Kurakin, Goodfellow: Adversarial logit pairing. arXiv 1803.06373, 2018",
    attack=Passes("T + 1", "T"),
    loss=Passes("2", "2"),
)


class ALP(AT):
    """AT that pulls the logits of clean and adversarial images together."""

    params: ALPParams

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        pairing: Tensor = (clean - adversarial).square().sum(1)
        loss = soft_cross_entropy(adversarial, batch.target) + self.params.weight * pairing
        return loss + soft_cross_entropy(clean, batch.target) if self.params.clean else loss
