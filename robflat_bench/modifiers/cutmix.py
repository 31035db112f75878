r"""CutMix:  x_i <- M x_{i-1} + (1 - M) x_i,   t_i <- m t_{i-1} + (1 - m) t_i,   m = mean(M)

Yun et al.: CutMix: Regularization strategy to train strong classifiers with localizable features. ICCV 2019;
for adversarial training Rebuffi et al.: Data augmentation can improve robustness. NeurIPS 2021.

M is one box for the whole batch. Its area is 1 - \lambda before it is clipped at the borders, and \lambda is drawn
from Beta(\alpha, \alpha). The partner of an example is the one before it, in an order that is shuffled anyway. Box,
mixing and draws are torchvision's. The attack needs one label and gets the class with the largest share of the mixed
target. Mixed images have no other views, and are not training examples: their index is -1. Under `recipe.shards`, each
shard is mixed alone, with a box of its own.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Params, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torchvision.transforms import v2

    from robflat_bench.core.randomness import global_state


class CutMixParams(Params):
    alpha: float = Field(
        default=1.0, gt=0, description="Areas are drawn from Beta(alpha, alpha); 1 is uniform, as published."
    )


INFO = ModifierInfo(
    name="cutmix",
    summary="pastes a box of another image into each, and mixes the targets by area",
    factory=f"{__name__}:CutMix",
    params=CutMixParams,
    citation=cite("yun2019cutmix"),
    joints=("batch",),
    rank=20,
    sharded=True,
)


class CutMix(Modifier):
    """Mixes each example with the one before it."""

    params: CutMixParams

    def batch(self, batch: Batch) -> Batch:
        with global_state(batch.moment.random("cutmix")):
            x, target = v2.CutMix(alpha=self.params.alpha)(batch.x, batch.target)
        index = torch.full_like(batch.index, -1)
        return replace(batch, index=index, x=x, y=target.argmax(1), target=target, views=None)
