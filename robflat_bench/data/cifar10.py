"""CIFAR-10 from the layouts people have on disk (`batches`, `parquet`), or from the Hugging Face hub.

Files are not trusted: batch files must have their published MD5 and are unpickled through an allow-list, and images are
measured before they are decoded. The protocol decides which images are used; see `splits`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from robflat_bench.core import Dataset, DatasetInfo, Pool, Source, UsageError, lazy_imports

with lazy_imports():
    import numpy as np

    from robflat_bench.data.batches import BATCHES
    from robflat_bench.data.layouts import CLASSES, SIZES, Layout, one_line
    from robflat_bench.data.parquet import PARQUET


INFO = DatasetInfo(
    name="cifar10",
    summary="60,000 colour photographs, 32x32, 10 classes; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:Cifar10",
    citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
)


DEPTH = 2
"""Folders below the root that are searched."""
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
        hub's is taken from the Hugging Face cache or, with `download`, fetched.

        Raises
        ------
        UsageError
            If there is no copy at all.
        """
        root = root or os.environ.get("ROBFLAT_BENCH_DATA")
        copies = find_copies(Path(os.path.expanduser(root))) if root else []
        copies = copies or [fetched(root, download)]
        return [copy.load for copy in sorted(copies, key=lambda copy: -copy.images)]

    def canonical(self, source: Source) -> bool:
        """Whether the known images of every batch are all there and byte-identical, with their labels."""
        return all(_known(source.pools.get(split)) == known for split, known in CANONICAL.items())


def _known(pool: Pool | None) -> tuple[int, str] | None:
    if pool is None:
        return None
    rows = np.flatnonzero(pool.index % BATCH < KNOWN_PER_BATCH)
    rows = rows[np.argsort(pool.index[rows])]
    return len(rows), hashlib.sha256(pool.x[rows].tobytes() + pool.y[rows].tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------
# Finding copies
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A copy on disk. `place` is its name in records, without the absolute path; `images` counts training images."""

    layout: Layout
    folder: Path
    place: str
    images: int

    def load(self) -> Source:
        """Read and check every image; UsageError names the file and its problem."""
        pools = {split: self.layout.read(self.folder, split) for split in SIZES}
        sizes = " + ".join(f"{len(pool.y):,}" for pool in pools.values())
        return Source(pools, CLASSES, origin=f"{self.layout.name} {self.place} ({sizes} images)")


def find_copies(root: Path) -> list[Copy]:
    """The copies at and below `root`, in order of layout, then folder. Hidden and unreadable folders are skipped."""
    if not root.is_dir():
        raise _nothing(f"{root} is not a folder")
    below = (folder for depth in range(1, DEPTH + 1) for folder in root.glob("[!.]*/" * depth))
    folders = [folder for folder in sorted((root, *below)) if os.access(folder, os.R_OK | os.X_OK)]
    name = Path(root.resolve().name)
    # Of two copies with equally many images the first is taken: only canonical pixels can be in batch files.
    return [
        Copy(layout, folder, (name / folder.relative_to(root)).as_posix(), count)
        for layout in (BATCHES, PARQUET)
        for folder in folders
        if (count := layout.count(folder)) is not None
    ]


def fetched(root: str | None, download: bool) -> Copy:
    """The copy of the Hugging Face hub: from its cache, else over the network (about 140 MB)."""
    try:
        paths = _hub_files(download)
    except Exception as error:  # the hub's client raises whatever its network layer raises
        problem = f"no data below {root}" if root else "no data folder was named"
        if download:
            problem += f", and {HUB_REPOSITORY} cannot be downloaded ({one_line(error)})"
        raise _nothing(problem) from error
    return Copy(PARQUET, Path(paths[-1]).parent, f"{HUB_REPOSITORY} from the Hugging Face hub", SIZES["train"])


def _hub_files(download: bool) -> list[str]:
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(hf_hub_download, HUB_REPOSITORY, repo_type="dataset")
    try:
        return [fetch(name, local_files_only=True) for name in HUB_FILES]
    except LocalEntryNotFoundError:
        if not download:
            raise
    # One short question first: without a network the client itself would retry for 25 seconds.
    get_session().head(constants.ENDPOINT, timeout=5)
    return [fetch(name) for name in HUB_FILES]


def _nothing(problem: str) -> UsageError:
    return UsageError(
        f"CIFAR-10 not found: {problem}; name a folder that holds {BATCHES.files} or {PARQUET.files}, at most {DEPTH} "
        "folders deep, with --data DIR or ROBFLAT_BENCH_DATA=DIR, or run once with a network"
    )
