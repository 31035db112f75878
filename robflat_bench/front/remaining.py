"""The time that the rest of an evaluation takes, from the image passes that its components declare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from robflat_bench.core import Spent
from robflat_bench.core.clock import duration


class Remaining:
    """The rest of an evaluation that several processes share.

    Stages without a declared number of passes (a search, AutoAttack) are counted, not timed: their length is unknown.

    Parameters
    ----------
    passes : sequence of int or None
        Image passes of each stage; None where they are unknown.
    processes : int
        How many processes compute.
    spent : callable
        Returns the cost of all units that this process has computed or read: it tells the speed of one process.
    """

    def __init__(self, passes: Sequence[int | None], processes: int, spent: Callable[[], Spent]) -> None:
        self.passes, self.processes, self.spent = passes, processes, spent
        self.stage, self.before = 0, 0
        """The present stage, and the passes of those before it."""
        self.elsewhere: Counter[int] = Counter()
        """Passes that other processes have made, by stage."""
        self.ended: set[int] = set()
        """Stages that other processes have ended."""

    def stage_ends(self) -> None:
        """The present stage has ended; the next one begins."""
        self.stage, self.before = self.stage + 1, self._made

    def work_ends_elsewhere(self, stage: int, passes: int, ended: bool) -> None:
        """As `Observer.work_ends_elsewhere`."""
        self.elsewhere[stage] += passes
        if ended:
            self.ended.add(stage)

    @property
    def _made(self) -> int:
        spent = self.spent()
        return spent.forward + spent.backward

    def __str__(self) -> str:
        """`about 40 s left`, with the number of stages that this leaves out; empty while no pass tells the speed."""
        made = self._made
        if not made:
            return ""
        left, unknown = 0, 0
        for stage in range(self.stage, len(self.passes)):
            passes = self.passes[stage]
            if stage in self.ended:
                continue
            if passes is None:
                unknown += 1
                continue
            here = made - self.before if stage == self.stage else 0
            left += max(0, passes - max(here, self.elsewhere[stage]))
        seconds = left * self.spent().seconds / made / self.processes
        text = f"about {duration(seconds)} left"
        return text + (f", and {unknown} stage{'s' * (unknown > 1)} of unknown length" if unknown else "")
