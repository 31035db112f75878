"""Progress of a run or an evaluation on stderr: bars on a terminal and in a notebook, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from robflat_bench.core import Observer, Spent
from robflat_bench.core.processes import in_torchrun
from robflat_bench.front import text as texts
from robflat_bench.front.console import console
from robflat_bench.front.remaining import Remaining
from robflat_bench.front.text import percent
from robflat_bench.records.record import Epoch


def draws(screen: Console) -> bool:
    """Whether bars can be drawn: on a terminal, and in a notebook where rich finds its widgets; of several processes
    that torchrun started, the first one draws."""
    if in_torchrun() and os.environ["RANK"] != "0":
        return False
    return screen.is_terminal or (screen.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


def progress_bars(screen: Console, *more: ProgressColumn) -> Bars:
    """Bars with description (nothing in it is read as markup), count and further columns."""
    text = TextColumn("{task.description}", markup=False)
    return Bars(text, BarColumn(), MofNCompleteColumn(), *more, console=screen)


class Drawn:
    """Shows `bars` while the block runs; None without a terminal."""

    bars: Bars | None

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()


class _Left(TimeRemainingColumn):
    """The time left: what the task says itself, or at the pace of its steps so far."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return super().render(task) if left is None else Text(left, style="progress.remaining")


class Progress(Drawn, Observer):
    """An observer that shows the progress of a run."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        self.quiet = screen.is_jupyter  # where every line of a log would stay in the document
        self.began = time.perf_counter()
        self.stages: list[str] = []
        self.units = 0
        self.remaining: Remaining | None = None
        self.bars = progress_bars(screen, _Left()) if draws(screen) else None

    def line(self, text: str) -> None:
        """Write one plain line, without a terminal and a notebook."""
        if not self.bars and not self.quiet:
            texts.say(f"[{time.perf_counter() - self.began:6.1f} s] {text}")

    def begins(self, what: str) -> None:
        if self.bars:
            self.bars.console.print(what, markup=False, soft_wrap=True)
        else:
            self.line(what)

    def note(self, text: str) -> None:
        if self.bars:
            self.bars.console.print(f"robflat-bench: {text}", markup=False, soft_wrap=True)
        else:
            texts.note(text)

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

    def work_starts(self, passes: Sequence[int | None], processes: int, spent: Callable[[], Spent]) -> None:
        self.remaining = Remaining(passes, processes, spent)

    def work_ends_elsewhere(self, stage: int, passes: int, ended: bool) -> None:
        if self.remaining:
            self.remaining.work_ends_elsewhere(stage, passes, ended)
        self._show_left()

    def unit_ends(self) -> None:
        self.units += 1
        if self.bars and self.stages:
            done = int(self.bars.tasks[-1].completed)
            self.bars.update(self.evaluation, description=f"{self._next(done)} (unit {self.units})")
        self._show_left()

    def stage_ends(self, stage: str) -> None:
        self.units = 0
        if self.bars:
            self.bars.advance(self.evaluation)
            self.bars.update(self.evaluation, description=self._next(int(self.bars.tasks[-1].completed)))
        if self.remaining:
            self.remaining.stage_ends()
        self._show_left()
        checkpoint, _, rest = stage.partition(": ")
        left = str(self.remaining or "")
        self.line(f"{checkpoint}: {rest} done" + (f"; {left}" if left else ""))

    def _show_left(self) -> None:
        if self.bars and self.stages and self.remaining:
            self.bars.update(self.evaluation, left=str(self.remaining))

    def _next(self, done: int) -> str:
        if done >= len(self.stages):
            return "evaluation"
        checkpoint, _, rest = self.stages[done].partition(": ")
        return f"{checkpoint}: {rest}"
