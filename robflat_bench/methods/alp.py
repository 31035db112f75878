r"""ALP:  L(w) = mean_i [ 1/2 \ell_CE(f(x_i), y_i) + 1/2 \ell_CE(f(x_i'), y_i)
                      + \lambda / K ||f(x_i) - f(x_i')||_2^2 ],

    x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i),   f the logits of K classes

Kannan, Kurakin, Goodfellow: Adversarial logit pairing. arXiv 1803.06373, 2018.

As published, the squared difference is averaged over classes, and the cross-entropy over clean and adversarial
images. With `clean` false, the cross-entropy is that of the adversarial images alone. Papers that write the pairing
as a sum over classes, \lambda' ||f(x_i) - f(x_i')||_2^2, have \lambda = K \lambda'. The gradient flows through both
logits. Clean and adversarial images are two forward passes, and each updates BN statistics; the released code passes
them in one.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.methods.losses import soft_cross_entropy


class ALPParams(Params):
    weight: float = Field(default=0.5, ge=0, description="Weight of the mean squared difference of the logits.")
    clean: bool = Field(default=True, description="Whether clean images are half of the cross-entropy, as published.")


INFO = MethodInfo(
    name="alp",
    summary=(
        "adversarial logit pairing: squared distance between clean and adversarial logits; known to mask gradients"
    ),
    factory=f"{__name__}:ALP",
    params=ALPParams,
    citation=cite("kannan2018adversarial"),
    attack=Passes("T + 1", "T"),
    loss=Passes("2", "2"),
    sharded=True,
)


class ALP(AT):
    """AT that pulls the logits of clean and adversarial images together."""

    params: ALPParams

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        classes: Tensor = soft_cross_entropy(adversarial, batch.target)
        if self.params.clean:
            classes = (classes + soft_cross_entropy(clean, batch.target)) / 2
        pairing: Tensor = (clean - adversarial).square().mean(1)
        return classes + self.params.weight * pairing
