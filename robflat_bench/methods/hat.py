r"""HAT:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta KL(p(x_i) || p(x_i')) + \gamma \ell_CE(f(x_i''), y_i'') ],
x'' = clip_{[0,1]}( x + h (x' - x) ),  y'' = argmax_k f_std(x')_k  of a network trained without an adversary;
x' as TRADES.   Rade, Moosavi-Dezfooli: ICLR 2022.

The helper images x'' lie outside the ball on purpose. They are clipped to images, which the authors' code leaves out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.core.method import Batch, Training
from robflat_bench.methods import HATParams
from robflat_bench.methods.trades import TRADES


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
