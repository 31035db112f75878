"""Removal: what goes is renamed aside first and deleted then, so a run is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from robflat_bench.core import UsageError

TEMPORARY = ".tmp-"
"""Beginning of the names of files and folders that the process which made them removes or renames."""


def temporary(folder: Path) -> Path:
    """A free name in a folder, for what `sweep` deletes after a kill. Files of `tempfile` could be read by their owner
    only, but a group may share a store: what is made under this name has the mode that umask leaves."""
    return folder / f"{TEMPORARY}{secrets.token_hex(8)}"


def remove(folder: Path, entries: Sequence[Path]) -> None:
    """Remove these entries of a folder, in this order.

    Links among and below them are removed, not followed. Only the leftover of a killed process, or of a disk that fails
    in the middle, remains, under a temporary name.

    Raises
    ------
    UsageError
        Something cannot be removed; then everything is where it was.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for entry in entries:
            _require_writable(entry)
        aside = temporary(folder)
        aside.mkdir()
        try:
            for entry in entries:
                moved.append((entry, entry.rename(aside / entry.name)))
        except BaseException:
            for entry, now in moved:
                now.rename(entry)
            aside.rmdir()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot remove {error.filename or folder}: {error.strerror or error}; nothing was removed. Make its "
            "folder writable and run the same command again"
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def _require_writable(entry: Path) -> None:
    """PermissionError unless every folder of the tree may be emptied."""

    def fail(error: OSError) -> None:
        raise error

    if entry.is_symlink():
        return
    for folder, _, _ in os.walk(entry, onerror=fail) if entry.is_dir() else ():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "its folder is not writable", folder)


def sweep(folder: Path, seconds: float = 0.0) -> None:
    """Delete what killed processes left below a folder.

    Parameters
    ----------
    folder
        Its lock is held, or `seconds` is longer than any process needs for a file.
    seconds
        Only what has not changed for so long.
    """
    for path in [*folder.rglob(f"{TEMPORARY}*")]:
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
