"""Small pictures of the test images, for data whose licence lets them be shown."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CREDITS = {"digits": "Alpaydin and Kaynak: Optical Recognition of Handwritten Digits, UCI, CC BY 4.0"}
"""Dataset -> whom its licence asks to name. CIFAR-10 has no licence, so its images are not shown."""
ACROSS = 40
"""Pictures in a line of the sheet."""


class Thumbnails(NamedTuple):
    """Test images on one sheet, in their order, `ACROSS` a line.

    sheet : PNG. width, height : of one image, in pixels. labels : true class of each image. credit : see `CREDITS`.
    """

    sheet: bytes
    width: int
    height: int
    labels: tuple[int, ...]
    credit: str

    @property
    def layout(self) -> dict[str, Any]:
        """What a page needs beside the sheet."""
        return {"width": self.width, "height": self.height, "across": ACROSS, "labels": self.labels}


def thumbnails(images: NDArray[np.uint8], labels: NDArray[np.integer], dataset: str) -> Thumbnails:
    """The sheet of images uint8 [N,H,W,C] with labels [N]. KeyError for a dataset that is not in `CREDITS`."""
    from PIL import Image

    count, height, width, channels = images.shape
    lines = -(-count // ACROSS)
    padded = np.zeros((lines * ACROSS, height, width, channels), np.uint8)
    padded[:count] = images
    sheet = padded.reshape(lines, ACROSS, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(lines * height, ACROSS * width, channels)
    out = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(out, "PNG", optimize=True)
    return Thumbnails(out.getvalue(), width, height, tuple(map(int, labels)), CREDITS[dataset])
