"""The examples of a run: the copy of the dataset that serves a protocol, and the images that the protocol selects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from robflat_bench.config.protocol import Data, Protocol, Slice, SplitName
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import Dataset, Examples, ImageShape, Pool, Source, UsageError
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SPLITS: tuple[SplitName, ...] = ("train", "heldout", "test")


@dataclass(frozen=True)
class Splits:
    """The examples of a run, as uint8 in memory.

    Parameters
    ----------
    pools
        Split -> its images in canonical order.
    ref
        The dataset as records name it.
    shape
        Size, classes and statistics of the training images, for the backbone.
    spare
        Images of the training pool that no split uses. Methods that train on them use no label.
    """

    pools: Mapping[SplitName, Pool]
    ref: DatasetRef
    shape: ImageShape
    spare: Pool

    def available(self, split: SplitName) -> int:
        """The number of examples of a split."""
        return len(self.pools[split].y)

    def images(self, split: SplitName, device: str, count: int | None = None) -> Tensor:
        """The first `count` images, uint8 [N,C,H,W]."""
        return _images(self.pools[split].x[:count], device)

    def spare_images(self, device: str) -> Tensor:
        """The spare images, uint8 [M,C,H,W]."""
        return _images(self.spare.x, device)

    def labels(self, split: SplitName, device: str, count: int | None = None) -> Tensor:
        """The first `count` labels, int64 [N]."""
        import torch

        return torch.from_numpy(self.pools[split].y[:count].astype(np.int64)).to(device)

    def examples(self, split: SplitName, device: str, dtype: torch.dtype, count: int | None = None) -> Examples:
        """The first `count` examples: images as floats in [0,1], labels and canonical indices."""
        import torch

        index = torch.from_numpy(self.pools[split].index[:count]).to(device)
        return Examples(self.images(split, device, count).to(dtype) / 255, self.labels(split, device, count), index)


def _images(x: np.ndarray, device: str) -> Tensor:
    # A copy, not `contiguous()`: one-channel images would keep strides that put the network in channels last.
    import torch

    return torch.from_numpy(x).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format).to(device)


# ---------------------------------------------------------------------------------------------------------
# Selection
# ---------------------------------------------------------------------------------------------------------


def _taken(pool: Pool, mask: np.ndarray) -> Pool:
    """The images where mask bool [N] is true, in order of index."""
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(pool.index[rows], kind="stable")]
    return Pool(pool.x[rows], pool.y[rows], pool.index[rows])


def select(source: Source, wanted: Slice) -> Pool:
    """The examples of a slice in canonical order; UsageError if this copy lacks some of them or has one twice."""
    pool = source.pools.get(wanted.pool)
    if pool is None:
        raise UsageError(f"{source.origin} has no '{wanted.pool}' images")
    position = pool.index % wanted.modulo if wanted.modulo else pool.index
    found = _taken(pool, (position >= wanted.start) & (position < wanted.stop))
    if (twice := found.index[1:][np.diff(found.index) == 0]).size:
        raise UsageError(f"{source.origin} has {twice.size:,} '{wanted.pool}' images twice, the first at {twice[0]}")
    if (count := len(found.y)) != wanted.count:
        raise UsageError(
            f"{source.origin} holds {count:,} of the {wanted.count:,} '{wanted.pool}' images this protocol needs"
        )
    return found


def _repeated(pools: Mapping[SplitName, Pool], spare: Pool, origin: str, allowed: bool) -> int:
    """The number of images in two splits; UsageError at the first unless they are `allowed`.

    Images are compared by their pixels. Neither the digits nor CIFAR-10 has an image twice.
    """
    found = 0
    parts = {**{str(split): pool for split, pool in pools.items()}, "spare": spare}
    places: dict[bytes, tuple[str, int]] = {}
    for part, pool in parts.items():
        for image, index in zip(pool.x, pool.index.tolist(), strict=True):
            one, first = places.setdefault(hashlib.sha256(image.tobytes()).digest(), (part, index))
            if one == part or (one, part) == ("train", "spare"):
                continue
            found += 1
            if not allowed:
                raise UsageError(
                    f"{origin}: image {first} of '{one}' and image {index} of '{part}' have equal pixels, so training "
                    "would see images of the evaluation; remove one of them from the data"
                )
    return found


def _spare(pools: Mapping[SplitName, Pool], source: Source, data: Data) -> Pool:
    """The images of the training pool that no split uses, in canonical order."""
    pool = source.pools[data.train.pool]
    used = [pools[split].index for split in SPLITS if getattr(data, split).pool == data.train.pool]
    return _taken(pool, ~np.isin(pool.index, np.concatenate(used)))


def pixel_hash(pool: Pool) -> str:
    """SHA-256 of the pixels, uint8 NHWC, in order."""
    return hashlib.sha256(np.ascontiguousarray(pool.x).tobytes()).hexdigest()


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of x uint8 [N,H,W,C], on the scale [0,1], from exact counts.

    Networks divide by the standard deviation, so that of a constant channel counts as 1.
    """
    levels = np.arange(256) / 255
    found = []
    for channel in range(x.shape[-1]):
        count = np.bincount(x[..., channel].ravel(), minlength=256)
        mean = float(np.average(levels, weights=count))
        varies = np.count_nonzero(count) > 1
        found.append((mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=count))) if varies else 1.0))
    means, stds = zip(*found, strict=True)
    return means, stds


# ---------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------


def load_splits(registry: Registry, protocol: Protocol, root: str | None) -> Splits:
    """Load the dataset of a protocol from the first canonical copy, else from the fullest copy that suffices.

    Parameters
    ----------
    registry
        Finds the dataset.
    protocol
        Names the dataset and its splits.
    root
        Folder with the data (`--data`); None for the dataset's default.

    Raises
    ------
    UsageError
        If no copy suffices; it says what each copy lacks.
    """
    component = resolve(registry, "dataset", protocol.fixed.data.dataset)
    dataset: Dataset = component.build()
    fallback: Splits | None = None
    problems: list[str] = []
    for load in dataset.sources(root):
        try:
            splits = _splits(protocol.fixed.data, component.canonical, dataset, load())
        except UsageError as error:
            problems.append(str(error))
            continue
        if splits.ref.canonical:
            return splits
        fallback = fallback or splits
    if fallback is None:
        raise UsageError(f"{protocol.name} finds no usable {component.name}: " + "; ".join(problems))
    return fallback


def _splits(data: Data, name: str, dataset: Dataset, source: Source) -> Splits:
    slices: dict[SplitName, Slice] = {split: getattr(data, split) for split in SPLITS}
    pools = {split: select(source, wanted) for split, wanted in slices.items()}
    for one, other in combinations(SPLITS, 2):
        if slices[one].pool == slices[other].pool and np.intersect1d(pools[one].index, pools[other].index).size:
            raise UsageError(f"the splits '{one}' and '{other}' share images; make them disjoint")
    checksum = hashlib.sha256()
    for pool in pools.values():
        checksum.update(pixel_hash(pool).encode() + pool.y.astype(np.uint8).tobytes())
    pinned = {split: pixel_hash(pools[split]) for split in data.pixels}
    spare = _spare(pools, source, data)
    repeated = _repeated(pools, spare, source.origin, dataset.repeats)
    ref = DatasetRef(
        name=name,
        checksum=checksum.hexdigest(),
        spare=pixel_hash(spare) if len(spare.y) else "",
        canonical=pinned == data.pixels and dataset.canonical(source),
        origin=source.origin + (f"; {repeated:,} images are in two splits" if repeated else ""),
    )
    x = pools["train"].x
    mean, std = channel_statistics(x)
    shape = ImageShape(channels=x.shape[-1], size=x.shape[1], classes=source.classes, mean=mean, std=std)
    return Splits(pools, ref, shape, spare)
