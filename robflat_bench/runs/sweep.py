"""Sweeps: every run of a study, each in a process of its own; finished ones are skipped, a failed one stops nothing.

Everything that must outlive a killed sweep lies in the runs' folders: a new sweep finds records, failures and
checkpoints there, and the locks of runs that still go on. Who else sweeps the same store is therefore no problem: a
run that another process works on is waited for.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from robflat_bench.core import Job, Launcher, RobflatError
from robflat_bench.results.store import Busy, write_json
from robflat_bench.runs.tasks import Task

TURN_SECONDS = 1.0
"""How often it looks after runs of other processes and shows where its own stand."""

OUTSIDE = {signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP}
"""What ends a run for reasons that are not its own: a person, the machine's shutdown, the lack of memory."""

End = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a task, and why: it ended, is waited for (busy), or will be tried again."""

    task: Task
    what: End | Literal["busy", "again"]
    why: str = ""


@dataclass
class Sweep:
    """Runs tasks. command: what comes after `robflat-bench run` for a task. watch: called every turn.

    A run that ends without saying why (killed, refused before it began) is tried once more, after all others. If it
    was killed again, it stays unfinished for the next sweep; otherwise it has failed.
    """

    launcher: Launcher
    command: Callable[[Task], Sequence[str]]
    retry_failed: bool = False
    watch: Callable[[Sweep], None] = lambda sweep: None

    waiting: list[Task] = field(default_factory=list, init=False)
    running: dict[str, Task] = field(default_factory=dict, init=False)
    ended: dict[str, Event] = field(default_factory=dict, init=False)
    events: list[Event] = field(default_factory=list, init=False)
    _attempts: Counter[str] = field(default_factory=Counter, init=False)
    _stops: int = field(default=0, init=False)

    def run(self, wanted: Sequence[Task]) -> dict[str, Event]:
        """Key -> how it ended. On Ctrl-C running tasks are told to save, and KeyboardInterrupt is raised when they
        have."""
        self.waiting = list(wanted)
        told = 0
        with _interrupting(self.stop):
            while self.running or (self.waiting and not self._stops):
                self._begin_what_fits()
                self.watch(self)
                for key, code in self.launcher.wait(TURN_SECONDS).items():
                    self._exited(self.running.pop(key), code)
                for _ in range(told, self._stops):
                    self.launcher.interrupt()
                    told += 1
            self.watch(self)
        if self._stops:
            raise KeyboardInterrupt
        return self.ended

    def stop(self) -> None:
        """Start nothing more and tell what runs to save and end; a second time, to end at once."""
        self._stops += 1

    def _begin_what_fits(self) -> None:
        """End what needs no run, and start as much of the rest as there are slots for."""
        for task in list(self.waiting):
            if self._stops:
                break
            state = task.state()
            if state == "done" or (state == "failed" and not self.retry_failed):
                self._end(task, state, task.error())
            elif len(self.running) < self.launcher.resources.jobs:
                self._begin(task)

    def _begin(self, task: Task) -> None:
        """Start a run, unless another process works on it."""
        log = task.folder.path / "log.txt"
        try:
            with task.folder.locked():
                task.folder.failed_file.unlink(missing_ok=True)
                log.unlink(missing_ok=True)
            arguments = (sys.executable, "-m", "robflat_bench", "run", *self.command(task))
            self.launcher.start(Job(task.spec.key, arguments, log))
        except Busy as busy:
            return self._tell(Event(task, "busy", str(busy)))
        except (RobflatError, OSError) as error:
            return self._end(task, "failed", str(error).splitlines()[0])
        self.waiting.remove(task)
        self.running[task.spec.key] = task
        self._attempts[task.spec.key] += 1

    def _exited(self, task: Task, code: int) -> None:
        """A run has ended; what it left in its folder counts, its exit code only where it left nothing."""
        state, killer = task.state(), _killer(code)
        why = f"ended by {killer.name}" if killer else f"exit code {code}{_last_words(task.folder.path / 'log.txt')}"
        self.waiting.append(task)  # behind all others, unless it has ended
        if state in ("done", "failed"):
            self._end(task, state, task.error())
        elif self._stops:
            self._end(task, "interrupted", "the sweep was told to stop")
        elif self._attempts[task.spec.key] == 1:
            self._tell(Event(task, "again", why))
        elif killer in OUTSIDE:
            self._end(task, "interrupted", why)
        else:
            self._fail(task, why)

    def _fail(self, task: Task, why: str) -> None:
        """Write down the failure that a run could not write itself, unless another process works on it by now."""
        try:
            with task.folder.locked():
                write_json(task.folder.failed_file, {"key": task.spec.key, "error": why})
        except Busy as busy:
            return self._tell(Event(task, "busy", str(busy)))
        self._end(task, "failed", why)

    def _end(self, task: Task, what: End, why: str) -> None:
        self.waiting.remove(task)
        self.ended[task.spec.key] = Event(task, what, why)
        self._tell(self.ended[task.spec.key])

    def _tell(self, event: Event) -> None:
        """Once, however often it is found again."""
        if event not in self.events:
            self.events.append(event)


def _killer(code: int) -> signal.Signals | None:
    """The signal that ended a process, from its exit code; None where it ended by itself."""
    number = -code if code < 0 else code - 128
    return next((known for known in signal.Signals if known == number), None)


@contextmanager
def _interrupting(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP call `stop` instead of ending this process, in the main thread."""

    def handler(number: int, frame: FrameType | None) -> None:
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _last_words(log: Path) -> str:
    """`: ` and the last line of what a run wrote; empty where it wrote nothing."""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return f": {lines[-1][:500]}" if lines else ""
