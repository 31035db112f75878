r"""Label smoothing:  t_i <- (1 - \tau) t_i + \tau / K;  the attack keeps the hard labels.

Szegedy et al.: CVPR 2016; for adversarial training as in Stutz et al.: ICCV 2021.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Number, Params, lazy_imports

with lazy_imports():
    from torch import Tensor


class LabelSmoothingParams(Params):
    """tau: the share of the target that all classes have in equal parts."""

    tau: Number = Field(default=0.1, ge=0, lt=1)


INFO = ModifierInfo(
    name="label-smoothing",
    summary="a part of each target goes to all classes equally",
    factory=f"{__name__}:LabelSmoothing",
    params=LabelSmoothingParams,
    citation="Szegedy et al.: Rethinking the Inception architecture for computer vision. CVPR 2016",
    joints=("target",),
    rank=20,
)


class LabelSmoothing(Modifier):
    """Soft targets, a noisy label's included, are smoothed as hard ones."""

    params: LabelSmoothingParams

    def target(self, batch: Batch) -> Tensor:
        tau = self.params.tau
        return (1 - tau) * batch.target + tau / batch.target.shape[1]
