"""CIFAR-10 from the layouts people have on disk (`batches`, `parquet`), or from the Hugging Face hub.

Files are not trusted: batch files must have their published MD5 and are unpickled through an allow-list, and images are
measured before they are decoded. The protocol decides which images are used; see `splits`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from robflat_bench.core import Dataset, DatasetInfo, Pool, Source, lazy_imports

with lazy_imports():
    import numpy as np

    from robflat_bench.data.batches import BATCHES
    from robflat_bench.data.copies import Search
    from robflat_bench.data.layouts import CLASSES, SIZES
    from robflat_bench.data.parquet import PARQUET


INFO = DatasetInfo(
    name="cifar10",
    summary="60,000 colour photographs, 32x32, 10 classes; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:Cifar10",
    citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
)


HUB_REPOSITORY = "uoft-cs/cifar10"
HUB_FILES = ("plain_text/test-00000-of-00001.parquet", "plain_text/train-00000-of-00001.parquet")

BATCH = 10_000
KNOWN_PER_BATCH = 1_000
CANONICAL = {
    "train": (5_000, "3660ed9cecca126062f6710cbb323e5a1215dc16061429a5550fc578b4466ee8"),
    "test": (1_000, "3bbdff8a1946fbed0a833aaf37c6ffbb3d391356d3e79d47a8030d5ee93186db"),
}
"""Split -> the number of images with index % BATCH < KNOWN_PER_BATCH, and the SHA-256 of their pixels (uint8 NHWC),
then their labels (uint8), in order of index."""


class Cifar10(Dataset):
    """Pools "train" (index 0..49,999, batch after batch) and "test" (0..9,999), each complete or in part."""

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Every copy at `root` (else $ROBFLAT_BENCH_DATA) or up to two folders below, the fullest first.

        Listing reads no image. A copy that cannot be read comes last, and loading it says why. If there is no copy, the
        hub's is taken from the Hugging Face cache or, with `download`, fetched (about 140 MB).

        Raises
        ------
        UsageError
            If there is no copy at all.
        """
        # Of two copies with equally many images the first is taken: only canonical pixels can be in batch files.
        layouts = (BATCHES, PARQUET)
        return Search("CIFAR-10", CLASSES, tuple(SIZES), layouts, HUB_REPOSITORY, HUB_FILES).sources(root, download)

    def canonical(self, source: Source) -> bool:
        """Whether the known images of every batch are all there and byte-identical, with their labels."""
        return all(_known(source.pools.get(split)) == known for split, known in CANONICAL.items())


def _known(pool: Pool | None) -> tuple[int, str] | None:
    if pool is None:
        return None
    rows = np.flatnonzero(pool.index % BATCH < KNOWN_PER_BATCH)
    rows = rows[np.argsort(pool.index[rows])]
    return len(rows), hashlib.sha256(pool.x[rows].tobytes() + pool.y[rows].tobytes()).hexdigest()
