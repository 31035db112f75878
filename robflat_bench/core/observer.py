"""Who watches a run from within this package: a progress bar, the history file, the observers of plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robflat_bench.results.record import Epoch


class Observer:
    """Override what you want to see."""

    def training_starts(self, epochs: int, steps: int, done: int) -> None:
        """`steps` batches in `epochs` epochs lie ahead, `done` of them are done already."""

    def step_ends(self, done: int) -> None:
        """`done` batches are done in all."""

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        """The history so far, the newest epoch last."""

    def evaluation_starts(self, stages: Sequence[str]) -> None:
        """These stages lie ahead, in this order."""

    def unit_ends(self) -> None:
        """One unit of the current stage is done (or was already)."""

    def stage_ends(self, stage: str) -> None:
        """The stage is done."""

    def note(self, text: str) -> None:
        """Something the person should know."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def training_starts(self, epochs: int, steps: int, done: int) -> None:
        for observer in self.observers:
            observer.training_starts(epochs, steps, done)

    def step_ends(self, done: int) -> None:
        for observer in self.observers:
            observer.step_ends(done)

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        for observer in self.observers:
            observer.epoch_ends(history)

    def evaluation_starts(self, stages: Sequence[str]) -> None:
        for observer in self.observers:
            observer.evaluation_starts(stages)

    def unit_ends(self) -> None:
        for observer in self.observers:
            observer.unit_ends()

    def stage_ends(self, stage: str) -> None:
        for observer in self.observers:
            observer.stage_ends(stage)

    def note(self, text: str) -> None:
        for observer in self.observers:
            observer.note(text)
