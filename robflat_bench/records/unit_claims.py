"""Claims on the units of a journal: which process computes a unit, where several fill the journal of one evaluation.

A claim is a lock on a file in a folder of this machine, for the journal's file system may have no locks. The system
frees it when its process ends in whatever way, so only a living process holds one. One process reads the whole journal,
in the evaluation's own order (`Reading`); others compute units ahead of it, in any order (`Filling`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from robflat_bench.core.examples import Result
from robflat_bench.records.store import disk_errors

POLL_SECONDS = 0.01
"""Seconds between two looks at a unit that another process computes."""


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

    def of(self, unit: Path) -> AbstractContextManager[object]:
        with disk_errors(self.folder):
            return _lock(self.folder, unit).acquire(poll_interval=POLL_SECONDS)


class Filling(Claims):
    """The claims of a process that computes ahead: it raises `Elsewhere` for a unit that another one computes.

    Of independent units it takes the last one first, because `Reading` begins with the first. `folder`: as there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leaving = False
        """Whether `Elsewhere` was raised and no `each` has dealt with it: what is computed now may lack a unit."""

    @contextmanager
    def of(self, unit: Path) -> Iterator[None]:
        if self.leaving:
            raise Elsewhere(unit)
        lock = _lock(self.folder, unit)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self._leave(unit)
        try:
            yield
        finally:
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


def _lock(folder: Path, unit: Path) -> FileLock:
    return FileLock(folder / hashlib.sha256(str(unit.absolute()).encode()).hexdigest())
