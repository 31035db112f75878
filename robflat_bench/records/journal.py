"""The journal of an evaluation: finished units of work as files, so that an interrupted evaluation skips them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from robflat_bench.core import Journal, Spent, clock
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.core.examples import Result
from robflat_bench.records.store import read_arrays, write_atomically, write_first
from robflat_bench.records.unit_claims import Claims

if TYPE_CHECKING:
    from robflat_bench.numerics.passes import PassCounter

Unit: TypeAlias = tuple[dict[str, np.ndarray], Spent]
"""The arrays of a unit's file, and what the unit cost."""
SECONDS, PASSES = "spent.seconds", "spent.passes"
"""Arrays of a unit's file that say what the unit cost; all others are the unit's own."""


@dataclass(eq=False)
class StoredJournal(Journal):
    """Units of work as files below `folder`: a finished unit is read, a damaged unit is computed again.

    `on_unit` is called after each unit; `counter` counts image passes; `parent` has this journal as a section; `claims`
    share the units with other processes. `spent` sums the cost of all units, each once, in whichever process they were
    computed; a parent's includes its sections'.
    """

    folder: Path
    on_unit: Callable[[], None] = lambda: None
    counter: PassCounter | None = None
    parent: StoredJournal | None = None
    claims: Claims = field(default_factory=Claims)
    spent: Spent = field(default=Spent(), init=False)
    _counted: set[Path] = field(default_factory=set, init=False)

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        if not re.fullmatch(r"[\w.-]{1,200}", name):
            raise ValueError(f"a unit's name is [\\w.-], not {name!r}")  # the name becomes a file's
        path = self.folder / f"{name}.npz"
        if (found := _read(path)) is None:
            with self.claims.of(path):
                found = _read(path) or self._computed(path, compute)  # another process may have computed it
        arrays, spent = found
        self._count(path, spent)
        self.on_unit()
        return {name: array for name, array in arrays.items() if name not in (SECONDS, PASSES)}

    def each(self, count: int, compute: Callable[[int], Result]) -> list[Result]:
        return self.claims.each(count, compute)

    def section(self, name: str, counter: PassCounter | None = None) -> StoredJournal:
        folder = hashlib.sha256(name.encode()).hexdigest()[:16]
        return StoredJournal(self.folder / folder, self.on_unit, counter or self.counter, self, self.claims)

    def _computed(self, path: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> Unit:
        began, before = clock.now(), self._passes()
        arrays = dict(compute())
        arrays |= {SECONDS: np.array(clock.now() - began), PASSES: self._passes() - before}
        raw = arrays_bytes(arrays)
        # A process that was stopped for a while may come second. Two files would differ in their seconds: one counts.
        if not write_first(path, raw):
            if (found := _read(path)) is not None:
                return found
            write_atomically(path, raw)  # in place of a damaged file
        return arrays, _spent(arrays)

    def _passes(self) -> np.ndarray:
        return np.array([self.counter.forward, self.counter.backward] if self.counter else [0, 0])

    def _count(self, unit: Path, spent: Spent) -> None:
        if unit not in self._counted:
            self._counted.add(unit)
            self.spent += spent
        if self.parent:
            self.parent._count(unit, spent)


def _read(path: Path) -> Unit | None:
    """A finished unit; None where there is none, or it is damaged."""
    try:
        arrays = read_arrays(path)
        return arrays, _spent(arrays)
    except (ValueError, KeyError, FileNotFoundError):
        return None


def _spent(unit: Mapping[str, np.ndarray]) -> Spent:
    """The cost of a unit; KeyError if another version wrote its file."""
    forward, backward = map(int, unit[PASSES])
    return Spent(float(unit[SECONDS]), forward, backward)
