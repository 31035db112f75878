r"""CutMix:  x_i <- M x_{i-1} + (1 - M) x_i,   t_i <- m t_{i-1} + (1 - m) t_i,   m = mean(M).

M is one box for the whole batch, its area 1 - \lambda before it is clipped at the borders, \lambda ~
Beta(\alpha, \alpha); the partner is the example before, in an order that is shuffled anyway. Box, mixing and
draws are torchvision's.   Yun et al.: ICCV 2019; for adversarial training Rebuffi et al.: NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torchvision.transforms import v2

from robflat_bench.core.method import Batch, Modifier
from robflat_bench.core.randomness import global_state
from robflat_bench.modifiers import CutMixParams


class CutMix(Modifier):
    """The attack needs one label: that with the largest share of the mixed target. Other views of the images
    would not be mixed, so there are none. A mixture is none of the training examples: its index is -1."""

    params: CutMixParams

    def batch(self, batch: Batch) -> Batch:
        with global_state(batch.moment.random("cutmix")):
            x, target = v2.CutMix(alpha=self.params.alpha)(batch.x, batch.target)
        index = torch.full_like(batch.index, -1)
        return replace(batch, index=index, x=x, y=target.argmax(1), target=target, views=None)
