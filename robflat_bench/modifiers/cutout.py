r"""Cutout:  a square of side round(fraction * size) in each image takes the mean colour of the dataset.

DeVries, Taylor: Improved regularization of convolutional neural networks with Cutout. arXiv 1708.04552, 2017.

The centre is uniform over all pixels, and the square is clipped at the borders. An even square reaches one pixel
further up and left of its centre than down and right. An odd side stays odd; the released code makes it even.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Number, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor


class CutoutParams(Params):
    fraction: Number = Field(default=0.5, gt=0, le=1, description="Side of the square, relative to the image's side.")


INFO = ModifierInfo(
    name="cutout",
    summary="a square hole in each image",
    factory=f"{__name__}:Cutout",
    params=CutoutParams,
    citation=cite("devries2017improved"),
    joints=("augment",),
    rank=20,
    sharded=True,
)


class Cutout(Modifier):
    """Covers a square of each image."""

    params: CutoutParams

    def setup(self, training: Training) -> None:
        self.side = round(self.params.fraction * training.shape.size)
        self.colour = torch.tensor([round(255 * mean) for mean in training.shape.mean], dtype=torch.uint8)

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        rows, columns = (self._covered(size, count, source).to(images.device) for size in (height, width))
        hole = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(hole, self.colour.to(images.device)[:, None, None], images)

    def _covered(self, size: int, count: int, source: torch.Generator) -> Tensor:
        """Which of `size` positions the square of each image covers: bool [count,size]."""
        first = torch.randint(size, (count, 1), generator=source) - self.side // 2
        position = torch.arange(size)
        return (first <= position) & (position < first + self.side)
