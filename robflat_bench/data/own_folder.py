"""Files that a dataset's parameters name, below the folder of the data and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from robflat_bench.core import UsageError
from robflat_bench.data.layouts import refused


def root_folder(root: str | None, title: str) -> Path:
    """The folder that --data names, else $ROBFLAT_BENCH_DATA; UsageError where there is none."""
    named = root or os.environ.get("ROBFLAT_BENCH_DATA")
    if not named:
        raise UsageError(
            f"{title} not found: no data folder was named; name the folder of the files with --data DIR or "
            "ROBFLAT_BENCH_DATA=DIR"
        )
    folder = Path(os.path.expanduser(named))
    if not folder.is_dir():
        raise UsageError(f"{title} not found: {folder} is not a folder; name the folder of the files with --data DIR")
    return folder


def within(folder: Path, name: str) -> Path:
    """The file or folder of that name; refused where it is missing, or a link leads out of the folder."""
    path = folder / name
    if not path.exists():
        raise refused(path, "there is no such file or folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise refused(path, f"it is a link out of {folder}")
    return path
