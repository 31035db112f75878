"""scikit-learn's handwritten digits: real images that every installation already has."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from robflat_bench.core import Dataset, DatasetInfo, Pool, Source, UsageError, lazy_imports

with lazy_imports():
    import numpy as np


INFO = DatasetInfo(
    name="digits",
    summary="1,797 handwritten digits, 8x8, 17 grey levels; shipped with scikit-learn, needs no download",
    factory=f"{__name__}:Digits",
    citation="Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; via scikit-learn",
)


CANONICAL = "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91"
"""SHA-256 of x, then y, as `load_digits` returns them."""


class Digits(Dataset):
    """One pool, "train", of all 1,797 images; the protocol cuts the test set from it."""

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """The copy inside scikit-learn; `root` is ignored."""
        return [load_digits]

    def canonical(self, source: Source) -> bool:
        """Whether all pixels and labels are byte-identical to the canonical dataset."""
        pool = source.pools.get("train")
        return pool is not None and hashlib.sha256(pool.x.tobytes() + pool.y.tobytes()).hexdigest() == CANONICAL


def load_digits() -> Source:
    """x uint8 [1797,8,8,1], y uint8 [1797], index 0..1796 in scikit-learn's order.

    The grey levels v = 0..16 become rint(255 v / 16) (halves to even: 8 -> 128), so that x / 255 spans [0,1] like any
    other image and the levels stay distinct.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("the digits are a file of scikit-learn, which is not installed: pip install scikit-learn")
    # Reading the file takes milliseconds, importing sklearn.datasets seconds.
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    x = np.rint(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    y = rows[:, -1].astype(np.uint8)
    pool = Pool(x, y, np.arange(len(x), dtype=np.int64))
    return Source({"train": pool}, classes=10, origin=f"scikit-learn digits ({len(x):,} images)")
