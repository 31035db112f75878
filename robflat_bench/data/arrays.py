"""Images and labels as numpy files: `.npz`, or a pair of `.npy`, as CIFAR-10.1, 10.2 and CIFAR-10-C are published.

    cifar10.1_v6_data.npy + cifar10.1_v6_labels.npy      uint8 [N,32,32,3] and integers [N]
    fog.npy + labels.npy                                 five severities of 10,000 images, one after the other
    own.npz                                              x (or images), y (or labels), and index where positions matter

Files are not trusted: nothing in them is unpickled, and no array is allocated before its bytes are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from robflat_bench.core import Dataset, DatasetInfo, Params, Pool, Source, lazy_imports
from robflat_bench.data.parquet_dataset import Below

with lazy_imports():
    import numpy as np

    from robflat_bench.core.archives import unpack_array, unpack_arrays
    from robflat_bench.core.files import read_regular
    from robflat_bench.data.layouts import Form, checked, refused, refusing
    from robflat_bench.data.own_folder import root_folder, within

MAX_BYTES = 2**30
"""Limit of one file, packed and unpacked."""
SEVERITIES = 5
IMAGES, LABELS = ("x", "images"), ("y", "labels")
"""Names of the arrays of an .npz file; the first one that is there counts."""


class ArraysParams(Params):
    test: Below = Field(
        default="test.npz", description="File of the pool test, below --data: .npz, or the images as .npy."
    )
    test_labels: Below = Field(
        default="", description='Labels of test as .npy; "": NAME_labels.npy of NAME_data.npy, else labels.npy beside.'
    )
    train: Below = Field(default="", description='File of the pool train; "": there is none.')
    train_labels: Below = Field(default="", description="Labels of train, as those of test.")
    classes: int = Field(default=10, ge=2, le=256, description="Number of classes; labels are 0, ..., classes - 1.")
    severity: int = Field(
        default=0, ge=0, le=SEVERITIES, description="1 to 5: that fifth of every file, as CIFAR-10-C has them; 0: all."
    )


INFO = DatasetInfo(
    name="arrays",
    summary="your images as .npz or .npy files, such as CIFAR-10.1 and CIFAR-10-C; from --data DIR",
    factory=f"{__name__}:Arrays",
    params=ArraysParams,
)


class Arrays(Dataset):
    """Pools "test" and, where it is named, "train"; positions are counted from 0, unless an .npz file has them."""

    params: ArraysParams

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """The one copy at `root` (else $ROBFLAT_BENCH_DATA); UsageError where a named file is not there."""
        folder, p = root_folder(root, "arrays"), self.params
        named = {"train": (p.train, p.train_labels), "test": (p.test, p.test_labels)}
        files = {pool: self._files(folder, *names) for pool, names in named.items() if names[0]}
        return [lambda: self._load(folder, files)]

    def canonical(self, source: Source) -> bool:
        """False: no hash of the canonical pixels is known here."""
        return False

    def _files(self, folder: Path, images: str, labels: str) -> tuple[Path, Path | None]:
        """The file of the images, and that of the labels where it is another one."""
        path = within(folder, images)
        if path.suffix == ".npz":
            return path, None
        if path.suffix != ".npy":
            raise refused(path, "images are read from .npz and .npy files")
        if labels:
            return path, within(folder, labels)
        beside = path.with_name(f"{path.stem.removesuffix('_data')}_labels.npy")
        return path, beside if path.stem.endswith("_data") else path.with_name("labels.npy")

    def _load(self, folder: Path, files: Mapping[str, tuple[Path, Path | None]]) -> Source:
        pools = {pool: self._pool(pool, *paths) for pool, paths in files.items()}
        part = f", severity {self.params.severity}" if self.params.severity else ""
        texts = [f"{paths[0].name} ({len(pools[pool].y):,} images{part})" for pool, paths in files.items()]
        return Source(pools, self.params.classes, origin=f"arrays {folder.resolve().name}/{' + '.join(texts)}")

    def _pool(self, pool: str, images: Path, labels: Path | None) -> Pool:
        if labels is None:
            with refusing(images, OSError, ValueError):
                found = unpack_arrays(read_regular(images, MAX_BYTES), MAX_BYTES)
            x, y = (_first(found, names, images) for names in (IMAGES, LABELS))
            index = found.get("index", np.arange(len(y) if y.ndim else 0))
        else:
            x, y = (_array(path) for path in (images, labels))
            index = np.arange(len(y) if y.ndim else 0)
        if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] not in (1, 3) or not x.shape[1]:
            raise refused(images, f"images are {x.dtype} {list(x.shape)}, not uint8 [N,H,W,C] with H = W and C 1 or 3")
        form = Form("arrays", x.shape[1], x.shape[3], self.params.classes, {pool: 2**40})
        with refusing(labels or images, ValueError):
            if y.shape != x.shape[:1]:
                raise ValueError(f"{len(x):,} images have labels {y.dtype} {list(y.shape)}, not one integer for each")
            return self._severe(checked(x, y, index, pool, form), images)

    def _severe(self, pool: Pool, path: Path) -> Pool:
        """The images of the chosen severity, with positions in the part."""
        if not self.params.severity:
            return pool
        size, rest = divmod(len(pool.y), SEVERITIES)
        if rest or not np.array_equal(pool.index, np.arange(len(pool.y))):
            raise refused(path, f"{len(pool.y):,} images are not {SEVERITIES} severities of equally many; severity=0")
        part = slice((self.params.severity - 1) * size, self.params.severity * size)
        return Pool(pool.x[part], pool.y[part], np.arange(size))


def _array(path: Path) -> np.ndarray:
    with refusing(path, OSError, ValueError):
        return unpack_array(read_regular(path, MAX_BYTES))


def _first(found: Mapping[str, np.ndarray], names: tuple[str, ...], path: Path) -> np.ndarray:
    for name in names:
        if name in found:
            return found[name]
    raise refused(path, f"it has no array {' or '.join(names)} (but {', '.join(found)[:100] or 'none'})")
