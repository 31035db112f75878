"""Where a run stands, on stderr: bars with ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from robflat_bench.cli.output import console, percent
from robflat_bench.observers import Observer
from robflat_bench.record import Epoch


def bars(screen: Console) -> Bars:
    """What is done, of how much, and the time left."""
    return Bars(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=screen
    )


class Progress(Observer):
    """An observer that shows where a run stands."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        self.began = time.perf_counter()
        self.stages: list[str] = []
        self.units = 0
        self.bars = bars(screen) if screen.is_terminal else None

    def __enter__(self) -> Progress:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()

    def line(self, text: str) -> None:
        """One plain line, where there is no terminal."""
        if not self.bars:
            click.echo(f"[{time.perf_counter() - self.began:6.1f} s] {text}", err=True)

    def training_starts(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs
        if self.bars:
            self.training = self.bars.add_task("training", total=steps, completed=done)
        elif done < steps:
            self.line(f"training: {epochs} epochs, {steps} steps" + (f", resuming at {done}" if done else ""))

    def step_ends(self, done: int) -> None:
        if self.bars:
            self.bars.update(self.training, completed=done)

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        row = history[-1]
        robust = f", held-out robust error {percent(row.heldout_robust_error)}"
        text = f"epoch {row.epoch + 1}/{self.epochs}: loss {row.train_loss:.3f}"
        text += robust if row.heldout_robust_error is not None else ""
        if self.bars:
            self.bars.update(self.training, description=text)
        self.line(text)

    def evaluation_starts(self, stages: Sequence[str]) -> None:
        self.stages = list(stages)
        if self.bars:
            self.evaluation = self.bars.add_task(self._next(0), total=len(stages))
        self.line(f"evaluation: {len(stages)} stages")

    def unit_ends(self) -> None:
        self.units += 1
        if self.bars and self.stages:
            done = int(self.bars.tasks[-1].completed)
            self.bars.update(self.evaluation, description=f"{self._next(done)} (unit {self.units})")

    def stage_ends(self, stage: str) -> None:
        self.units = 0
        if self.bars:
            self.bars.advance(self.evaluation)
            self.bars.update(self.evaluation, description=self._next(int(self.bars.tasks[-1].completed)))
        checkpoint, _, rest = stage.partition(": ")
        self.line(f"{checkpoint}: {rest} done")

    def _next(self, done: int) -> str:
        if done >= len(self.stages):
            return "evaluation"
        checkpoint, _, rest = self.stages[done].partition(": ")
        return f"{checkpoint}: {rest}"
