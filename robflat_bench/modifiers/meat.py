r"""MEAT:  \bar w_j = median( w_1j, ..., w_nj ) of each weight j,   over the ends of epochs from `start` on

Hu et al.: MEAT: Median-ensemble adversarial training for improving robustness and generalization. ICASSP 2024.

Everything but the median is as in `swa`, the calibration of BN statistics and its cost included. The median of an even
number is the mean of the middle two, as in the released code. Published revisions of that code differ: one that we
read never raises its number of snapshots, so it evaluates the first of them.

A median needs all its values: memory and every saved state of an interrupted run hold the weights of each epoch from
`start` on. In 200 epochs that is 76 times the size of the network, unless `start` is later.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import ModifierInfo, Number, Training, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.modifiers.swa import SWA, SWAParams

with lazy_imports():
    import torch
    from torch import Tensor


class MEATParams(SWAParams):
    start: Number = Field(
        default=75 / 120,
        ge=0,
        le=1,
        description="Fraction of training from which epochs count. Default: the released code's, epoch 75 of 120.",
    )


INFO = ModifierInfo(
    name="meat",
    summary="evaluates the median of each weight over late epochs",
    factory=f"{__name__}:MEAT",
    params=MEATParams,
    citation=cite("hu2024meat"),
    joints=("model",),
    rank=30,
    sharded=True,
)


class MEAT(SWA):
    """SWA with medians; `snapshots` has the weights of each epoch, one tensor [n,...] per name."""

    params: MEATParams
    saved = ("snapshots",)

    def setup(self, training: Training) -> None:
        super().setup(training)
        self.snapshots = {name: tensor.new_empty(0, *tensor.shape) for name, tensor in self.average.items()}

    def included(self, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
        self.snapshots = {name: torch.cat([kept, chosen[name][None]]) for name, kept in self.snapshots.items()}
        return {name: median(kept) for name, kept in self.snapshots.items()}


def median(values: Tensor) -> Tensor:
    """The median over the first dimension; the mean of the middle two of an even number. torch.median has the lower."""
    ordered, count = values.sort(0).values, len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
