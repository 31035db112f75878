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
from robflat_bench.runs.status import place
from robflat_bench.runs.sweep import Event, Sweep
from robflat_bench.runs.tasks import Task

LINE_SECONDS = 60.0
"""Seconds between a sweep's progress lines, without a terminal."""

MEANINGS = {
    "busy": "waiting for it",
    "adopted": "its job was there already",
    "continued": "goes on",
    "again": "will try once more",
}
"""Event that ends no task -> how it is told."""


class SweepProgress(Drawn):
    """The progress of a sweep: a line for each event. On a terminal, a bar for all runs and one for each running run
    follow below; without a terminal, or where the runs themselves draw on it, a summary line every minute."""

    def __init__(self, total: int, drawing: bool) -> None:
        screen = console(stderr=True)
        self.total, self.ended, self.shown = total, 0, 0
        self.said = time.monotonic()
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
            places = (_place(sweep, task) for task in sweep.running.values())
            self._line("; ".join([self._summary(sweep), *places]))

    def _told(self, event: Event) -> str:
        why = f": {event.why}" if event.why else ""
        if event.what in MEANINGS:
            return f"{event.task.title}: {MEANINGS[event.what]}{why}"
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
            done = sweep.estimates.course(task).epochs
            shown.update(self.rows[key], completed=done, description=_place(sweep, task))
        shown.update(self.all, completed=self.ended, description=self._summary(sweep))

    def _summary(self, sweep: Sweep) -> str:
        """The number of runs in each state, and how long the rest takes."""
        counts = Counter(event.what for event in sweep.ended.values())
        texts = [f"{count} {what}" for what, count in counts.items()]
        queued = sum(sweep.standings.get(key, "").startswith("queued") for key in sweep.running)
        texts += [f"{len(sweep.running) - queued} running"]
        texts += [f"{queued} queued"] if queued else []
        texts += [f"{len(sweep.waiting)} waiting"]
        jobs = sweep.launcher.resources.jobs
        left = sweep.estimates.left([*sweep.running.values()], sweep.waiting, jobs)
        return ", ".join([*texts, *([] if left is None else [f"about {duration(left)} left"])])


def _place(sweep: Sweep, task: Task) -> str:
    """The epoch or stage of a running task, or where its job stands in a queue."""
    words = sweep.standings.get(task.spec.key, "")
    done = sweep.estimates.course(task).epochs
    return f"{task.title}: {words if words.startswith('queued') else place(done, task.spec.recipe.epochs)}"
