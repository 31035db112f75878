"""Augmentation of image tensors where they lie, with explicit randomness.

Random integers are drawn on the generator's device: one CPU generator gives the same crops everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def random_crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """x [B,C,H,W], any dtype, padded with zeros by `padding` pixels, each image cropped at its own offset.

    Offsets are uniform on 0..2*padding, rows of all images drawn before columns.
    """
    batch, _, height, width = x.shape
    offsets = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=generator.device)
    rows, columns = offsets.to(x.device)
    # A view [B,C,2p+1,2p+1,H,W] of every possible crop; only the chosen ones are copied.
    crops = F.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(batch, device=x.device), :, rows, columns]


def random_flip(x: Tensor, generator: Generator) -> Tensor:
    """x [B,C,H,W], any dtype; each image mirrored left to right with probability 1/2."""
    mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=generator.device)
    return torch.where(mirrored.to(x.device).bool(), x.flip(3), x)


def unchanged(x: Tensor, generator: Generator) -> Tensor:
    """x itself; draws nothing."""
    return x


def crop_flip(x: Tensor, generator: Generator) -> Tensor:
    """The usual augmentation of CIFAR: a crop after padding by 4, then a flip."""
    return random_flip(random_crop(x, 4, generator), generator)


AUGMENTATIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "none": unchanged,
    "flip": random_flip,
    "crop-flip": crop_flip,
}
