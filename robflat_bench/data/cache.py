"""A cache of decoded arrays between runs. Whatever is wrong with the cache, the arrays are computed again."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from robflat_bench.core import RobflatError
from robflat_bench.results.store import write_atomically

Arrays = Mapping[str, np.ndarray]


def cache_folder() -> Path:
    """$ROBFLAT_BENCH_CACHE, else `robflat-bench` in the user's cache folder."""
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
    # A user may have no home folder, which raises a RuntimeError: in a container, say.
    # A damaged archive raises almost anything: BadZipFile (a CRC covers every array), KeyError, EOFError ...
    # np.load would leave a damaged file open, so the file is opened here.
    with contextlib.suppress(Exception), _file(name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
        check(arrays)
        return arrays
    arrays = dict(compute())
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with contextlib.suppress(OSError, RobflatError, RuntimeError):
        write_atomically(_file(name), content.getvalue())
    return arrays


def _file(name: str) -> Path:
    return cache_folder() / f"{name}.npz"
