"""Examples of one's own: tensors, a dataset or a loader in memory, as the test examples of an evaluation; and those of
a dataset that is not the protocol's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robflat_bench.config.protocol import Fixed, Slice, SplitName
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import Dataset, Examples, ImageShape, Pool, UsageError
from robflat_bench.data.splits import Splits
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import Registry

NAME = "own"
"""The dataset's name in records."""


@dataclass(frozen=True)
class OwnSplits(Splits):
    """Test examples given as tensors on the CPU; there are no others."""

    given: Examples

    def available(self, split: SplitName) -> int:
        return len(self.given) if split == "test" else 0

    def examples(self, split: SplitName, device: str, dtype: torch.dtype, count: int | None = None) -> Examples:
        if split != "test":
            raise UsageError(f"there are no {split} examples: data given from Python are test examples")
        part = self.given[slice(count)]
        return Examples(part.x.to(device, dtype), part.y.to(device), part.index.to(device))


def counted(fixed: Fixed, splits: Splits) -> Fixed:
    """A protocol's fixed part with as many test and training examples as there are."""

    def there(split: SplitName) -> Slice:
        wanted: Slice = getattr(fixed.data, split)
        return wanted.model_copy(update={"count": splits.available(split)})

    counts = {"test": there("test"), "train": there("train")}
    return fixed.model_copy(update={"data": fixed.data.model_copy(update=counts)})


def own_splits(data: Any, examples: int | None = None) -> OwnSplits:
    """Examples given from Python.

    Parameters
    ----------
    data : tuple, Dataset, DataLoader or iterable
        A pair (x, y) of images, float [N,C,H,W] in [0,1], and labels, integers [N]; a triple (x, y, index), with the
        positions of the images in their dataset, which key random numbers (otherwise 0, 1, ...); or a dataset, a
        loader or any iterable of such pairs, of single examples or of batches, read in its order.
    examples : int or None
        Only the first ones; no more are read from a dataset or loader than are needed.

    Raises
    ------
    UsageError
        If these are no images in [0,1] with labels; it says what to write instead.
    """
    x, y, index = _tensors(data, examples)
    if examples is not None and not 2 <= examples <= len(x):
        raise UsageError(f"examples={examples}: the data have {len(x):,}; ask for 2 at least and for no more")
    given = Examples(*(part[:examples].clone() for part in (_images(x), _labels(y, len(x)), index)))
    classes = int(given.y.max()) + 1
    mean, std = given.x.mean((0, 2, 3), dtype=torch.float64), given.x.double().std((0, 2, 3), correction=0)
    shape = ImageShape(
        channels=given.x.shape[1],
        size=given.x.shape[2],
        classes=classes,
        mean=tuple(mean.tolist()),
        std=tuple(torch.where(std > 0, std, 1).tolist()),
    )
    empty = Pool(np.empty((0, *given.x.shape[2:], given.x.shape[1]), np.uint8), np.empty(0, np.uint8), np.empty(0, int))
    origin = f"{len(given):,} images {'x'.join(map(str, given.x.shape[1:]))} given from Python"
    ref = DatasetRef(name=NAME, checksum=_checksum(given), canonical=False, origin=origin)
    return OwnSplits({}, ref, shape, empty, given)


def dataset_splits(registry: Registry, text: str, root: str | None, examples: int | None = None) -> OwnSplits:
    """The pool "test" of a dataset as the test examples of an evaluation, in place of the protocol's.

    Parameters
    ----------
    registry : Registry
        Finds the dataset.
    text : str
        A dataset with its parameters, such as "arrays(test=fog.npy, severity=3)".
    root : str or None
        Folder of its files (`--data`); None for its usual places.
    examples : int or None
        Only the first ones.

    Raises
    ------
    UsageError
        There is no such dataset, no copy of it, or none with a pool "test" that can be read.
    """
    component = resolve(registry, "dataset", text)
    dataset: Dataset = component.build()
    source = dataset.sources(root)[0]()
    pool = source.pools.get("test")
    if pool is None:
        raise UsageError(f"{source.origin} has no 'test' images; name a dataset that has, see `list datasets`")
    order = torch.from_numpy(np.argsort(pool.index, kind="stable"))
    x = torch.from_numpy(pool.x)[order].permute(0, 3, 1, 2).float().contiguous() / 255
    y, index = (torch.from_numpy(part.astype(np.int64))[order] for part in (pool.y, pool.index))
    found = own_splits((x, y, index), examples)
    ref = found.ref.model_copy(update={"name": component.canonical, "origin": f"test images of {source.origin}"})
    return replace(found, ref=ref, shape=replace(found.shape, classes=source.classes))


def _checksum(given: Examples) -> str:
    found = hashlib.sha256(f"{given.x.dtype}{tuple(given.x.shape)}".encode())
    for part in (given.x, given.y, given.index):
        found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def _tensors(data: Any, examples: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and positions, not yet validated."""
    if not _is_whole(data):
        batches = list(_batches(data, examples))
        if not batches:
            raise UsageError("there is no example in the data")
        data = tuple(_joined(name, parts) for name, *parts in zip(("images", "labels"), *batches, strict=True))
    if len(data) not in (2, 3):
        raise UsageError(f"the data have {len(data)} parts; give (images, labels), a Dataset or a DataLoader")
    x, y, *index = map(_tensor, data)
    if index and (index[0].shape != y.shape or index[0].is_floating_point()):
        raise UsageError(f"the positions are {index[0].dtype}{[*index[0].shape]}; give one integer for each image")
    return x, y, index[0].long() if index else torch.arange(len(x))


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """The images or the labels of all batches."""
    if len(shapes := {part.shape[1:] for part in parts}) > 1:
        one, other = sorted(map(list, shapes))[:2]
        raise UsageError(f"the {name} differ in shape, such as {one} and {other}; give them one shape")
    return torch.cat(parts)


def _tensor(part: Any) -> Tensor:
    """Images, labels or positions as a tensor on the CPU."""
    try:
        found = torch.as_tensor(part).detach()
        return (found if found.layout is torch.strided else found.to_dense()).cpu()
    except (TypeError, ValueError, RuntimeError):
        hint = "with torchvision's ToTensor() as the transform of the dataset, images are tensors in [0,1]"
        raise UsageError(f"a {type(part).__name__} among the data is no tensor; {hint}") from None


def _is_whole(data: Any) -> bool:
    """Whether the data are all images and all labels, in contrast to a list of pairs of one image and its label."""
    return isinstance(data, tuple) or (isinstance(data, list) and len(getattr(next(iter(data), None), "shape", ())) > 2)


def _batches(data: Any, examples: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of images [B,...] and labels [B] of a loader, of a dataset or of batches, until there are enough."""
    loader = isinstance(data, torch.utils.data.DataLoader)
    if isinstance(data, str | Mapping) or not (loader or isinstance(data, Iterable | torch.utils.data.Dataset)):
        raise UsageError(f"a {type(data).__name__} holds no examples; give (images, labels), a Dataset or a DataLoader")
    found = 0
    for item in _read(data) if loader else _items(data):
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise UsageError(
                f"the data yield a {type(item).__name__}, not pairs (images, labels); wrap them, e.g. "
                "[(row['img'], row['label']) for row in data]"
            )
        x, y = map(_tensor, item[:2])
        batch = loader or (x.ndim == 4 and y.shape == x.shape[:1])
        if not batch or y.ndim == 0:  # a loader with batch_size=None yields single items too
            x, y = x[None], y[None]
        yield x, y
        found += len(x)
        if examples is not None and found >= examples:
            return


def _read(loader: torch.utils.data.DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader, whose random generators are afterwards as before."""
    owners = (loader, loader.sampler, loader.batch_sampler)
    found = {id(one): one for one in (getattr(owner, "generator", None) for owner in owners) if one is not None}
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield from loader
    finally:
        for generator, state in states:
            generator.set_state(state)


def _items(data: Any) -> Iterable[Any]:
    """The items of a dataset, which may know its length and not its end."""
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return map(data.__getitem__, range(len(data)))
    return data  # type: ignore[no-any-return]


def _images(x: Tensor) -> Tensor:
    """The images as given; UsageError unless they are floats [N,C,H,W] in [0,1]."""
    shape = list(x.shape)
    if x.dtype == torch.uint8:
        raise UsageError("the images are uint8; give floats in [0,1]: x / 255")
    if x.ndim != 4 or 0 in shape:
        hint = "x[:, None] adds a channel" if x.ndim == 3 else "give [N,C,H,W]"
        raise UsageError(f"the images have the shape {shape}; {hint}")
    if shape[1] > 4 and shape[3] <= 4:
        raise UsageError(f"the images have the shape {shape}, channels last; give x.permute(0, 3, 1, 2)")
    if not x.is_floating_point():
        raise UsageError(f"the images are {x.dtype}; give floats in [0,1]")
    x = x if x.dtype == torch.float64 else x.float()
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise UsageError(
            f"the pixels go from {low:.4g} to {high:.4g}; attacks need images in [0,1]. Give them unnormalised, and "
            "the normalisation as normalize=(mean, std)"
        )
    return x


def _labels(y: Tensor, count: int) -> Tensor:
    """The labels as int64; UsageError unless they are one class number for each image."""
    if y.shape != (count,) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UsageError(f"the labels are {y.dtype}{list(y.shape)}; give one integer for each of the {count:,} images")
    y = y.long()
    if int(y.min()) < 0:
        raise UsageError(f"the label {int(y.min())} is no class; give 0, 1, ..., K-1")
    return y
