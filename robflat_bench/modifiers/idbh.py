r"""IDBH:  flip, CropShift, one change of colour or shape, and a random hole, in place of the recipe's augmentation.

    CropShift:  s ~ U{0..S},  w ~ U{0..s},  h = s - w;  the image loses w columns and h rows in all, on random sides,
                and what is left moves to a random place of a black image of the original size.

    change:     one of eight, with equal probability: saturation or sharpness times U(0.1, 1.9), brightness or contrast
                times U(0.5, 1.9), autocontrast, equalize, a shear along one axis whose tangent is that of U(0.05, 0.15)
                radians, a rotation by 1 to 10 degrees; the last two to either side, nearest pixel, black outside.

    hole:       random erasing of 2 to 33 % of the area, black, with probability 1/2 (weak) or 1 (strong).

Li, Spratling: Data augmentation alone can improve adversarial training. ICLR 2023.

Constants are those of the released code for CIFAR-10, where S is 10 of 32 pixels. Here S scales with the image and is
rounded: 2 of the 8 pixels of a digit. Changes and hole are torchvision's on bytes; the released code applies them to
PIL images, which round differently. On grey images saturation changes nothing. Flips mirror digits too, as the authors
do on SVHN. `recipe.augmentation` is skipped, because a second crop would be neither the recipe's nor the authors'.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from robflat_bench.core import Modifier, ModifierInfo, Number, Params, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    from robflat_bench.core.randomness import global_state
    from robflat_bench.data.augment import random_flip


class IDBHParams(Params):
    strength: Literal["weak", "strong"] = Field(
        default="weak", description="How many images get a hole: half of them (weak), or all (strong)."
    )
    shift: Number = Field(
        default=10 / 32,
        ge=0,
        lt=1,
        description="Rows and columns that CropShift removes at most, together, relative to the image's side (S). "
        "Default: the released code's.",
    )


INFO = ModifierInfo(
    name="idbh",
    summary="flip, crop and shift, a change of colour or shape, and a hole, in place of the recipe's augmentation",
    factory=f"{__name__}:IDBH",
    params=IDBHParams,
    citation=cite("li2023data"),
    joints=("augment",),
    replaces_augmentation=True,
    sharded=True,
)


class IDBH(Modifier):
    """Augments image by image, because torchvision draws one change per call."""

    params: IDBHParams

    def setup(self, training: Training) -> None:
        self.most = round(self.params.shift * training.shape.size)
        self.hole = v2.RandomErasing(p=0.5 if self.params.strength == "weak" else 1.0)

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        moved = crop_shift(random_flip(images, source), self.most, source)
        with global_state(source):
            return torch.stack([self.hole(changed(image)) for image in moved])


def crop_shift(images: Tensor, most: int, source: torch.Generator) -> Tensor:
    """Remove up to `most` rows and columns, together, of each image, and move the rest.

    Parameters
    ----------
    images
        [B,C,H,W] of any dtype.
    most
        S, at most the side of an image.
    source
        Draws, for all images, s, w, the first column and row that stay, and the places where these go.
    """
    count, _, height, width = images.shape
    removed = uniform_integers(torch.full((count,), most), source)
    columns = uniform_integers(removed, source)
    rows = removed - columns
    first_column, first_row, left, top = (uniform_integers(n, source) for n in (columns, rows, columns, rows))
    row, shown_rows = (part.to(images.device) for part in _origin(height, rows, first_row, top))
    column, shown_columns = (part.to(images.device) for part in _origin(width, columns, first_column, left))
    which = torch.arange(count, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[which, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
    return moved * (shown_rows[:, None, :, None] & shown_columns[:, None, None, :])


def uniform_integers(highest: Tensor, source: torch.Generator) -> Tensor:
    """U{0..highest[i]} for each i, int64 [B]; highest is far below 2^53."""
    drawn = torch.rand(highest.shape, generator=source, dtype=torch.float64)
    return (drawn * (highest + 1)).long()


def _origin(size: int, removed: Tensor, first: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis: the position that each of `size` new positions shows, and whether it shows any; [B,size]."""
    place = torch.arange(size) - start[:, None]
    return (place + first[:, None]).clamp(0, size - 1), (place >= 0) & (place < size - removed[:, None])


def _shear(image: Tensor, amount: float, side: int, axis: int) -> Tensor:
    degrees = side * math.degrees(0.05 + 0.1 * amount)
    shear = [degrees, 0.0] if axis == 0 else [0.0, degrees]
    sheared: Tensor = F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, fill=[0.0])
    return sheared


CHANGES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "saturation": lambda image, amount, side, axis: F.adjust_saturation(image, 0.1 + 1.8 * amount),
    "brightness": lambda image, amount, side, axis: F.adjust_brightness(image, 0.5 + 1.4 * amount),
    "contrast": lambda image, amount, side, axis: F.adjust_contrast(image, 0.5 + 1.4 * amount),
    "sharpness": lambda image, amount, side, axis: F.adjust_sharpness(image, 0.1 + 1.8 * amount),
    "autocontrast": lambda image, amount, side, axis: F.autocontrast(image),
    "equalize": lambda image, amount, side, axis: F.equalize(image),
    "shear": _shear,
    "rotation": lambda image, amount, side, axis: F.rotate(image, side * (1.0 + int(10 * amount)), fill=[0.0]),
}
"""Name -> the change of an image, uint8 [C,H,W]. `amount` in [0,1) is the place of the factor or angle in its range,
`side` (1 or -1) the direction of a shear or a rotation; a shear moves pixels along rows (`axis` 0) or columns (1)."""


def changed(image: Tensor) -> Tensor:
    """The image, uint8 [C,H,W], after one of `CHANGES`, drawn from torch's global generator."""
    which, right, axis = (int(torch.randint(choices, ())) for choices in (len(CHANGES), 2, 2))
    amount = float(torch.rand((), dtype=torch.float64))
    return [*CHANGES.values()][which](image, amount, 1 if right else -1, axis)
