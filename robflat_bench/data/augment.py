"""Augmentation of image tensors on their own device, with explicit randomness.

Random integers are drawn on the generator's device, so one CPU generator gives the same crops on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def random_crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad images with zeros and crop each at its own random offset.

    Parameters
    ----------
    x
        Images [B,C,H,W] of any dtype.
    padding
        Pixels on each side. Offsets are uniform on 0..2*padding.
    generator
        Draws the rows of all images, then the columns.
    """
    batch, _, height, width = x.shape
    offsets = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=generator.device)
    rows, columns = offsets.to(x.device)
    # A view [B,C,2p+1,2p+1,H,W] of every possible crop; only the chosen ones are copied.
    crops = F.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(batch, device=x.device), :, rows, columns]


def random_flip(x: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of x [B,C,H,W], of any dtype, left to right with probability 1/2."""
    mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(mirrored.to(x.device).bool(), x.flip(3), x)


AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": lambda x, generator: x,
    "flip": random_flip,
    "crop-flip": lambda x, generator: random_flip(random_crop(x, 4, generator), generator),
}
"""Name in a recipe -> augmentation of [B,C,H,W]. "crop-flip" is the usual one of CIFAR: a crop after padding by 4, then
a flip. "none" draws no random numbers."""
