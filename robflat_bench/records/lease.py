"""The lease of a folder: one process at a time works there, whichever machine it runs on.

The lease is the file `holder.json`. The process that creates it holds the folder; the file names it, and a thread of
the holder touches it every few seconds. A holder on this machine is dead if its process is gone: its lease is taken
at once. A holder elsewhere is dead if its file stayed untouched while it was watched for `SILENT_SECONDS`, by the
watcher's own clock, since clocks of machines differ.

To take a lease, the file is renamed aside; if it is not the file that was watched, it is renamed back. A holder that
was stopped or cut off for so long finds a file that is not its own before it next writes (`require`), and ends. There
is a moment between that look and its write; a write in that moment replaces a file by an equal one, for runs repeat.

File locks are not used: many shared file systems have none, or none that spans machines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from robflat_bench.core import RunFailed, uninterrupted
from robflat_bench.records.holders import Holder
from robflat_bench.records.removal import temporary

NAME = "holder.json"

BEAT_SECONDS = 5.0
"""Time between two touches of a lease."""

SILENT_SECONDS = 60.0
"""A holder on another machine is dead after so much time without a touch."""

LOOK_SECONDS = 1.0
"""Time between two looks at the lease of another process."""


class Busy(RunFailed):
    """Another process works on the run."""


class Lost(Busy):
    """Another process took over the run, since this one had shown no sign of life."""


class Look(NamedTuple):
    """A lease as it was found: its content, and when it was touched [ns, by the clock of its file system]."""

    content: bytes
    touched: int

    @property
    def holder(self) -> Holder | None:
        return Holder.read(self.content)

    def __str__(self) -> str:
        return str(self.holder or "another process")


def look(path: Path) -> Look | None:
    """The lease as it is now, None without one. It is opened, for then a shared file system asks its server."""
    try:
        with path.open("rb") as file:
            return Look(file.read(4096), os.fstat(file.fileno()).st_mtime_ns)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise


def worker(folder: Path) -> str:
    """Who works in a folder, in words; "" for nobody, as far as one look tells: a holder elsewhere may be dead."""
    found = look(folder / NAME)
    return str(found) if found and not _is_dead(folder / NAME, found) else ""


class Lease:
    """The lease of a folder, for this process.

    Parameters
    ----------
    folder : Path
        An existing folder.
    me : Holder or None
        The process that takes or has the lease; None: this one.
    """

    def __init__(self, folder: Path, me: Holder | None = None) -> None:
        self.folder, self.path = folder, folder / NAME
        self.me = me or Holder.this_process()
        self._over = threading.Event()

    def acquire(self, left: contextlib.ExitStack, wait: bool, told: Callable[[str], None] | None) -> None:
        """Hold the lease until `left` is left; Busy if another process holds it.

        Parameters
        ----------
        left : ExitStack
            Releases the lease.
        wait : bool
            Wait until any other holder has ended.
        told : callable or None
            Given, a holder elsewhere is watched until it is seen alive or dead; `told` gets a line that says so. If
            None, such a holder is alive until calls of this process have seen its silence.
        """
        first: Look | None = None
        while not self._created(left):
            found = look(self.path)
            if found is None or _is_dead(self.path, found):
                if found:
                    _remove(self.path, found)
                continue
            here = found.holder is not None and found.holder.is_here
            unsure = told and not here and first in (None, found)
            if not (wait or unsure):
                raise Busy(f"{found} is working on this run ({self.folder}); wait for it or stop it")
            if told and first is None:
                told(f"{found} holds this run; watching for up to {SILENT_SECONDS:.0f} s whether it is alive")
            first = found
            time.sleep(LOOK_SECONDS)

    def _created(self, left: contextlib.ExitStack) -> bool:
        """Whether the file was not there, and is this process's now."""
        with uninterrupted():
            try:
                file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return False
            try:
                os.write(file, self.me.written())
                os.fsync(file)
            except OSError:
                os.close(file)
                self.path.unlink()
                raise
            left.callback(self._release)
            _held.append(self)
            threading.Thread(target=self._beat, args=(file,), daemon=True, name="lease").start()
            return True

    def _beat(self, file: int) -> None:
        """Touch the file, whatever its name has become, until the lease is released."""
        while not self._over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the file system may be away for a while
                os.utime(file)
        os.close(file)

    def require(self) -> None:
        """Lost, unless this process still holds the lease."""
        for pause in (0.0, LOOK_SECONDS):  # for a moment, it may be aside
            time.sleep(pause)
            if self._is_mine():
                return
        raise Lost(
            f"{look(self.path) or 'another process'} took over this run ({self.folder}), since this process had shown "
            f"no sign of life for {SILENT_SECONDS:.0f} s; this process ends and has written nothing since"
        )

    def _release(self) -> None:
        with uninterrupted():
            self._over.set()
            _held.remove(self)
            if self._is_mine():
                self.path.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        found = look(self.path)
        return found is not None and found.holder == self.me


_held: list[Lease] = []


def require(path: Path) -> None:
    """Lost, if this process has lost the lease of a folder that holds `path`."""
    for lease in _held:
        if lease.folder in path.parents:
            lease.require()


def held() -> list[tuple[Path, Holder]]:
    """The folders whose leases this process has, and its name there."""
    return [(lease.folder.absolute(), lease.me) for lease in _held]


def share(leases: Iterable[tuple[Path, Holder]]) -> None:
    """Work under the leases that another process has (`held` there): what it may not write, this one may not either."""
    _held.extend(Lease(folder, holder) for folder, holder in leases)


# ---------------------------------------------------------------------------------------------------------
# Dead holders
# ---------------------------------------------------------------------------------------------------------

_watched: dict[Path, tuple[Look, float, float]] = {}
"""Leases of other machines: what was seen, when [s, monotonic], and how long it had then been unchanged [s]."""


def _is_dead(path: Path, found: Look) -> bool:
    if (holder := found.holder) and holder.is_here:
        return not holder.runs()
    now = time.monotonic()
    before, then, silent = _watched.get(path, (None, now, 0.0))
    # A long time between two looks may be one in which the file system was away, from the holder too.
    silent = silent + min(now - then, SILENT_SECONDS / 2) if before == found else 0.0
    _watched[path] = found, now, silent
    return silent > SILENT_SECONDS


def _remove(path: Path, dead: Look) -> None:
    """Remove this lease. If another process has replaced or touched it meanwhile, it stays."""
    aside = temporary(path.parent)
    with uninterrupted(), contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if look(aside) == dead:
            aside.unlink()
        else:
            aside.rename(path)
