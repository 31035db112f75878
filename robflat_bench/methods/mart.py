r"""MART:  L(w) = mean_i [ BCE(p(x_i'), y_i) + \beta KL( p(x_i) || p(x_i') ) (1 - p_{y_i}(x_i)) ],

    BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k),   x_i' = argmax_{||x' - x_i||_inf <= eps} \ell_CE(f(x'), y_i)

Wang et al.: Improving adversarial robustness requires revisiting misclassified examples. ICLR 2020.

The gradient flows through everything, the weight 1 - p_y included, as published. Clean and adversarial images are two
forward passes, and each updates BN statistics. The constants are those of the released code: 1.0001 instead of 1 in
BCE, so that its second logarithm is at most 9.2, and 1.0000001 in the weight. Its 1e-12 inside logarithms is omitted,
because log-softmax needs none. Its attack keeps the last iterate and starts unclipped at x + 0.001 N(0,1); here the
iterate with the highest loss is kept, and the start lies in [0,1]. With soft targets, -log p_y is the cross-entropy
against the target; y in the other two terms is still the label.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class MARTParams(Params):
    beta: float = Field(
        default=6.0, ge=0, description="Weight of the divergence (lambda in some papers). Default: the released code's."
    )


INFO = MethodInfo(
    name="mart",
    summary="boosted cross-entropy on PGD examples plus divergence, more of it where the clean image is doubtful",
    factory=f"{__name__}:MART",
    params=MARTParams,
    citation=cite("wang2020improving"),
    attack=Passes("T + 1", "T"),
    loss=Passes("2", "2"),
    sharded=True,
)


class MART(AT):
    """AT with a margin in its cross-entropy, and a divergence that counts more for misclassified images."""

    params: MARTParams

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        label = batch.y[:, None]
        rival = adversarial.softmax(1).scatter(1, label, 0).amax(1)
        boosted = soft_cross_entropy(adversarial, batch.target) - (1.0001 - rival).log()
        doubt = 1.0000001 - clean.softmax(1).gather(1, label)[:, 0]
        loss: Tensor = boosted + self.params.beta * divergence(clean, adversarial) * doubt
        return loss
