r"""Label smoothing:  t_i <- (1 - \tau) t_i + \tau / K;  the attack keeps the hard labels.

Szegedy et al.: CVPR 2016; for adversarial training as in Stutz et al.: ICCV 2021.
"""

from __future__ import annotations

from torch import Tensor

from robflat_bench.core.method import Batch, Modifier
from robflat_bench.modifiers import LabelSmoothingParams


class LabelSmoothing(Modifier):
    """Soft targets, a noisy label's included, are smoothed as hard ones."""

    params: LabelSmoothingParams

    def target(self, batch: Batch) -> Tensor:
        tau = self.params.tau
        return (1 - tau) * batch.target + tau / batch.target.shape[1]
