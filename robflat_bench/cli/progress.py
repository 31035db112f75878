"""Progress of a sweep on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter

from rich.progress import Progress as Bars
from rich.progress import TaskID

from robflat_bench.core.clock import duration
from robflat_bench.front.console import console
from robflat_bench.front.progress import Drawn, draws, progress_bars
from robflat_bench.front.text import say
from robflat_bench.records.record import Budget, RunRecord
from robflat_bench.records.store import read_record
from robflat_bench.runs.sweep import Event, Sweep
from robflat_bench.runs.tasks import Pace, Task

LINE_SECONDS = 60.0
"""Seconds between a sweep's progress lines, without a terminal."""


class SweepProgress(Drawn):
    """The progress of a sweep: a line for each event. On a terminal, a bar for all runs and one for each running run
    follow below; without a terminal, or where the runs themselves draw on it, a summary line every minute."""

    def __init__(self, total: int, drawing: bool) -> None:
        screen = console(stderr=True)
        self.total, self.ended, self.shown = total, 0, 0
        self.said = time.monotonic()
        self.budgets: dict[str, Budget] = {}
        """Of the runs that are done, by key."""
        self.bars = progress_bars(screen) if draws(screen) and drawing else None
        self.rows: dict[str, TaskID] = {}
        if self.bars:
            self.all = self.bars.add_task("all runs", total=total)

    def __call__(self, sweep: Sweep) -> None:
        """Show the events since the last call; the sweep calls this on every turn."""
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
            say(text)

    def _draw(self, shown: Bars, sweep: Sweep) -> None:
        for key in self.rows.keys() - sweep.running.keys():
            shown.remove_task(self.rows.pop(key))
        for key, task in sweep.running.items():
            if key not in self.rows:
                self.rows[key] = shown.add_task(task.title, total=task.spec.recipe.epochs)
            shown.update(self.rows[key], completed=task.epochs(), description=_place(task))
        shown.update(self.all, completed=self.ended, description=self._summary(sweep))

    def _summary(self, sweep: Sweep) -> str:
        """The number of runs in each state, and how long the rest takes at the pace of those that are done."""
        counts = Counter(event.what for event in sweep.ended.values())
        texts = [f"{count} {what}" for what, count in counts.items()]
        texts += [f"{len(sweep.running)} running", f"{len(sweep.waiting)} waiting"]
        if seconds := self._left(sweep):
            texts.append(f"about {duration(seconds)} left")
        return ", ".join(texts)

    def _left(self, sweep: Sweep) -> float:
        """Seconds until all runs are done; 0 where none is done yet, which would tell the pace."""
        for key in [key for key, event in sweep.ended.items() if event.what == "done" and key not in self.budgets]:
            record: RunRecord = read_record(sweep.ended[key].task.folder.record_file, RunRecord)
            self.budgets[key] = record.budget
        if (pace := Pace.of([*self.budgets.values()])) is None:
            return 0.0
        left = [pace.seconds(task) for task in (*sweep.running.values(), *sweep.waiting)]
        return max(sum(left) / sweep.launcher.resources.jobs, *left, 0.0)


def _place(task: Task) -> str:
    """The epoch or stage of a running task."""
    done, epochs = task.epochs(), task.spec.recipe.epochs
    place = "starting" if not done else "evaluation" if done == epochs else f"epoch {done + 1}/{epochs}"
    return f"{task.title}: {place}"
