r"""Label smoothing:  t_i <- (1 - \tau) t_i + \tau / K

Szegedy et al.: Rethinking the Inception architecture for computer vision. CVPR 2016;
for adversarial training Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021.

The attack keeps the hard labels. Soft targets, noisy labels included, are smoothed as hard ones are.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Number, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    from torch import Tensor


class LabelSmoothingParams(Params):
    tau: Number = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Part of the target that all classes share equally. Stutz et al. try 0.01 to 0.5.",
    )


INFO = ModifierInfo(
    name="label-smoothing",
    summary="a part of each target goes to all classes equally",
    factory=f"{__name__}:LabelSmoothing",
    params=LabelSmoothingParams,
    citation=cite("szegedy2016rethinking"),
    joints=("target",),
    rank=20,
    sharded=True,
)


class LabelSmoothing(Modifier):
    """Mixes targets with the uniform distribution."""

    params: LabelSmoothingParams

    def target(self, batch: Batch) -> Tensor:
        tau = self.params.tau
        return (1 - tau) * batch.target + tau / batch.target.shape[1]
