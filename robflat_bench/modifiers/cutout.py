r"""Cutout:  one square of side round(fraction * size) in each image takes the data set's mean colour.

Its centre is uniform over all pixels and the square is clipped at the borders. An odd side is kept, where the
authors' code makes it even.   DeVries, Taylor: arXiv 1708.04552.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robflat_bench.core.method import Modifier, Training
from robflat_bench.modifiers import CutoutParams


class Cutout(Modifier):
    """An even square reaches one pixel further up and left of its centre than down and right."""

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
        """Which of `size` positions the hole of each image covers: bool [count,size]."""
        first = torch.randint(size, (count, 1), generator=source) - self.side // 2
        position = torch.arange(size)
        return (first <= position) & (position < first + self.side)
