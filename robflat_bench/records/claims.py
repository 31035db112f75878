"""Claims on the units of a journal: which process computes a unit, where several fill the journal of one evaluation.

A claim is a lock on a file beside the unit's own. The system frees it when its process ends in whatever way, so only a
living process holds one. One process reads the whole journal, in the evaluation's own order (`Reading`); others compute
units ahead of it, in any order (`Filling`).
"""

from __future__ import annotations

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
    """The claims of the process that reads all units: it waits for a unit that another one computes."""

    def of(self, unit: Path) -> AbstractContextManager[object]:
        with disk_errors(unit):
            return _lock(unit).acquire(poll_interval=POLL_SECONDS)


class Filling(Claims):
    """The claims of a process that computes ahead: it raises `Elsewhere` for a unit that another one computes.

    Of independent units it takes the last one first, because `Reading` begins with the first.
    """

    def __init__(self) -> None:
        self.leaving = False
        """Whether `Elsewhere` was raised and no `each` has dealt with it: what is computed now may lack a unit."""

    @contextmanager
    def of(self, unit: Path) -> Iterator[None]:
        if self.leaving:
            raise Elsewhere(unit)
        lock = _lock(unit)
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


def _lock(unit: Path) -> FileLock:
    unit.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(unit.with_suffix(".lock"))
