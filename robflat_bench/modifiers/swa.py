r"""SWA:  \bar w_n = \bar w_{n-1} + (w_n - \bar w_{n-1}) / n,  over the weights at the ends of epochs from `start` on.

w_n are the weights chosen before: the network's, or with EMA its averages. Until then these are evaluated. With
`calibrate`, BN statistics at \bar w are estimated anew by one pass of the clean training images in train mode (each
batch of images counts the same); without, they are those given. The network trains on as if there were none.
Passes: the calibration is part of training, and the budget counts it: one forward per training image and epoch,
beside what an update costs.   Izmailov et al.: UAI 2018; average and calibration are torch's.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Moment, Params, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.optim.swa_utils import get_swa_multi_avg_fn, update_bn


class SWAParams(Params):
    """start: the fraction of training after which epochs are averaged. calibrate: whether batch normalisation
    statistics are estimated anew at the average, on the clean training images."""

    start: float = Field(default=0.5, ge=0, le=1)
    calibrate: bool = True


INFO = ModifierInfo(
    name="swa",
    summary="evaluates the equal average of the weights of late epochs",
    factory=f"{__name__}:SWA",
    params=SWAParams,
    citation="Izmailov et al.: Averaging weights leads to wider optima and better generalization. UAI 2018",
    joints=("model",),
    rank=30,
)


class SWA(Modifier):
    """The model is restored from a copy, bit for bit, after the calibration."""

    params: SWAParams

    def setup(self, training: Training) -> None:
        self.images = training.images
        self.epochs = 0
        self.average = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        if moment.progress < self.params.start:
            return weights
        get_swa_multi_avg_fn()(list(self.average.values()), [weights[name] for name in self.average], self.epochs)
        self.epochs += 1
        averaged = weights | {name: tensor.clone() for name, tensor in self.average.items()}
        return self._calibrated(model, averaged) if self.params.calibrate else averaged

    def _calibrated(self, model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        update_bn(self.images(), model)
        calibrated = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(own)
        return calibrated

    def state_dict(self) -> dict[str, Tensor]:
        return {"epochs": torch.tensor(self.epochs)} | {f"average.{name}": t for name, t in self.average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.epochs = int(state["epochs"])
        for name, tensor in self.average.items():
            tensor.copy_(state[f"average.{name}"])
