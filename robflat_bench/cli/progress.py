"""Progress of a run or a sweep on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from robflat_bench.cli import output
from robflat_bench.cli.output import console, percent
from robflat_bench.core import Observer
from robflat_bench.records.record import Epoch
from robflat_bench.runs.agenda import duration
from robflat_bench.runs.sweep import Event, Sweep
from robflat_bench.runs.tasks import Task

LINE_SECONDS = 60.0
"""Seconds between a sweep's progress lines, without a terminal."""


def progress_bars(screen: Console, *more: ProgressColumn) -> Bars:
    """Bars with description (nothing in it is read as markup), count and further columns."""
    text = TextColumn("{task.description}", markup=False)
    return Bars(text, BarColumn(), MofNCompleteColumn(), *more, console=screen)


class _Drawn:
    """Shows `bars` while the block runs; None without a terminal."""

    bars: Bars | None

    def __enter__(self) -> Self:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars:
            self.bars.stop()


class Progress(_Drawn, Observer):
    """An observer that shows the progress of a run."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        self.began = time.perf_counter()
        self.stages: list[str] = []
        self.units = 0
        self.bars = progress_bars(screen, TimeRemainingColumn()) if screen.is_terminal else None

    def line(self, text: str) -> None:
        """Write one plain line, without a terminal."""
        if not self.bars:
            output.say(f"[{time.perf_counter() - self.began:6.1f} s] {text}")

    def note(self, text: str) -> None:
        if self.bars:
            self.bars.console.print(f"robflat-bench: {text}", markup=False)
        else:
            output.note(text)

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


class SweepProgress(_Drawn):
    """The progress of a sweep: a line for each event. On a terminal, a bar for all runs and one for each running run
    follow below; without a terminal, or where the runs themselves draw on it, a summary line every minute."""

    def __init__(self, total: int, drawing: bool) -> None:
        screen = console(stderr=True)
        self.total, self.ended, self.shown = total, 0, 0
        self.began = self.said = time.monotonic()
        self.ahead = 0
        self.bars = progress_bars(screen) if screen.is_terminal and drawing else None
        self.rows: dict[str, TaskID] = {}
        if self.bars:
            self.all = self.bars.add_task("all runs", total=total)

    def __call__(self, sweep: Sweep) -> None:
        """Show the events since the last call; the sweep calls this on every turn."""
        self.ahead = self.ahead or _ahead(sweep)
        for event in sweep.events[self.shown :]:
            self._line(self._told(event))
        self.shown = len(sweep.events)
        if self.bars:
            self._draw(self.bars, sweep)
        elif time.monotonic() - self.said >= LINE_SECONDS and sweep.running:
            self._line("; ".join([self._summary(sweep), *map(_place, sweep.running.values())]))

    def _told(self, event: Event) -> str:
        why = f": {event.why}" if event.why else ""
        if event.what in ("busy", "again"):
            meaning = {"busy": "waiting for it", "again": "will try once more"}[event.what]
            return f"{event.task.title}: {meaning}{why}"
        self.ended += 1
        return f"[{self.ended}/{self.total}] {event.task.title}: {event.what}{why}"

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        if self.bars:
            self.bars.console.print(text, markup=False, soft_wrap=True)
        else:
            output.say(text)

    def _draw(self, shown: Bars, sweep: Sweep) -> None:
        for key in self.rows.keys() - sweep.running.keys():
            shown.remove_task(self.rows.pop(key))
        for key, task in sweep.running.items():
            if key not in self.rows:
                self.rows[key] = shown.add_task(task.title, total=task.spec.recipe.epochs)
            shown.update(self.rows[key], completed=task.epochs(), description=_place(task))
        shown.update(self.all, completed=self.ended, description=self._summary(sweep))

    def _summary(self, sweep: Sweep) -> str:
        """The number of runs in each state, and how long the rest takes at the pace so far."""
        ahead, elapsed = _ahead(sweep), time.monotonic() - self.began
        counts = Counter(event.what for event in sweep.ended.values())
        texts = [f"{count} {what}" for what, count in counts.items()]
        texts += [f"{len(sweep.running)} running", f"{len(sweep.waiting)} waiting"]
        if ahead < self.ahead:
            texts.append(f"about {duration(elapsed * ahead / (self.ahead - ahead))} left")
        return ", ".join(texts)


def _ahead(sweep: Sweep) -> int:
    """Image passes of running and waiting runs."""
    return sum(sum(task.left()) for task in (*sweep.waiting, *sweep.running.values()))


def _place(task: Task) -> str:
    """The epoch or stage of a running task."""
    done, epochs = task.epochs(), task.spec.recipe.epochs
    place = "starting" if not done else "evaluation" if done == epochs else f"epoch {done + 1}/{epochs}"
    return f"{task.title}: {place}"
