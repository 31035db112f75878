r"""Unlabelled images:  the last int(ratio B) examples of a batch are unlabelled images u with y = argmax_k f_std(u)_k

Carmon et al.: Unlabeled data improves adversarial robustness. NeurIPS 2019 (pseudo-labels);
Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021 (this mixture).

The images are drawn with replacement from those of the training pool that the protocol leaves over. f_std is a network
that standard training has trained first. It labels the images once, as they are; in a batch they are augmented,
attacked and learned as the others. A step costs no more than without them.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Number, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from robflat_bench.core.batching import MEMORY_BATCH


class UnlabeledParams(Params):
    ratio: Number = Field(default=0.7, gt=0, lt=1, description="Fraction of each batch that is unlabelled.")


INFO = ModifierInfo(
    name="unlabeled",
    summary="most of each batch are further images, labelled by a standard network",
    factory=f"{__name__}:Unlabeled",
    params=UnlabeledParams,
    citation=cite("carmon2019unlabeled"),
    joints=("batch",),
    rank=10,
    helpers={"standard": "standard"},
    extra_data=True,
    sharded=True,
)


class Unlabeled(Modifier):
    """Replaces the end of each batch by pseudo-labelled images."""

    params: UnlabeledParams

    def setup(self, training: Training) -> None:
        self.images, helper = training.spare(), training.helpers["standard"]
        like = next(helper.parameters())
        with torch.no_grad():
            parts = [helper(part.to(like.dtype) / 255).argmax(1) for part in self.images.split(MEMORY_BATCH)]
        self.labels = torch.cat(parts)

    def batch(self, batch: Batch) -> Batch:
        count = int(self.params.ratio * len(batch.x))
        if count == 0:
            return batch
        drawn = torch.randint(len(self.images), (count,), generator=batch.moment.random("unlabeled"))
        images, labels = (rows[drawn.to(rows.device)] for rows in (self.images, self.labels))

        def mixed(own: Tensor, others: Tensor) -> Tensor:
            return torch.cat([own[:-count], others.to(own)])

        return replace(
            batch,
            index=mixed(batch.index, torch.full_like(labels, -1)),
            x=mixed(batch.x, batch.augmented(images, "augment unlabeled")),
            y=mixed(batch.y, labels),
            target=mixed(batch.target, F.one_hot(labels, batch.target.shape[1])),
            views=None,
        )
