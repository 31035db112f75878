"""What the layouts of a dataset share: the form of its images, and the refusal of files that cannot hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robflat_bench.core import Pool, UsageError

DIGEST_ROWS = 1_000
"""Images that are copied at a time to be hashed."""
CLASSES = 10
SIZES = {"train": 50_000, "test": 10_000}
"""Split of CIFAR-10 -> number of images."""


@dataclass(frozen=True)
class Form:
    """What every image of a dataset has in common.

    Parameters
    ----------
    title
        The dataset's name in error messages.
    size
        Height and width.
    channels
        1 or 3.
    classes
        Number of classes; labels are 0, 1, ..., classes - 1.
    limits
        Split -> most images that it can have; positions lie below.
    """

    title: str
    size: int
    channels: int
    classes: int
    limits: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[H,W,C] of one image."""
        return self.size, self.size, self.channels


CIFAR10 = Form("CIFAR-10", 32, 3, CLASSES, SIZES)


@dataclass(frozen=True)
class Layout:
    """A form in which a dataset lies in a folder.

    Parameters
    ----------
    name
        Name in records.
    files
        Files that make a folder a copy, for error messages.
    count
        Folder -> number of images of the first split, without reading one; 0 if the copy cannot be read, None if the
        folder has no copy of this layout.
    read
        Folder and split -> the split's images; UsageError if a file is refused.
    """

    name: str
    files: str
    count: Callable[[Path], int | None]
    read: Callable[[Path, str], Pool]


def checked(x: np.ndarray, y: np.ndarray, index: np.ndarray, split: str, form: Form = CIFAR10) -> Pool:
    """The pool of these arrays; ValueError unless they have the form, each image at a position of its own."""
    if x.dtype != np.uint8 or x.shape[1:] != form.shape or not len(x):
        raise ValueError(f"images are {x.dtype} {list(x.shape)}, not uint8 [N, {', '.join(map(str, form.shape))}]")
    for name, values, size in (("label", y, form.classes), ("index", index, form.limits[split])):
        # Missing values make an array of objects.
        if values.shape != (len(x),) or values.dtype.kind not in "iu":
            raise ValueError(f"{name} is not one integer per image")
        if values.min() < 0 or values.max() >= size:
            raise ValueError(f"{name} is not in 0..{size - 1} ({values.min()} to {values.max()})")
    if len(np.unique(index)) < len(index):
        raise ValueError("two images have the same index")
    return Pool(x, y.astype(np.uint8), index.astype(np.int64))


def content_digest(pool: Pool) -> str:
    """SHA-256 of the pixels (uint8 NHWC), then the labels (uint8), in order of index."""
    order = np.argsort(pool.index, kind="stable")
    found = hashlib.sha256()
    for part in (pool.x, pool.y):
        for rows in np.array_split(order, max(1, len(order) // DIGEST_ROWS)):  # not all at once: it would be a copy
            found.update(part[rows].tobytes())
    return found.hexdigest()


def joined(paths: Sequence[Path], read: Callable[[str, Path, int], Pool], split: str, form: Form = CIFAR10) -> Pool:
    """The files of a split, one after the other. `read` takes split, file and the number of images before the file."""
    pools: list[Pool] = []
    for path in paths:
        pools.append(read(split, path, sum(len(pool.y) for pool in pools)))
    if len(pools) == 1:  # a copy of a large dataset would double its memory
        return pools[0]
    x, y, index = (np.concatenate([getattr(pool, name) for pool in pools]) for name in ("x", "y", "index"))
    with refusing(paths[0].parent, ValueError):
        return checked(x, y, index, split, form)


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------


def one_line(error: object) -> str:
    """An error's text on one line, at most 200 characters."""
    text = str(getattr(error, "strerror", None) or error)
    return " ".join(text.split())[:200] or type(error).__name__


def refused(path: Path, problem: str) -> UsageError:
    """The error that names a file and its problem."""
    return UsageError(f"{path}: {problem}; replace it, or name another folder with --data DIR")


@contextmanager
def refusing(path: Path, *errors: type[Exception], problem: str = "{}") -> Iterator[None]:
    """Turn these errors of the block into a refusal of the file; `problem` formats the error's text."""
    try:
        yield
    except errors as error:
        raise refused(path, problem.format(one_line(error))) from error


def check_size(path: Path, limit: int) -> None:
    """Refuse a file of more than `limit` bytes, before it is read."""
    if (size := path.stat().st_size) > limit:
        raise refused(path, f"{size:,} bytes, more than the {limit:,} it may have")
