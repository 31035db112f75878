"""Claims on the units of a journal: which process computes a unit, where several fill the journal of one evaluation.

A claim is a lock on a file in a folder of this machine, for the journal's file system may have no locks. The system
frees it when its process ends in whatever way, so only a living process holds one. One process reads the whole journal,
in the evaluation's own order (`Reading`); others compute units ahead of it, in any order (`Filling`).

A process that was stopped (SIGSTOP) lives and holds its claim. So a second file is touched every `BEAT_SECONDS` while a
claim is held; where it stays untouched, the reading process computes the unit too, and the first file written counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from robflat_bench.core.examples import Result
from robflat_bench.records import lease
from robflat_bench.records.store import disk_errors

POLL_SECONDS = 0.01
"""Seconds between two looks at a unit that another process computes."""
BEAT_SECONDS = 1.0
"""Seconds between two touches of the file that says that a claim's process is not stopped."""
SILENT_SECONDS = 15.0
"""After so many seconds without a touch, a claim is waited for no longer."""


class Elsewhere(BaseException):
    """Another process computes the unit. No `Exception`, so that no component takes it for a failure."""


class Claims:
    """The claims of the only process: it computes every unit itself."""

    def of(self, unit: Path) -> AbstractContextManager[object]:
        """A block in which this process alone computes the unit in this file."""
        return nullcontext()

    def each(self, count: int, compute: Callable[[int], Result]) -> list[Result]:
        """`Journal.each`."""
        return [compute(number) for number in range(count)]


class Reading(Claims):
    """The claims of the process that reads all units: it waits for a unit that another one computes.

    Parameters
    ----------
    folder : Path
        A folder of this machine, the same in all processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def of(self, unit: Path) -> Iterator[None]:
        lock, silence = _lock(self.folder, unit), _Silence(_beaten(self.folder, unit))
        with disk_errors(self.folder):
            while not _acquired(lock) and silence.seconds() < SILENT_SECONDS:
                time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            lock.release()  # does nothing where it is not held


class Filling(Claims):
    """The claims of a process that computes ahead: it raises `Elsewhere` for a unit that another one computes.

    Of independent units it takes the last one first, because `Reading` begins with the first. `folder`: as there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leaving = False
        """Whether `Elsewhere` was raised and no `each` has dealt with it: what is computed now may lack a unit."""
        self._held: list[Path] = []
        threading.Thread(target=self._beat, daemon=True, name="claims").start()

    @contextmanager
    def of(self, unit: Path) -> Iterator[None]:
        if self.leaving:
            raise Elsewhere(unit)
        lease.require(unit)
        lock, beaten = _lock(self.folder, unit), _beaten(self.folder, unit)
        if not _acquired(lock):
            self._leave(unit)
        beaten.touch()
        self._held.append(beaten)
        try:
            yield
        finally:
            self._held.remove(beaten)
            lock.release()

    def each(self, count: int, compute: Callable[[int], Result]) -> list[Result]:
        found: dict[int, Result] = {}
        for number in reversed(range(count)):
            try:
                found[number] = compute(number)
            except Elsewhere:
                self.leaving = False
        if len(found) < count:
            self._leave(count)
        return [found[number] for number in range(count)]

    def _leave(self, what: object) -> None:
        self.leaving = True
        raise Elsewhere(what)

    def _beat(self) -> None:
        while self.folder.is_dir():
            for beaten in [*self._held]:
                with contextlib.suppress(OSError):
                    os.utime(beaten)
            time.sleep(BEAT_SECONDS)


class _Silence:
    """For how long a file has been seen untouched. A process that was stopped itself counts that time as a moment."""

    def __init__(self, file: Path) -> None:
        self.file, self.silent = file, 0.0
        self.before: tuple[float, int | None] = time.monotonic(), self._touched()

    def seconds(self) -> float:
        """Look again."""
        then, touched = self.before
        self.before = time.monotonic(), self._touched()
        same = self.before[1] == touched
        self.silent = self.silent + min(self.before[0] - then, BEAT_SECONDS) if same else 0.0
        return self.silent

    def _touched(self) -> int | None:
        with contextlib.suppress(OSError):
            return self.file.stat().st_mtime_ns
        return None


def _acquired(lock: FileLock) -> bool:
    """Whether this process holds the lock now; it does not wait for it."""
    with contextlib.suppress(Timeout):
        lock.acquire(blocking=False)
    return lock.is_locked


def _lock(folder: Path, unit: Path) -> FileLock:
    return FileLock(_place(folder, unit))


def _beaten(folder: Path, unit: Path) -> Path:
    return _place(folder, unit).with_suffix(".beat")


def _place(folder: Path, unit: Path) -> Path:
    return folder / hashlib.sha256(str(unit.absolute()).encode()).hexdigest()
