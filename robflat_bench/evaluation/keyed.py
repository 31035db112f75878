"""A journal that keys the global generators, for networks and components that draw from them in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robflat_bench.core import Journal
from robflat_bench.core.examples import Result, Spent
from robflat_bench.core.randomness import generator, global_state


class KeyedJournal(Journal):
    """A journal whose units draw the same numbers whether or not the units before them were read back.

    Parameters
    ----------
    journal : Journal
        Keeps the units.
    key : int and str
        The key of the journal; section and unit are added to it.
    """

    def __init__(self, journal: Journal, *key: int | str) -> None:
        self.journal, self.key = journal, key

    @property
    def spent(self) -> Spent:  # type: ignore[override]
        return self.journal.spent

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        def keyed() -> Mapping[str, np.ndarray]:
            with global_state(generator(*self.key, name)):
                return compute()

        return self.journal.unit(name, keyed)

    def each(self, count: int, compute: Callable[[int], Result]) -> list[Result]:
        return self.journal.each(count, compute)

    def section(self, name: str) -> KeyedJournal:
        return KeyedJournal(self.journal.section(name), *self.key, name)
