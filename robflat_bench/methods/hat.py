r"""HAT:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta KL(p(x_i) || p(x_i')) + \gamma \ell_CE(f(x_i''), y_i'') ],
x'' = clip_{[0,1]}( x + h (x' - x) ),  y'' = argmax_k f_std(x')_k  of a network trained without an adversary;
x' as TRADES.   Rade, Moosavi-Dezfooli: ICLR 2022.

The helper images x'' lie outside the ball on purpose. They are clipped to images, which the authors' code leaves out.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, MethodInfo, Passes, Training, lazy_imports
from robflat_bench.methods.trades import TRADES, TRADESParams

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F


class HATParams(TRADESParams):
    """beta: weight of the divergence term. h: how far the helper images go along the perturbation, 1 being the
    adversarial image. gamma: weight of their cross-entropy."""

    beta: float = Field(default=2.5, ge=0)
    h: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=0.5, ge=0)


INFO = MethodInfo(
    name="hat",
    summary="TRADES plus images beyond the ball, labelled by a standard network",
    factory=f"{__name__}:HAT",
    params=HATParams,
    citation=(
        "Rade, Moosavi-Dezfooli: Reducing excessive margin to achieve a better accuracy vs. robustness "
        "trade-off. ICLR 2022"
    ),
    attack=Passes("T + 2", "T"),
    loss=Passes("4", "3"),
    helpers={"standard": "standard"},
)


class HAT(TRADES):
    """Three forwards, each of which updates BN statistics: x, x', x''; the fourth is the standard network's."""

    params: HATParams

    def setup(self, training: Training) -> None:
        self.standard = training.helpers["standard"]

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        loss = super().loss(model, batch, x_adv)
        beyond = (batch.x + self.params.h * (x_adv - batch.x)).clamp(0, 1)
        with torch.no_grad():
            label = self.standard(x_adv).argmax(1)
        return loss + self.params.gamma * F.cross_entropy(model(beyond), label, reduction="none")
