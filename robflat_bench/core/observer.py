"""Observers of a run within this package: the progress bar, the history file, the observers of plugins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robflat_bench.core.examples import Spent
    from robflat_bench.records.record import Epoch


class Observer:
    """Shows or keeps what happens in a run. Each method does nothing until it is overridden."""

    def begins(self, what: str) -> None:
        """The command or call is found to be right, and torch is imported next, which takes seconds."""

    def training_starts(self, epochs: int, steps: int, done: int) -> None:
        """Training has `steps` updates in `epochs` epochs; an earlier process made `done` of them."""

    def step_ends(self, done: int) -> None:
        """`done` updates are made in all."""

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        """An epoch has ended; the history ends with it."""

    def evaluation_starts(self, stages: Sequence[str]) -> None:
        """An evaluation begins; it has these stages, in this order."""

    def work_starts(self, passes: Sequence[int | None], processes: int, spent: Callable[[], Spent]) -> None:
        """So many processes share the stages. `passes` are the image passes of each stage as declared (None: unknown),
        `spent()` the cost of the units that this process has computed or read."""

    def work_ends_elsewhere(self, stage: int, passes: int, ended: bool) -> None:
        """Another process has made more passes for the stage of this number, and may have ended it. Called from any
        thread."""

    def unit_ends(self) -> None:
        """One unit of the current stage is computed, or read from an earlier process."""

    def stage_ends(self, stage: str) -> None:
        """The stage has ended."""

    def note(self, text: str) -> None:
        """A message for the user."""


class Observers(Observer):
    """Several observers as one: each event goes to all of them, in order."""

    def __init__(self, *observers: Observer) -> None:
        for event in (name for name in vars(Observer) if not name.startswith("_")):
            setattr(self, event, partial(_call_each, [getattr(observer, event) for observer in observers]))


def _call_each(calls: Sequence[Callable[..., None]], *arguments: object, **named: object) -> None:
    for call in calls:
        call(*arguments, **named)
