r"""Unlabelled images:  the last int(ratio B) examples of each batch are images u without a label, drawn with
replacement from those that the protocol leaves over, with  y = argmax_k f_std(u)_k  of a network trained first by
standard training. They are augmented, attacked and learned as the others.

The mixture is that of Stutz et al.: ICCV 2021; pseudo-labels: Carmon et al.: NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from robflat_bench.core import Batch, Modifier, ModifierInfo, Number, Params, Training, lazy_imports

with lazy_imports():
    import torch
    from torch import Tensor
    from torch.nn import functional as F


class UnlabeledParams(Params):
    """ratio: the fraction of each batch that is unlabelled."""

    ratio: Number = Field(default=0.7, gt=0, lt=1)


INFO = ModifierInfo(
    name="unlabeled",
    summary="most of each batch are further images, labelled by a standard network",
    factory=f"{__name__}:Unlabeled",
    params=UnlabeledParams,
    citation="Carmon et al.: Unlabeled data improves adversarial robustness. NeurIPS 2019",
    joints=("batch",),
    rank=10,
    helpers={"standard": "standard"},
    extra_data=True,
)


class Unlabeled(Modifier):
    """Labels are made once, on the images as they are. A step costs no more than without."""

    params: UnlabeledParams

    def setup(self, training: Training) -> None:
        self.images = training.spare()
        helper = training.helpers["standard"]
        dtype = next(helper.parameters()).dtype
        with torch.no_grad():
            self.labels = torch.cat([helper(part.to(dtype) / 255).argmax(1) for part in self.images.split(250)])

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
