r"""LBGAT:  L(w, v) = mean_i [ 1/K ||f(x_i'; w) - g(x_i; v)||^2 + \ell_CE(g(x_i; v), y_i) + \beta KL(p_i || p_i') ],

    p_i = softmax f(x_i),   p_i' = softmax f(x_i'),   x_i' = argmax_{||x' - x_i||_inf <= eps} KL( p_i || p(x') )

Cui et al.: Learnable boundary guided adversarial training. ICCV 2021.

g is trained along and never evaluated. Here it has the architecture of f and initial weights of its own; the paper's
is a ResNet-18 for every f. The gradient of the squared distance reaches both networks. The paper's LBGAT0 is
`lbgat(beta=0)`. The images x' and x update the BN statistics of f in this order, and x those of g. The three
differences that `trades` names between its attack and released code apply here too.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.trades import TRADES, TRADESParams

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.backbones.parts import initialize
    from robflat_bench.core.randomness import generator
    from robflat_bench.methods.losses import divergence, soft_cross_entropy
    from robflat_bench.numerics.passes import counted_copy


class LBGATParams(TRADESParams):
    beta: float = Field(
        default=6.0, ge=0, description="Weight of the divergence. The paper has 0 and 6; default: the released code's."
    )


INFO = MethodInfo(
    name="lbgat",
    summary="adversarial logits follow the clean logits of a standard network that is trained along",
    factory=f"{__name__}:LBGAT",
    params=LBGATParams,
    citation=cite("cui2021learnable"),
    attack=Passes("T + 2", "T"),
    loss=Passes("3", "3"),
    random_start=True,
    sharded=True,
)


class LBGAT(TRADES):
    """TRADES's attack, and a guide whose logits are learned."""

    params: LBGATParams

    def setup(self, training: Training) -> None:
        self.guide = counted_copy(training.model)
        initialize(self.guide, generator(training.seed, "lbgat"))

    def parts(self) -> Mapping[str, nn.Module]:
        return {"guide": self.guide}

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        adversarial, clean, guide = model(x_adv), model(batch.x), self.guide(batch.x)
        guided: Tensor = (adversarial - guide).square().mean(1) + soft_cross_entropy(guide, batch.target)
        return guided + self.params.beta * divergence(clean, adversarial)
