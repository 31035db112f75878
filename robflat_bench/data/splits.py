"""From a protocol and a folder to the examples of a run: which copy of the data, and which of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robflat_bench.config.protocol import Data, Protocol, Slice, SplitName
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import Dataset, Examples, ImageShape, Pool, Source, UsageError
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry

SPLITS: tuple[SplitName, ...] = ("train", "heldout", "test")


@dataclass(frozen=True)
class Splits:
    """The examples of a run in memory as uint8, what the record says of them, and what a backbone must fit."""

    pools: Mapping[SplitName, Pool]
    ref: DatasetRef
    shape: ImageShape
    spare: Pool
    """Images of the training pool that no split uses; who trains on them uses no label."""

    def images(self, split: SplitName, device: str, count: int | None = None) -> Tensor:
        """uint8 [N,C,H,W], the first `count`."""
        return _images(self.pools[split].x[:count], device)

    def spare_images(self, device: str) -> Tensor:
        """uint8 [M,C,H,W]."""
        return _images(self.spare.x, device)

    def labels(self, split: SplitName, device: str, count: int | None = None) -> Tensor:
        """int64 [N]."""
        return torch.from_numpy(self.pools[split].y[:count].astype(np.int64)).to(device)

    def examples(self, split: SplitName, device: str, dtype: torch.dtype, count: int | None = None) -> Examples:
        """The first `count` as floats in [0,1] with their canonical indices."""
        index = torch.from_numpy(self.pools[split].index[:count]).to(device)
        return Examples(self.images(split, device, count).to(dtype) / 255, self.labels(split, device, count), index)


def _images(x: np.ndarray, device: str) -> Tensor:
    # A copy, not `contiguous()`: one-channel images would keep strides that put the network in channels last.
    return torch.from_numpy(x).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format).to(device)


def select(source: Source, wanted: Slice) -> Pool:
    """The slice's examples in canonical order; UsageError where this copy lacks some of them."""
    pool = source.pools.get(wanted.pool)
    if pool is None:
        raise UsageError(f"{source.origin} has no '{wanted.pool}' images")
    position = pool.index % wanted.modulo if wanted.modulo else pool.index
    rows = np.flatnonzero((position >= wanted.start) & (position < wanted.stop))
    if len(rows) != wanted.count:
        raise UsageError(
            f"{source.origin} holds {len(rows):,} of the {wanted.count:,} '{wanted.pool}' images this protocol needs"
        )
    rows = rows[np.argsort(pool.index[rows], kind="stable")]
    return Pool(pool.x[rows], pool.y[rows], pool.index[rows])


def _spare(source: Source, data: Data) -> Pool:
    """What of the training pool no split uses, in canonical order."""
    pool = source.pools[data.train.pool]
    splits = (data.train, data.heldout, data.test)
    used = [select(source, wanted).index for wanted in splits if wanted.pool == data.train.pool]
    rows = np.flatnonzero(~np.isin(pool.index, np.concatenate(used)))
    rows = rows[np.argsort(pool.index[rows], kind="stable")]
    return Pool(pool.x[rows], pool.y[rows], pool.index[rows])


def pixel_hash(pool: Pool) -> str:
    """SHA-256 of the uint8 NHWC pixels in order."""
    return hashlib.sha256(np.ascontiguousarray(pool.x).tobytes()).hexdigest()


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N,H,W,C] on the scale [0,1], from exact counts."""
    levels = np.arange(256) / 255
    counts = [np.bincount(x[..., channel].ravel(), minlength=256) for channel in range(x.shape[-1])]
    means = [float(np.average(levels, weights=count)) for count in counts]
    stds = [
        float(np.sqrt(np.average((levels - mean) ** 2, weights=count)))
        for mean, count in zip(means, counts, strict=True)
    ]
    return tuple(means), tuple(stds)


def load_splits(registry: Registry, protocol: Protocol, root: str | None) -> Splits:
    """The first copy below `root` that is canonical, otherwise the fullest one that suffices, labelled so.

    Raises UsageError naming what is missing where no copy suffices.
    """
    component = resolve(registry, "dataset", protocol.fixed.data.dataset)
    dataset: Dataset = component.build()
    fallback: Splits | None = None
    problems: list[str] = []
    for load in dataset.sources(root):
        try:
            source = load()
            splits = _splits(protocol, component.name, dataset, source)
        except UsageError as error:
            problems.append(str(error))
            continue
        if splits.ref.canonical:
            return splits
        fallback = fallback or splits
    if fallback is None:
        raise UsageError(f"{protocol.name} finds no usable {component.name}: " + "; ".join(problems))
    return fallback


def _splits(protocol: Protocol, name: str, dataset: Dataset, source: Source) -> Splits:
    data = protocol.fixed.data
    pools: dict[SplitName, Pool] = {split: select(source, getattr(data, split)) for split in SPLITS}
    for one, other in (("train", "heldout"), ("train", "test"), ("heldout", "test")):
        same_pool = getattr(data, one).pool == getattr(data, other).pool
        if same_pool and len(np.intersect1d(pools[one].index, pools[other].index)):  # type: ignore[index]
            raise UsageError(f"the splits '{one}' and '{other}' share images; make them disjoint")
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(pixel_hash(pools[split]).encode())
        digest.update(pools[split].y.astype(np.uint8).tobytes())
    pinned = {split: pixel_hash(pools[split]) for split in data.pixels}
    canonical = pinned == data.pixels and dataset.canonical(source)
    spare = _spare(source, data)
    x = pools["train"].x
    mean, std = channel_statistics(x)
    return Splits(
        pools,
        DatasetRef(
            name=name,
            checksum=digest.hexdigest(),
            spare=pixel_hash(spare) if len(spare.y) else "",
            canonical=canonical,
            origin=source.origin,
        ),
        ImageShape(
            channels=x.shape[-1],
            size=x.shape[1],
            classes=source.classes,
            mean=mean,
            std=std,
        ),
        spare,
    )
