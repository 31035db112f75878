"""CIFAR-10 from the two layouts people have on disk, or from the Hugging Face hub.

Files are not trusted: batch files are compared with their published MD5 and then unpickled through an
allow-list, images are measured before they are decoded. Which images a protocol uses is not decided here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from robflat_bench.core import Dataset, DatasetInfo, Pool, Source, UsageError, lazy_imports

with lazy_imports():
    import numpy as np
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet as pq

    from robflat_bench.data.cache import Arrays, cached


INFO = DatasetInfo(
    name="cifar10",
    summary="60,000 colour photographs, 32x32, 10 classes; from --data DIR or the Hugging Face hub",
    factory=f"{__name__}:Cifar10",
    citation="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
)


CLASSES = 10
SIZES = {"train": 50_000, "test": 10_000}
IMAGE_SHAPE = (32, 32, 3)
DEPTH = 2
"""How many folders below the root are searched."""
MAX_FILE_BYTES = 2**30
MAX_BATCH_BYTES = 64 * 2**20
"""Of one batch file; the real ones have 31 MB."""
HUB_REPOSITORY = "uoft-cs/cifar10"
HUB_FILES = ("plain_text/test-00000-of-00001.parquet", "plain_text/train-00000-of-00001.parquet")

# As published at https://www.cs.toronto.edu/~kriz/cifar.html for the archive, per file by torchvision.
BATCH_MD5 = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}


class Cifar10(Dataset):
    """Pools "train" (positions 0..49,999, batch after batch) and "test" (0..9,999), each in part or whole."""

    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Every copy at `root` (else $ROBFLAT_BENCH_DATA) or up to two folders below, the fullest first.

        Listing reads no image. A copy that cannot be read comes last, and says why when it is loaded. Only
        where there is no copy at all is one fetched into the Hugging Face cache (if `download` allows it);
        UsageError if there is still none.
        """
        root = root or os.environ.get("ROBFLAT_BENCH_DATA")
        copies = find_copies(Path(root).expanduser()) if root else []
        copies = copies or [fetched(root, download)]
        return [copy.load for copy in sorted(copies, key=lambda copy: -copy.images)]

    def canonical(self, source: Source) -> bool:
        """Whether pixels and labels are byte-identical to the canonical dataset, as far as its known digests tell:
        those of the first 1,000 images of each batch, which must all be there."""
        return all(_digest(source.pools.get(split), *known) for split, known in CANONICAL.items())


# ---------------------------------------------------------------------------------------------------------
# Canonical pixels and labels
# ---------------------------------------------------------------------------------------------------------

BATCH = 10_000
KNOWN_PER_BATCH = 1_000
# Number of images with position % 10000 < 1000, and SHA-256, in order of position, of their pixels (uint8 NHWC), then
# their labels (uint8).
CANONICAL = {
    "train": (5_000, "3660ed9cecca126062f6710cbb323e5a1215dc16061429a5550fc578b4466ee8"),
    "test": (1_000, "3bbdff8a1946fbed0a833aaf37c6ffbb3d391356d3e79d47a8030d5ee93186db"),
}


def _digest(pool: Pool | None, count: int, sha256: str) -> bool:
    if pool is None:
        return False
    rows = np.flatnonzero(pool.index % BATCH < KNOWN_PER_BATCH)
    rows = rows[np.argsort(pool.index[rows])]
    return len(rows) == count and hashlib.sha256(pool.x[rows].tobytes() + pool.y[rows].tobytes()).hexdigest() == sha256


# ---------------------------------------------------------------------------------------------------------
# Finding copies
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One way CIFAR-10 lies in a folder.

    count: the number of training images, 0 if this copy cannot be read, None if it is another layout.
    read: the pool of one split; raises UsageError.
    """

    name: str
    files: str
    count: Callable[[Path], int | None]
    read: Callable[[Path, str], Pool]


@dataclass(frozen=True)
class Copy:
    """One copy on disk. place: how records name it, without the absolute path."""

    layout: Layout
    folder: Path
    place: str
    images: int

    def load(self) -> Source:
        """Reads and checks every image; UsageError names the file and what is wrong with it."""
        pools = {split: self.layout.read(self.folder, split) for split in SIZES}
        sizes = " + ".join(f"{len(pool.y):,}" for pool in pools.values())
        return Source(pools, CLASSES, origin=f"{self.layout.name} {self.place} ({sizes} images)")


def find_copies(root: Path) -> list[Copy]:
    """The copies at and below `root`, in order of layout, then folder."""
    if not root.is_dir():
        raise _nothing(f"{root} is not a folder")
    folders = _folders(root, DEPTH)
    name = Path(root.resolve().name)
    return [
        Copy(layout, folder, (name / folder.relative_to(root)).as_posix(), count)
        for layout in LAYOUTS
        for folder in folders
        if (count := layout.count(folder)) is not None
    ]


def _folders(root: Path, depth: int) -> list[Path]:
    """`root` and its visible subfolders down to `depth`; what may not be listed is passed over."""
    if not depth:
        return [root]
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
    return [root, *(found for path in below for found in _folders(path, depth - 1))]


def fetched(root: str | None, download: bool) -> Copy:
    """The copy of the Hugging Face hub: from its cache, else over the network (about 140 MB)."""
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(hf_hub_download, HUB_REPOSITORY, repo_type="dataset")
    where = f"no data below {root}" if root else "no data folder was named"
    try:
        try:
            paths = [fetch(name, local_files_only=True) for name in HUB_FILES]
        except LocalEntryNotFoundError:
            if not download:
                raise _nothing(where) from None
            # One short question first: without a network the client itself would retry for 25 seconds.
            get_session().head(constants.ENDPOINT, timeout=5)
            paths = [fetch(name) for name in HUB_FILES]
    except UsageError:
        raise
    except Exception as error:  # the hub client lets through whatever its network layer raises
        raise _nothing(f"{where}, and {HUB_REPOSITORY} cannot be downloaded ({_line(error)})") from error
    return Copy(PARQUET, Path(paths[-1]).parent, f"{HUB_REPOSITORY} from the Hugging Face hub", SIZES["train"])


def _nothing(why: str) -> UsageError:
    looked_for = " or ".join(layout.files for layout in LAYOUTS)
    return UsageError(
        f"CIFAR-10 not found: {why}; name a folder that holds {looked_for}, at most {DEPTH} folders deep, "
        "with --data DIR or ROBFLAT_BENCH_DATA=DIR, or run once with a network"
    )


# ---------------------------------------------------------------------------------------------------------
# The layout cifar-10-batches-py
# ---------------------------------------------------------------------------------------------------------


def count_batches(folder: Path) -> int | None:
    """By presence alone: a folder with every batch file has 50,000 training images."""
    present = {name for files in BATCH_MD5.values() for name in files if (folder / name).is_file()}
    if not present:
        return None
    return SIZES["train"] if len(present) == sum(map(len, BATCH_MD5.values())) else 0


def read_batches(folder: Path, split: str) -> Pool:
    """The batch files of one split, one after the other."""
    return _joined([folder / name for name in BATCH_MD5[split]], partial(_read_batch, split), split)


def _read_batch(split: str, path: Path, start: int) -> Pool:
    """One batch file, whose positions begin at `start`; not unpickled unless its MD5 is the published one."""
    try:
        _check_size(path, MAX_BATCH_BYTES)
        content = path.read_bytes()
    except OSError as error:
        raise _refused(path, error.strerror) from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != BATCH_MD5[split][path.name]:
        raise _refused(path, "its MD5 is not the published one (an incomplete download?)")
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return checked(np.ascontiguousarray(x), np.asarray(batch[b"labels"]), start + np.arange(len(x)), split)
    except Exception as error:  # a forged pickle raises anything
        raise _refused(path, f"not a CIFAR-10 batch ({_line(error)})") from error


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for `_codecs.encode`, which pickled bytes call and which knows far too many codecs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed in it")
    return text.encode(encoding)


class _ArraysOnly(pickle.Unpickler):
    """Containers, numbers, text and numpy arrays; any other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return allowed[module, name]


# ---------------------------------------------------------------------------------------------------------
# The layout parquet
# ---------------------------------------------------------------------------------------------------------

# What a column must be. "index" may be absent: then positions are counted.
COLUMNS: dict[str, Callable[[pa.DataType], bool]] = {
    "img.bytes": lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    "label": lambda kind: pa.types.is_integer(kind),
    "index": lambda kind: pa.types.is_integer(kind),
}
OPTIONAL = {"index"}


def count_parquet(folder: Path) -> int | None:
    """From the files' metadata; 0 unless each of them can be opened and has the columns."""
    if not any(folder.glob("train-*.parquet")):
        return None
    try:
        return {split: sum(map(_rows, _shards(folder, split))) for split in SIZES}["train"]
    except UsageError:
        return 0


def read_parquet(folder: Path, split: str) -> Pool:
    """All shards `<split>-*.parquet` in order of file name, decoded once per content."""
    paths = _shards(folder, split)
    content = hashlib.sha256(b"".join(map(_sha256, paths))).hexdigest()

    def decode() -> Arrays:
        pool = _joined(paths, partial(_read_shard, split), split)
        return {"x": pool.x, "y": pool.y, "index": pool.index}

    return Pool(**cached(f"cifar10-{split}-{content}", decode, lambda arrays: checked(**arrays, split=split)))


def _shards(folder: Path, split: str) -> list[Path]:
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise _refused(folder / f"{split}-*.parquet", "there is no such file")
    return paths


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """The file and those of the columns it has; whatever goes wrong while reading it becomes a UsageError."""
    try:
        _check_size(path, MAX_FILE_BYTES)
        with pq.ParquetFile(path) as file:
            kinds = {field.name: field.type for field in file.schema_arrow}
            if pa.types.is_struct(kinds.get("img", pa.null())):
                kinds |= {f"img.{field.name}": field.type for field in kinds["img"]}
            wanted = [name for name in COLUMNS if name in kinds or name not in OPTIONAL]
            if wrong := [name for name in wanted if name not in kinds or not COLUMNS[name](kinds[name])]:
                raise _refused(path, f"column {wrong[0]} is missing or of the wrong type")
            yield file, wanted
    except (pa.ArrowException, OSError) as error:
        raise _refused(path, f"not a readable parquet file ({_line(error)})") from error


def _rows(path: Path) -> int:
    with _opened(path) as (file, _):
        return int(file.metadata.num_rows)


def _sha256(path: Path) -> bytes:
    with _opened(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_shard(split: str, path: Path, start: int) -> Pool:
    """One file; where it has no index, its positions begin at `start`."""
    x: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {"label": [], "index": []}
    with _opened(path) as (file, names):
        if file.metadata.num_rows > SIZES[split]:
            raise _refused(path, f"{file.metadata.num_rows:,} images, more than CIFAR-10 has")
        groups = range(file.metadata.num_row_groups)
        if sum(file.metadata.row_group(group).total_byte_size for group in groups) > MAX_FILE_BYTES:
            raise _refused(path, f"unpacks to more than {MAX_FILE_BYTES:,} bytes")
        for batch in file.iter_batches(batch_size=1_000, columns=names):
            for image in batch.column("img").field("bytes"):
                try:
                    x.append(decode_image(image.as_py()))
                except Exception as error:  # PIL's decoders raise nearly anything on damaged images
                    raise _refused(path, f"image in row {len(x)}: {_line(error)}") from error
            for name, parts in columns.items():
                if name in names:
                    parts.append(batch.column(name).to_numpy(zero_copy_only=False))
    try:
        y = np.concatenate(columns["label"])
        index = np.concatenate(columns["index"]) if "index" in names else start + np.arange(len(y))
        return checked(np.stack(x), y, index, split)
    except ValueError as error:
        raise _refused(path, _line(error)) from error


def decode_image(content: bytes) -> np.ndarray:
    """uint8 [32,32,3] of one PNG or JPEG; its size and mode are looked at before its pixels are."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if (image.size, image.mode) != ((32, 32), "RGB"):
            raise ValueError(f"{image.width}x{image.height} {image.mode}, not 32x32 RGB")
        return np.asarray(image)


# ---------------------------------------------------------------------------------------------------------
# What every layout shares
# ---------------------------------------------------------------------------------------------------------

PARQUET = Layout("parquet", "train-*.parquet and test-*.parquet", count_parquet, read_parquet)
# Where two copies have equally many images, the layout that only canonical pixels can have is first.
LAYOUTS = (
    Layout(
        "cifar-10-batches-py",
        "cifar-10-batches-py (data_batch_1 to data_batch_5, test_batch)",
        count_batches,
        read_batches,
    ),
    PARQUET,
)


def checked(x: np.ndarray, y: np.ndarray, index: np.ndarray, split: str) -> Pool:
    """The pool of these arrays; ValueError unless they can be CIFAR-10, each image at its own position."""
    if x.dtype != np.uint8 or x.shape[1:] != IMAGE_SHAPE or not len(x):
        raise ValueError(f"images are {x.dtype} {list(x.shape)}, not uint8 [N, 32, 32, 3]")
    for name, values, size in (("label", y, CLASSES), ("index", index, SIZES[split])):
        # Missing values arrive as floats.
        if values.shape != (len(x),) or values.dtype.kind not in "iu":
            raise ValueError(f"{name} is not one integer per image")
        if values.min() < 0 or values.max() >= size:
            raise ValueError(f"{name} is not in 0..{size - 1} ({values.min()} to {values.max()})")
    if len(np.unique(index)) < len(index):
        raise ValueError("two images have the same index")
    return Pool(x, y.astype(np.uint8), index.astype(np.int64))


def _joined(paths: list[Path], read: Callable[[Path, int], Pool], split: str) -> Pool:
    """The files' pools, one after the other; `read` is given the number of images before its file."""
    pools: list[Pool] = []
    for path in paths:
        pools.append(read(path, sum(len(pool.y) for pool in pools)))
    try:
        x, y, index = (np.concatenate([vars(pool)[name] for pool in pools]) for name in ("x", "y", "index"))
        return checked(x, y, index, split)
    except ValueError as error:
        raise _refused(paths[0].parent, _line(error)) from error


def _check_size(path: Path, limit: int) -> None:
    if (size := path.stat().st_size) > limit:
        raise _refused(path, f"{size:,} bytes, more than the {limit:,} it may have")


def _refused(path: Path, problem: object) -> UsageError:
    return UsageError(f"{path}: {problem}; replace it, or name another folder with --data DIR")


def _line(error: object) -> str:
    """An error's text on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
