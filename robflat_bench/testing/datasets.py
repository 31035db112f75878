"""What datasets promise, where a copy of them is here: nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from robflat_bench.core import Dataset, Source, UsageError
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.world import Skipped, expect, remembered


def _load(component: Component) -> tuple[Dataset, Source]:
    dataset: Dataset = component.build()
    try:
        return dataset, dataset.sources(None, download=False)[0]()
    except UsageError as error:
        raise Skipped(str(error)) from None


@remembered
def _loaded(component: Component, registry: Registry) -> tuple[Dataset, Source]:
    return _load(component)


def check_images(component: Component, registry: Registry) -> None:
    """Every pool has images uint8 [N,H,W,C], H = W."""
    for name, pool in _loaded(component, registry)[1].pools.items():
        right = pool.x.dtype == np.uint8 and pool.x.ndim == 4 and pool.x.shape[1] == pool.x.shape[2]
        expect(right, f"'{name}' images are {pool.x.dtype} {pool.x.shape}, not uint8 [N,H,W,C] with H = W")


def check_labels(component: Component, registry: Registry) -> None:
    """Every image has one label, uint8 [N], below the number of classes."""
    source = _loaded(component, registry)[1]
    for name, pool in source.pools.items():
        expect(pool.y.dtype == np.uint8 and pool.y.shape == pool.x.shape[:1], f"'{name}' labels are no uint8 [N]")
        expect(int(pool.y.max()) < source.classes, f"a '{name}' label is beyond the {source.classes} classes")


def check_indices(component: Component, registry: Registry) -> None:
    """Every image has a position of its own in its pool, int64 [N], not negative."""
    for name, pool in _loaded(component, registry)[1].pools.items():
        expect(
            pool.index.dtype == np.int64 and pool.index.shape == pool.x.shape[:1], f"'{name}' has no int64 [N] index"
        )
        expect(len(np.unique(pool.index)) == len(pool.index), f"two '{name}' images have one position")
        expect(int(pool.index.min()) >= 0, f"a '{name}' position is negative")


def check_canonical(component: Component, registry: Registry) -> None:
    """A copy with one pixel or one label changed is not called canonical."""
    dataset, source = _loaded(component, registry)
    for name, pool in source.pools.items():
        x, y = pool.x.copy(), pool.y.copy()
        x[0, 0, 0, 0] ^= 1
        y[0] = (y[0] + 1) % source.classes
        for what, other in (("pixel", replace(pool, x=x)), ("label", replace(pool, y=y))):
            changed = replace(source, pools={**source.pools, name: other})
            expect(not dataset.canonical(changed), f"a copy with another '{name}' {what} is called canonical")


def check_deterministic(component: Component, registry: Registry) -> None:
    """Loaded twice, it is the same."""
    one, other = (_load(component)[1].pools for _ in range(2))
    pairs = [(getattr(one[name], part), getattr(other[name], part)) for name in one for part in ("x", "y", "index")]
    expect(one.keys() == other.keys() and all(np.array_equal(a, b) for a, b in pairs), "two copies differ")


CHECKS = (check_images, check_labels, check_indices, check_canonical, check_deterministic)
