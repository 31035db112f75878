r"""SWA:  \bar w_n = \bar w_{n-1} + (w_n - \bar w_{n-1}) / n,   over the weights at the ends of epochs from `start` on

Izmailov et al.: Averaging weights leads to wider optima and better generalization. UAI 2018.

w_n are the weights chosen before: the network's, or EMA's average. Until `start` these are evaluated. With
`calibrate`, BN statistics at \bar w are estimated anew by one pass of the clean training images in train mode, where
each batch of images counts the same; without it, they are those of w_n. The network trains on as if there were no
average: it is restored from a copy, bit for bit, after the calibration. Average and calibration are torch's.

The calibration is part of training, and the budget counts it: one forward pass per training image and epoch, on top of
the cost of the updates.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Moment, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim.swa_utils import get_swa_multi_avg_fn, update_bn

    from robflat_bench.numerics.weights import holding


class SWAParams(Params):
    start: float = Field(default=0.5, ge=0, le=1, description="Fraction of training from which epochs are averaged.")
    calibrate: bool = Field(default=True, description="Whether BN statistics are estimated anew at the average.")


INFO = ModifierInfo(
    name="swa",
    summary="evaluates the equal average of the weights of late epochs",
    factory=f"{__name__}:SWA",
    params=SWAParams,
    citation=cite("izmailov2018averaging"),
    joints=("model",),
    rank=30,
    sharded=True,
)


class SWA(Modifier):
    """Averages the weights of late epochs."""

    params: SWAParams
    saved: ClassVar[tuple[str, ...]] = ("epochs", "average")

    def setup(self, training: Training) -> None:
        self.images = training.images
        self.epochs = torch.tensor(0)
        every = training.model.named_parameters(remove_duplicate=False)  # each name of a tied parameter is loaded
        self.average = {name: parameter.detach().clone() for name, parameter in every}

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        if moment.progress < self.params.start:
            return weights
        averaged = weights | self.included({name: weights[name] for name in self.average})
        return self._calibrated(model, averaged) if self.params.calibrate else averaged

    def included(self, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
        """The average of the weights of all epochs so far, with those of one more."""
        get_swa_multi_avg_fn()([*self.average.values()], [*chosen.values()], int(self.epochs))
        self.epochs += 1
        return {name: tensor.clone() for name, tensor in self.average.items()}

    def _calibrated(self, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        with holding(model, weights, "the average"):
            update_bn(self.images(), model)
            return {name: tensor.clone() for name, tensor in model.state_dict().items()}
