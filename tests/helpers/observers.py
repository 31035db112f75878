"""Observers of a run that tests share."""

from __future__ import annotations

from robflat_bench.core import Observer


class StopsAt(Observer):
    """Interrupts training once, after `step` updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, done: int) -> None:
        if done == self.step:
            self.step = -1
            raise KeyboardInterrupt
