r"""Temporal ensembling:  L(w) = mean_i [ \ell_CE(f(x_i'), y_i) + \omega/K ||p(x_i') - s_i||^2 ],

    t_i <- m t_i + (1 - m) p(x_i),   s_i = t_i / ||t_i||_1,   \omega = W exp( -5 (1 - min(1, (e - start) / ramp))^2 ),

    x_i' = argmax_{||x' - x_i||_inf <= eps} [ \ell_CE(f(x'), y_i) + \omega/K ||p(x') - s_i||^2 ]

Dong et al.: Exploring memorization in adversarial training. ICLR 2022.

e is the fraction of training that is done. Until `start` the method is AT. Then t_i, first 0, moves once per update,
before the attack, by the prediction of the attack's BN mode at w, and s_i is a constant in attack and loss. An image
from elsewhere (index -1) has s_i = p(x_i). The released code raises \omega once per epoch, here it rises with each
update. BN statistics see only the adversarial images. With TRADES in place of AT: `te-trades`.
"""

from __future__ import annotations

import math

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, MethodInfo, Number, Params, Passes, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.at import AT
from robflat_bench.methods.running import REMEMBERS, RunningPredictions

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import cross_entropy
    from robflat_bench.methods.losses import soft_cross_entropy


class TEParams(Params):
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Weight of the average so far (m). Default: the released code's."
    )
    start: Number = Field(
        default=90 / 200,
        ge=0,
        lt=1,
        description="Fraction of training before predictions are averaged. Default: the released code's.",
    )
    ramp: Number = Field(
        default=60 / 200,
        gt=0,
        le=1,
        description="Fraction of training in which the penalty's weight rises. Default: the released code's.",
    )
    weight: float = Field(
        default=300.0, ge=0, description="Highest weight of the penalty (W). Default: the released code's."
    )


INFO = MethodInfo(
    name="te",
    summary="adversarial training that stays near the average of its own predictions for each image",
    factory=f"{__name__}:TE",
    params=TEParams,
    citation=cite("dong2022exploring"),
    example={"start": 0},
    attack=Passes("T + 2", "T", at_most=True, least=("T + 1 + (start == 0)", "T")),
    loss=Passes("1", "1"),
    claims=("batch",),
    sharded=REMEMBERS,
)


class TE(RunningPredictions, AT):
    """AT with a penalty; `ensembled` [B,K] holds s_i from the attack to the loss."""

    params: TEParams
    ensembled: Tensor

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        if not self.started(batch):
            return super().attack(model, batch, inner)
        self.ensemble(batch, inner.predict(model, batch.x))
        error = cross_entropy(batch.y)
        return inner(model, batch.x, lambda logits: error(logits) + self.penalty(batch, logits))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        logits = model(x_adv)
        loss = soft_cross_entropy(logits, batch.target)
        return loss + self.penalty(batch, logits) if self.started(batch) else loss

    def ensemble(self, batch: Batch, clean: Tensor) -> None:
        """Average the predictions of clean logits [B,K], and keep s_i for the loss."""
        before = torch.where((batch.index >= 0)[:, None], self.labels[batch.index], 0)
        moved = self.moved(batch, before, clean.softmax(1))
        self.ensembled = moved / moved.sum(1, keepdim=True)

    def penalty(self, batch: Batch, logits: Tensor) -> Tensor:
        r"""\omega/K ||p - s_i||^2 of each example, [B]."""
        risen = min(1.0, (batch.moment.progress - self.params.start) / self.params.ramp)
        weight = self.params.weight * math.exp(-5 * (1 - risen) ** 2)
        return weight * (logits.softmax(1) - self.ensembled).square().mean(1)
