"""Parquet files with encoded images, as on the Hugging Face hub: a column struct{bytes: PNG or JPEG, path} and a label.

An image is measured before it is decoded, and a file's size is limited before and after unpacking.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet as pq

from robflat_bench.core import Pool, UsageError
from robflat_bench.data.cache import cached
from robflat_bench.data.layouts import CIFAR10, Form, Layout, check_size, checked, joined, refused, refusing

MAX_BYTES = 2**30
"""Limit of one file, packed and unpacked."""

BATCH_ROWS = 1_000
"""Encoded images in memory at a time."""


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True)
class Table:
    """A dataset as parquet files of one folder.

    Parameters
    ----------
    form
        The form of its images.
    files
        Split -> pattern of the split's files.
    image, label
        Columns of the images, struct{bytes, path}, and of the labels, integers.
    index
        Column of the positions, which may be absent: then, and with "", positions are counted.
    grey
        Whether a grey image counts as a colour image of three equal channels; otherwise it is refused.
    """

    form: Form
    files: Mapping[str, str]
    image: str = "image"
    label: str = "label"
    index: str = ""
    grey: bool = False

    @property
    def layout(self) -> Layout:
        """What finds and reads copies of this form."""
        return Layout("parquet", " and ".join(self.files.values()), self.count, self.read)

    def count(self, folder: Path) -> int | None:
        """The images of the first split by the files' metadata; 0 unless all files open and have the columns."""
        first = next(iter(self.files))
        if not _matching(folder, self.files[first]):
            return None
        try:
            return {split: sum(map(self._rows, self._shards(folder, split))) for split in self.files}[first]
        except UsageError:
            return 0

    def read(self, folder: Path, split: str) -> Pool:
        """All shards of a split in order of file name. Decoded images are cached under a hash of the files."""
        paths = self._shards(folder, split)
        content = hashlib.sha256(b"".join(map(self._sha256, paths))).hexdigest()
        form = self.form

        def sound(arrays: Mapping[str, np.ndarray]) -> Pool:
            return checked(arrays["x"], arrays["y"], arrays["index"], split, form)

        key = self._cache_key(split, content)
        return Pool(**cached(key, lambda: vars(joined(paths, self._read_shard, split, form)), sound))

    def _cache_key(self, split: str, content: str) -> str:
        """A name that determines the decoded arrays."""
        settings = repr((self.form.shape, self.form.classes, self.image, self.label, self.index, self.grey, content))
        name = re.sub(r"[^a-z0-9]+", "", self.form.title.lower())
        return f"{name}-{split}-{hashlib.sha256(settings.encode()).hexdigest()}"

    def _shards(self, folder: Path, split: str) -> list[Path]:
        paths = _matching(folder, self.files[split])
        if not paths:
            raise refused(folder / self.files[split], "there is no such file")
        return paths

    @contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[pq.ParquetFile, list[str]]]:
        """The file and its columns of positions and labels; errors of reading it in the block refuse it."""
        image = f"{self.image}.bytes"
        wanted: dict[str, Callable[[pa.DataType], bool]] = {image: _is_binary, self.label: pa.types.is_integer}
        with refusing(path, pa.ArrowException, OSError, problem="not a readable parquet file ({})"):
            check_size(path, MAX_BYTES)
            with pq.ParquetFile(path) as file:
                columns = pa.schema([part for field in file.schema_arrow for part in field.flatten()])
                wanted |= {self.index: pa.types.is_integer} if self.index in columns.names else {}
                for name, suits in wanted.items():
                    if (count := columns.names.count(name)) > 1:
                        raise refused(path, f"column {name} is there {count} times")
                    if not count or not suits(columns.field(name).type):
                        there = ", ".join(columns.names)[:200]
                        raise refused(path, f"column {name} is missing or of the wrong type (there are: {there})")
                if image in file.schema_arrow.names:
                    raise refused(path, f"{image} is a column of its own, not the field bytes of a column {self.image}")
                yield file, [name for name in wanted if name != image]

    def _rows(self, path: Path) -> int:
        with self._opened(path) as (file, _):
            return int(file.metadata.num_rows)

    def _sha256(self, path: Path) -> bytes:
        with self._opened(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def _read_shard(self, split: str, path: Path, start: int) -> Pool:
        """One file; where it has no index, its positions begin at `start`."""
        form, done = self.form, 0
        with self._opened(path) as (file, names):
            if (rows := file.metadata.num_rows) > form.limits[split]:
                raise refused(path, f"{rows:,} images, more than {form.title} has")
            groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > MAX_BYTES:
                raise refused(path, f"unpacks to more than {MAX_BYTES:,} bytes")
            columns = file.read(columns=names).to_pydict()
            # One array, filled row by row: a list of images that is stacked would need twice the memory.
            x = np.empty((rows, *form.shape), np.uint8)
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[f"{self.image}.bytes"]):
                for image in batch.column(self.image).field("bytes"):
                    # PIL's decoders raise nearly anything on damaged images.
                    with refusing(path, Exception, problem=f"image in row {done}: {{}}"):
                        x[done] = decode_image(image.as_py(), form, self.grey)
                    done += 1
        y = np.asarray(columns[self.label])
        index = np.asarray(columns.get(self.index, start + np.arange(len(y))))
        with refusing(path, ValueError):
            return checked(x, y, index, split, form)


def _matching(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def decode_image(content: bytes, form: Form = CIFAR10, grey: bool = False) -> np.ndarray:
    """uint8 [H,W,C] of a PNG or JPEG; size and mode are checked before pixels are decoded."""
    modes: Sequence[str] = ("L",) if form.channels == 1 else ("RGB", "L") if grey else ("RGB",)
    with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
        if image.size != (form.size, form.size) or image.mode not in modes:
            wanted = f"{form.size}x{form.size} {' or '.join(modes)}"
            raise ValueError(f"{image.width}x{image.height} {image.mode}, not {wanted}")
        return np.asarray(image).reshape(form.size, form.size, -1)  # one grey channel is copied to all


CIFAR10_TABLE = Table(CIFAR10, {"train": "train-*.parquet", "test": "test-*.parquet"}, "img", index="index")
PARQUET = CIFAR10_TABLE.layout
