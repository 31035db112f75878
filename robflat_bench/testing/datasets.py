"""What datasets promise, where a copy of the data is on this machine: nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from robflat_bench.core import Dataset, Source, UsageError
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import Skipped, deterministic, expect, remembered


def _load(component: Component) -> tuple[Dataset, Source]:
    dataset: Dataset = component.build()
    try:
        return dataset, dataset.sources(None, download=False)[0]()
    except UsageError as error:
        raise Skipped(str(error)) from None


_loaded = remembered(_load)


def check_images(component: Component) -> None:
    """Every pool has images uint8 [N,H,W,C], H = W."""
    for name, pool in _loaded(component)[1].pools.items():
        right = pool.x.dtype == np.uint8 and pool.x.ndim == 4 and pool.x.shape[1] == pool.x.shape[2]
        expect(right, f"'{name}' images are {pool.x.dtype} {pool.x.shape}, not uint8 [N,H,W,C] with H = W")


def check_labels(component: Component) -> None:
    """Every image has one label, uint8 [N], below the number of classes."""
    source = _loaded(component)[1]
    for name, pool in source.pools.items():
        expect(pool.y.dtype == np.uint8 and pool.y.shape == pool.x.shape[:1], f"'{name}' labels are not uint8 [N]")
        expect(int(pool.y.max()) < source.classes, f"a '{name}' label is not below {source.classes}, the class count")


def check_indices(component: Component) -> None:
    """Every image has its own position in its pool, int64 [N], not negative."""
    for name, pool in _loaded(component)[1].pools.items():
        right = pool.index.dtype == np.int64 and pool.index.shape == pool.x.shape[:1]
        expect(right, f"the '{name}' index is not int64 [N]")
        expect(len(np.unique(pool.index)) == len(pool.index), f"two '{name}' images have the same position")
        expect(int(pool.index.min()) >= 0, f"a '{name}' position is negative")


def check_canonical(component: Component) -> None:
    """It does not call a copy canonical in which one pixel or one label is changed."""
    dataset, source = _loaded(component)
    for name, pool in source.pools.items():
        x, y = pool.x.copy(), pool.y.copy()
        x[0, 0, 0, 0] ^= 1
        y[0] = (y[0] + 1) % source.classes
        for what, other in (("pixel", replace(pool, x=x)), ("label", replace(pool, y=y))):
            changed = replace(source, pools={**source.pools, name: other})
            expect(not dataset.canonical(changed), f"it calls a copy with a changed '{name}' {what} canonical")


def _equal(one: tuple[Dataset, Source], other: tuple[Dataset, Source]) -> bool:
    pools, others = one[1].pools, other[1].pools
    return pools.keys() == others.keys() and all(
        np.array_equal(getattr(pools[name], part), getattr(others[name], part))
        for name in pools
        for part in ("x", "y", "index")
    )


check_deterministic = deterministic(_loaded, _load, _equal)
