"""A cache of decoded arrays between runs. Whatever is wrong with the cache, the arrays are computed again."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from robflat_bench.core import RobflatError, uninterrupted
from robflat_bench.records.removal import sweep
from robflat_bench.records.store import write_atomically

SECONDS_OF_A_WRITE = 86_400
"""A temporary file that has not changed for so long belongs to no living process."""
Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """$ROBFLAT_BENCH_CACHE, else a folder in the user's cache; RuntimeError where the user has no home."""
    if named := os.environ.get("ROBFLAT_BENCH_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robflat-bench"


def cached(name: str, compute: Callable[[], Arrays], check: Callable[[Arrays], object]) -> Arrays:
    """Read arrays from `<cache>/<name>.npz`, or compute and keep them there.

    Parameters
    ----------
    name
        Determines the arrays: include a hash of what they are computed from.
    compute
        Makes the arrays. Its errors pass through; errors of the cache never do.
    check
        Raises an error on arrays that cannot be right.
    """
    try:
        path = cache_folder() / f"{name}.npz"
    except RuntimeError:  # no home folder: in a container, say
        return compute()
    # A damaged archive raises almost anything: BadZipFile (a CRC covers every array), KeyError, EOFError ...
    # np.load would leave a damaged file open, so the file is opened here.
    with contextlib.suppress(Exception), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
        check(arrays)
        return arrays
    arrays = dict(compute())
    content = io.BytesIO()
    with uninterrupted():  # zipfile would answer an interruption within an entry by a ValueError
        np.savez(content, allow_pickle=False, **arrays)
    with contextlib.suppress(OSError, RobflatError):
        sweep(path.parent, SECONDS_OF_A_WRITE)
        write_atomically(path, content.getvalue())
    return arrays
