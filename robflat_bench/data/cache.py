"""Decoded arrays kept between runs. Only a cache: whatever is wrong with it, they are computed again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """$ROBFLAT_BENCH_CACHE, else robflat-bench in the user's cache folder."""
    if named := os.environ.get("ROBFLAT_BENCH_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robflat-bench"


def cached(name: str, compute: Callable[[], Arrays], check: Callable[[Arrays], object]) -> Arrays:
    """The arrays of `compute`, read back from `<cache>/<name>.npz` where an earlier call left them.

    `name` must determine the arrays (a hash of what they are made from). `check` raises on arrays that
    cannot be right. Errors of `compute` pass through; errors of the cache never do.
    """
    path = cache_folder() / f"{name}.npz"
    # A damaged archive raises almost anything: BadZipFile (a CRC covers every array), KeyError, EOFError ...
    with (
        contextlib.suppress(Exception),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        arrays = dict(archive)
        check(arrays)
        return arrays
    arrays = dict(compute())
    with contextlib.suppress(OSError):
        _write(path, arrays)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    """All or nothing: another process never sees half an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with open(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
