"""The layout parquet: `train-*.parquet` and `test-*.parquet` with encoded images, as on the Hugging Face hub.

An image is measured before it is decoded, and a file's size is limited before and after unpacking.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet as pq

from robflat_bench.core import Pool, UsageError
from robflat_bench.data.cache import cached
from robflat_bench.data.layouts import SIZES, Layout, check_size, checked, joined, refused, refusing

MAX_BYTES = 2**30
"""Limit of one file, packed and unpacked."""

IMAGE = "img.bytes"
COLUMNS: dict[str, Callable[[pa.DataType], bool]] = {
    IMAGE: lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    "label": pa.types.is_integer,
    "index": pa.types.is_integer,
}
"""Column -> whether a type will do for it. "index" may be absent: then positions are counted."""


def count_parquet(folder: Path) -> int | None:
    """The training images according to the files' metadata; 0 unless all files open and have the columns."""
    if not any(folder.glob("train-*.parquet")):
        return None
    try:
        return {split: sum(map(_rows, _shards(folder, split))) for split in SIZES}["train"]
    except UsageError:
        return 0


def read_parquet(folder: Path, split: str) -> Pool:
    """All shards of a split in order of file name. Decoded images are cached under a hash of the files."""
    paths = _shards(folder, split)
    content = hashlib.sha256(b"".join(map(_sha256, paths))).hexdigest()
    arrays = cached(
        f"cifar10-{split}-{content}",
        lambda: vars(joined(paths, _read_shard, split)),
        lambda arrays: checked(**arrays, split=split),
    )
    return Pool(**arrays)


def _shards(folder: Path, split: str) -> list[Path]:
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    if not paths:
        raise refused(folder / f"{split}-*.parquet", "there is no such file")
    return paths


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
    """The file and its columns out of COLUMNS; errors of reading it in the block refuse it."""
    with refusing(path, pa.ArrowException, OSError, problem="not a readable parquet file ({})"):
        check_size(path, MAX_BYTES)
        with pq.ParquetFile(path) as file:
            columns = pa.schema([part for field in file.schema_arrow for part in field.flatten()])
            names = [name for name in COLUMNS if name in columns.names or name != "index"]
            for name in names:
                if (count := columns.names.count(name)) > 1:
                    raise refused(path, f"column {name} is there {count} times")
                if not count or not COLUMNS[name](columns.field(name).type):
                    raise refused(path, f"column {name} is missing or of the wrong type")
            if IMAGE in file.schema_arrow.names:
                raise refused(path, f"{IMAGE} is a column of its own, not the field bytes of a column img")
            yield file, names


def _rows(path: Path) -> int:
    with _opened(path) as (file, _):
        return int(file.metadata.num_rows)


def _sha256(path: Path) -> bytes:
    with _opened(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_shard(split: str, path: Path, start: int) -> Pool:
    """One file; where it has no index, its positions begin at `start`."""
    x: list[np.ndarray] = []
    with _opened(path) as (file, names):
        if (rows := file.metadata.num_rows) > SIZES[split]:
            raise refused(path, f"{rows:,} images, more than CIFAR-10 has")
        groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in groups) > MAX_BYTES:
            raise refused(path, f"unpacks to more than {MAX_BYTES:,} bytes")
        image_bytes, *integers = names
        columns = file.read(columns=integers).to_pydict()
        for batch in file.iter_batches(batch_size=1_000, columns=[image_bytes]):
            for image in batch.column("img").field("bytes"):
                # PIL's decoders raise nearly anything on damaged images.
                with refusing(path, Exception, problem=f"image in row {len(x)}: {{}}"):
                    x.append(decode_image(image.as_py()))
    y = np.asarray(columns["label"])
    index = np.asarray(columns.get("index", start + np.arange(len(y))))
    with refusing(path, ValueError):
        return checked(np.stack(x), y, index, split)


def decode_image(content: bytes) -> np.ndarray:
    """uint8 [32,32,3] of a PNG or JPEG; size and mode are checked before pixels are decoded."""
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if (image.size, image.mode) != ((32, 32), "RGB"):
            raise ValueError(f"{image.width}x{image.height} {image.mode}, not 32x32 RGB")
        return np.asarray(image)


PARQUET = Layout("parquet", "train-*.parquet and test-*.parquet", count_parquet, read_parquet)
