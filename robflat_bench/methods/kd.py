r"""KD:  L(w) = mean_i [ c \ell_CE(f(x_i'), y_i) + T^2 ( a KL( q(x_i') || p(x_i') ) + b KL( r(x_i') || p(x_i') ) ) ],

    p = softmax(f / T),   q = softmax(f_std / T),   r = softmax(f_rob / T),   x' as in AT

Chen et al.: Robust overfitting may be mitigated by properly learned smoothening. ICLR 2021.

f_std is a network trained without an adversary, and f_rob one trained by AT. Both see the images that attack f.
The paper's KD-SWA also averages weights, after the first drop of the learning rate, which comes early:

    --method "kd+swa(start=0.28)" --set "recipe.schedule=piecewise(drops=[0.25, 0.75])"

The released code has cross-entropies in place of the divergences. They differ by the teachers' entropy, a constant.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class KDParams(Params):
    labels: float = Field(
        default=0.3, ge=0, description="Weight of the cross-entropy of the labels (c). Default: the released code's."
    )
    standard: float = Field(
        default=0.1, ge=0, description="Weight of the standard teacher (a). Default: the released code's."
    )
    robust: float = Field(
        default=0.6, ge=0, description="Weight of the robust teacher (b). Default: the released code's."
    )
    temperature: float = Field(
        default=2.0, gt=0, description="Divides the logits in the divergences (T). Default: the released code's."
    )


INFO = MethodInfo(
    name="kd",
    summary="adversarial training with a standard and a robust teacher; KD-SWA is kd+swa",
    factory=f"{__name__}:KD",
    params=KDParams,
    citation=cite("chen2021robust"),
    attack=Passes("T + 1", "T"),
    loss=Passes("3", "1"),
    helpers={"standard": "standard", "robust": "at"},
    sharded=True,
)


class KD(AT):
    """AT with two teachers."""

    params: KDParams

    def setup(self, training: Training) -> None:
        self.standard, self.robust = (training.helpers[name] for name in ("standard", "robust"))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        params, logits = self.params, model(x_adv)
        loss = params.labels * soft_cross_entropy(logits, batch.target)
        for teacher, weight in ((self.standard, params.standard), (self.robust, params.robust)):
            with torch.no_grad():
                taught = teacher(x_adv) / params.temperature
            loss = loss + weight * params.temperature**2 * divergence(taught, logits / params.temperature)
        return loss
