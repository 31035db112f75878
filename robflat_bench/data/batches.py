"""The layout cifar-10-batches-py: six pickled files, as the authors publish them.

A pickle can run code, so a file is unpickled only if its MD5 is the published one, and then through an allow-list.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from robflat_bench.core import Pool
from robflat_bench.data.layouts import SIZES, Layout, check_size, checked, joined, refused, refusing

MAX_BYTES = 64 * 2**20
"""Limit of one file; the real files have 31 MB."""

# The archive's MD5 is published at https://www.cs.toronto.edu/~kriz/cifar.html, those of its files by torchvision.
MD5 = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}


def count_batches(folder: Path) -> int | None:
    """50,000 training images if all files are there; their content is not looked at."""
    present = [(folder / name).is_file() for files in MD5.values() for name in files]
    if not any(present):
        return None
    return SIZES["train"] if all(present) else 0


def read_batches(folder: Path, split: str) -> Pool:
    """The files of a split, one after the other."""
    return joined([folder / name for name in MD5[split]], _read_file, split)


def _read_file(split: str, path: Path, start: int) -> Pool:
    """One file, whose positions begin at `start`."""
    with refusing(path, OSError):
        check_size(path, MAX_BYTES)
        content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[split][path.name]:
        raise refused(path, "its MD5 is not the published one (an incomplete download?)")
    with refusing(path, Exception, problem="not a CIFAR-10 batch ({})"):  # a forged pickle raises anything
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        x = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return checked(np.ascontiguousarray(x), np.asarray(batch[b"labels"]), start + np.arange(len(x)), split)


def _latin1(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, which pickled bytes call: it knows far too many codecs."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed in it")
    return text.encode(encoding)


class _ArraysOnly(pickle.Unpickler):
    """Loads containers, numbers, text and numpy arrays; refuses any other global before importing it."""

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


BATCHES = Layout(
    "cifar-10-batches-py", "cifar-10-batches-py (data_batch_1 to data_batch_5, test_batch)", count_batches, read_batches
)
