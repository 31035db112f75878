"""Folders of images, one folder for each class: `train/cat/1.png`, `test/dog/2.jpg`.

Classes are the names of the folders of the first pool, in alphabetical order; positions count images in order of class
and file name. Images are PNG or JPEG, all of one size: none is resized, and a grey image counts as a colour image of
three equal channels. An image is measured before it is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from robflat_bench.core import Dataset, DatasetInfo, Params, Pool, Source, lazy_imports
from robflat_bench.data.parquet_dataset import MAX_DECODED, Below

with lazy_imports():
    import numpy as np

    from robflat_bench.core.files import read_regular
    from robflat_bench.data.cache import cached
    from robflat_bench.data.layouts import Form, checked, refused, refusing
    from robflat_bench.data.own_folder import root_folder, within
    from robflat_bench.data.parquet import decode_image

MAX_FILE = 2**24
"""Bytes of one image file."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class ImageFolderParams(Params):
    test: Below = Field(default="test", description="Folder of the pool test, below --data, with a folder per class.")
    train: Below = Field(default="", description='Folder of the pool train; "": there is none.')
    size: int = Field(default=32, ge=1, le=1024, description="Height and width of every image, in pixels.")
    channels: Literal[1, 3] = Field(default=3, description="1: grey images. 3: colour; grey ones are repeated.")


INFO = DatasetInfo(
    name="image-folder",
    summary="your PNG and JPEG files, a folder for each class; from --data DIR",
    factory=f"{__name__}:ImageFolder",
    params=ImageFolderParams,
)


class ImageFolder(Dataset):
    """Pools "test" and, where it is named, "train"; hidden files are left out."""

    params: ImageFolderParams

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """The one copy at `root` (else $ROBFLAT_BENCH_DATA); UsageError where a named folder is not there."""
        folder, p = root_folder(root, "image-folder"), self.params
        pools = {pool: within(folder, name) for pool, name in {"train": p.train, "test": p.test}.items() if name}
        return [lambda: self._load(folder, pools)]

    def canonical(self, source: Source) -> bool:
        """False: no hash of the canonical pixels is known here."""
        return False

    def _load(self, folder: Path, places: dict[str, Path]) -> Source:
        classes = _classes(next(iter(places.values())))
        pools = {pool: self._pool(pool, place, classes) for pool, place in places.items()}
        texts = [f"{self.params.model_dump()[pool]} ({len(found.y):,} images)" for pool, found in pools.items()]
        return Source(pools, len(classes), origin=f"image-folder {folder.resolve().name}/{' + '.join(texts)}")

    def _pool(self, pool: str, place: Path, classes: Sequence[str]) -> Pool:
        if unknown := sorted({*_classes(place)} - {*classes}):
            raise refused(place / unknown[0], "the other pool has no such class")
        files = [(label, path) for label, name in enumerate(classes) for path in _images(place, name)]
        p = self.params
        form = Form("image-folder", p.size, p.channels, len(classes), {pool: MAX_DECODED // (p.size**2 * p.channels)})
        if not files or len(files) > form.limits[pool]:
            raise refused(place, f"{len(files):,} images, not 1 to {form.limits[pool]:,}")

        def decoded() -> dict[str, np.ndarray]:
            x = np.empty((len(files), *form.shape), np.uint8)
            for row, (_, path) in enumerate(files):
                with refusing(path, Exception):  # PIL's decoders raise nearly anything on damaged images
                    x[row] = decode_image(read_regular(path, MAX_FILE), form, grey=True)
            return vars(checked(x, np.array([label for label, _ in files]), np.arange(len(files)), pool, form))

        content = hashlib.sha256(repr((form.shape, classes)).encode())
        for label, path in files:
            with refusing(path, OSError):
                content.update(f"{label} ".encode() + hashlib.sha256(read_regular(path, MAX_FILE)).digest())
        name = f"imagefolder-{pool}-{content.hexdigest()}"
        return Pool(**cached(name, decoded, lambda arrays: checked(**arrays, split=pool, form=form)))


def _classes(place: Path) -> list[str]:
    """The names of the class folders, in alphabetical order."""
    found = sorted(path.name for path in place.glob("[!.]*") if path.is_dir())
    if not 2 <= len(found) <= 256:
        raise refused(place, f"{len(found)} class folders, not 2 to 256")
    return found


def _images(place: Path, name: str) -> list[Path]:
    """The image files of a class; UsageError for a file of another kind, or a link out of the pool's folder."""
    found = sorted((place / name).glob("[!.]*"))
    for path in found:
        if path.suffix.lower() not in SUFFIXES:
            raise refused(path, "it is no .png, .jpg or .jpeg file")
        if not path.resolve().is_relative_to(place.resolve()):
            raise refused(path, f"it is a link out of {place}")
    return found
