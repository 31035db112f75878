r"""Temporal ensembling with TRADES:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta KL(p(x_i) || p(x_i')) + P(x_i) ],

    P(x) = \omega/K ||p(x) - s_i||^2,   x_i' = argmax_{||x' - x_i||_inf <= eps} [ \beta KL(p(x_i) || p(x')) + P(x') ]

with \omega and s_i as in `te`.

Dong et al.: Exploring memorization in adversarial training. ICLR 2022.

Until `start` the method is TRADES. As in the released code, the loss penalises the clean prediction and the attack the
adversarial one. The clean prediction of the attack is also the one that is averaged. Clean and adversarial images are
two forward passes, and each updates BN statistics.
"""

from __future__ import annotations

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.running import REMEMBERS
from robflat_bench.methods.te import TE, TEParams
from robflat_bench.methods.trades import TRADESParams

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import divergence_from
    from robflat_bench.methods.losses import divergence, soft_cross_entropy


class TETRADESParams(TEParams, TRADESParams):
    """TRADES's parameter and temporal ensembling's."""


INFO = MethodInfo(
    name="te-trades",
    summary="TRADES that stays near the average of its own predictions for each image",
    factory=f"{__name__}:TETRADES",
    params=TETRADESParams,
    citation=cite("dong2022exploring"),
    example={"start": 0},
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    claims=("batch",),
    random_start=True,
    sharded=REMEMBERS,
)


class TETRADES(TE):
    """TRADES with a penalty."""

    params: TETRADESParams

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean = inner.predict(model, batch.x)
        change = divergence_from(clean)
        if not self.started(batch):
            return inner(model, batch.x, change)
        self.ensemble(batch, clean)
        return inner(model, batch.x, lambda logits: self.params.beta * change(logits) + self.penalty(batch, logits))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adversarial = model(batch.x), model(x_adv)
        loss = soft_cross_entropy(clean, batch.target) + self.params.beta * divergence(clean, adversarial)
        return loss + self.penalty(batch, clean) if self.started(batch) else loss
