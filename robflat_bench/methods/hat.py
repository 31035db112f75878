r"""HAT:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta KL(p(x_i) || p(x_i')) + \gamma \ell_CE(f(x_i''), y_i'') ],

    x'' = clip_{[0,1]}( x + h (x' - x) ),   y'' = argmax_k f_std(x')_k,   x' as in TRADES,

where f_std is a network trained without an adversary.

Rade, Moosavi-Dezfooli: Reducing excessive margin to achieve a better accuracy vs. robustness trade-off. ICLR 2022.

The helper images x'' lie outside the ball on purpose. They are clipped to [0,1], which the released code omits. Three
forward passes update BN statistics: at x, x' and x''. A fourth is the standard network's.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Passes, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.methods.trades import TRADES, TRADESParams

with lazy_imports():
    import torch
    from torch import Tensor, nn


class HATParams(TRADESParams):
    beta: float = Field(default=2.5, ge=0, description="Weight of the divergence.")
    h: float = Field(
        default=2.0,
        gt=0,
        description="Where helper images lie: 0 is the image, 1 the adversarial one. Default: the released command's.",
    )
    gamma: float = Field(default=0.5, ge=0, description="Weight of the cross-entropy of the helper images.")


INFO = MethodInfo(
    name="hat",
    summary="TRADES plus images beyond the ball, labelled by a standard network",
    factory=f"{__name__}:HAT",
    params=HATParams,
    citation=cite("rade2022reducing"),
    attack=Passes("T + 2", "T"),
    loss=Passes("4", "3"),
    helpers={"standard": "standard"},
    random_start=True,
    sharded=True,
)


class HAT(TRADES):
    """TRADES with helper images."""

    params: HATParams

    def setup(self, training: Training) -> None:
        self.standard = training.helpers["standard"]

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = super().loss(model, batch, x_adv)
        beyond = (batch.x + self.params.h * (x_adv - batch.x)).clamp(0, 1)
        with torch.no_grad():
            label = self.standard(x_adv).argmax(1)
        return loss + self.params.gamma * nn.functional.cross_entropy(model(beyond), label, reduction="none")
