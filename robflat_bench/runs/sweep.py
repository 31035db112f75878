"""Sweeps: every run of a study, each in its own process. Finished runs are skipped; a failed run stops no other run.

The sweep keeps nothing itself. Records, failures, checkpoints and locks lie in the runs' folders, so a sweep that was
killed can be started again, and several sweeps can share a store: each waits for runs that another process works on.
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
from typing import Literal

from robflat_bench.core import Interrupted, Job, Launcher, RobflatError
from robflat_bench.records.store import Busy, write_json
from robflat_bench.runs.tasks import Task

TURN_SECONDS = 1.0
"""Seconds between two looks at the runs of other processes, and between two updates of the progress."""

OUTSIDE = {signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP}
"""Signals that end a run from outside: from a user, from a shutdown, or for lack of memory."""

End = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class Event:
    """Something that happened to a task.

    Parameters
    ----------
    task : Task
        The task.
    what : str
        "done", "failed" or "interrupted": it has ended. "busy": another process works on it, and the sweep waits.
        "again": it ended without a record or a failure, and will be tried once more.
    why : str
        The reason in one line.
    """

    task: Task
    what: End | Literal["busy", "again"]
    why: str = ""


@dataclass
class Sweep:
    """Runs tasks, as many at a time as the launcher has jobs.

    Parameters
    ----------
    launcher : Launcher
        Starts each run's process.
    command : callable
        Task -> the arguments of `robflat-bench run`.
    retry_failed : bool
        Run tasks again that failed in an earlier sweep.
    watch : callable
        Called with the sweep every turn; shows progress.

    Notes
    -----
    A run that ends without a record or a failure (it was killed, or could not begin) is tried once more, after all
    others. If a signal in `OUTSIDE` ends it again, it stays unfinished for the next sweep; otherwise it has failed.
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
        """Run the tasks; returns each run's last event by its key.

        On Ctrl-C the running tasks save their state and end; then Interrupted is raised.
        """
        self.waiting = list(wanted)
        interrupts = 0
        with _interrupting(self.stop):
            while self.running or (self.waiting and not self._stops):
                self._begin_what_fits()
                self.watch(self)
                for key, code in self.launcher.wait(TURN_SECONDS).items():
                    self._exited(self.running.pop(key), code)
                while interrupts < self._stops:
                    self.launcher.interrupt()
                    interrupts += 1
            self.watch(self)
        if self._stops:
            raise Interrupted
        return self.ended

    def stop(self) -> None:
        """Start no more runs; running ones save their state and end. A second call ends them at once."""
        self._stops += 1

    def _begin_what_fits(self) -> None:
        """Take the tasks that need no run off the list, and start others while jobs are free."""
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
        folder = task.folder
        try:
            with folder.locked():
                folder.failed_file.unlink(missing_ok=True)
                folder.log_file.unlink(missing_ok=True)
            arguments = (sys.executable, "-m", "robflat_bench", "run", *self.command(task))
            self.launcher.start(Job(task.spec.key, arguments, folder.log_file))
        except Busy as busy:
            return self._tell(Event(task, "busy", str(busy)))
        except (RobflatError, OSError) as error:
            return self._end(task, "failed", str(error).splitlines()[0])
        self.waiting.remove(task)
        self.running[task.spec.key] = task
        self._attempts[task.spec.key] += 1

    def _exited(self, task: Task, code: int) -> None:
        """Read how a run ended from its folder; its exit code counts only if the folder does not say."""
        state, killer = task.state(), _killer(code)
        why = f"ended by {killer.name}" if killer else f"exit code {code}{_last_line(task.folder.log_file)}"
        self.waiting.append(task)  # behind all others; `_end` takes it off again
        if state in ("done", "failed"):
            self._end(task, state, task.error())
        elif self._stops:
            self._end(task, "interrupted", "the sweep was stopped")
        elif self._attempts[task.spec.key] == 1:
            self._tell(Event(task, "again", why))
        elif killer in OUTSIDE:
            self._end(task, "interrupted", why)
        else:
            self._fail(task, why)

    def _fail(self, task: Task, why: str) -> None:
        """Write `failed.json` for a run that could not, unless another process has begun to work on it."""
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
        """Add an event, once however often it is found."""
        if event not in self.events:
            self.events.append(event)


def _killer(code: int) -> signal.Signals | None:
    """The signal that ended a process, from its exit code; None if it ended by itself."""
    number = -code if code < 0 else code - 128
    return next((known for known in signal.Signals if known == number), None)


@contextmanager
def _interrupting(stop: Callable[[], None]) -> Iterator[None]:
    """In the main thread, SIGINT, SIGTERM and SIGHUP call `stop` instead of ending this process."""
    main = threading.current_thread() is threading.main_thread()  # Python lets no other thread set handlers
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if main else ()
    before = {number: signal.signal(number, lambda *_: stop()) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _last_line(log: Path) -> str:
    """ ": " and the last line of a run's log; "" if the log is empty."""
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return f": {lines[-1][:500]}" if lines else ""
