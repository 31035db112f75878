"""Sweeps: every run of a study, each in its own process. Finished runs are skipped; a failed run stops no other run.

Everything is kept in the runs' folders: records, failures, checkpoints, locks and ids of jobs (`jobs`). So a sweep that
was killed can be started again and goes on with the jobs of the first one, and several sweeps can share a store: each
waits for runs that another process works on.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robflat_bench.core import Exit, Interrupted, Job, Launcher, RobflatError
from robflat_bench.core.signals import answered
from robflat_bench.records.store import Busy, write_json
from robflat_bench.runs.exits import from_outside, is_pause, reason
from robflat_bench.runs.jobs import CANCELLED, Jobs, job_of
from robflat_bench.runs.pace import Estimates
from robflat_bench.runs.tasks import Task

TURN_SECONDS = 1.0
"""The longest wait for a job: seconds between two updates of the progress, and until a signal is answered."""

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
        "adopted": an earlier sweep had started its job. "continued": its job ended before the run did, as at a time
        limit, and the run goes on. "again": it ended without a record or a failure, and will be tried once more.
    why : str
        The reason in one line.
    """

    task: Task
    what: End | Literal["busy", "adopted", "continued", "again"]
    why: str = ""


@dataclass
class Sweep:
    """Runs tasks, as many at a time as the launcher has jobs.

    Parameters
    ----------
    jobs : Jobs
        Starts each run's process.
    command : callable
        Task -> the arguments of `robflat-bench run`.
    retry_failed : bool
        Run tasks again that failed in an earlier sweep.
    watch : callable
        Called with the sweep every turn; shows progress.
    estimates : Estimates
        How long runs take, as far as earlier runs tell.

    Notes
    -----
    A job can end before its run: its time slice is over, or it is preempted (`exits.is_pause`). The run is continued
    each time if it has saved more than before. After any other end without a record or a failure (it was killed, or
    could not begin), a run is tried once more, after all others. If something outside the run ends it again
    (`exits.from_outside`), it stays unfinished for the next sweep; otherwise it has failed.
    """

    jobs: Jobs
    command: Callable[[Task], Sequence[str]]
    retry_failed: bool = False
    watch: Callable[[Sweep], None] = lambda sweep: None
    estimates: Estimates = field(default_factory=Estimates)

    waiting: list[Task] = field(default_factory=list, init=False)
    running: dict[str, Task] = field(default_factory=dict, init=False)
    standings: dict[str, str] = field(default_factory=dict, init=False)
    ended: dict[str, Event] = field(default_factory=dict, init=False)
    events: list[Event] = field(default_factory=list, init=False)
    _busy: set[str] = field(default_factory=set, init=False)
    _attempts: Counter[str] = field(default_factory=Counter, init=False)
    _saved: dict[str, int] = field(default_factory=dict, init=False)
    _began: dict[str, float] = field(default_factory=dict, init=False)
    _stops: list[int] = field(default_factory=list, init=False)
    _interrupts: int = field(default=0, init=False)

    @property
    def launcher(self) -> Launcher:
        """Where its jobs run."""
        return self.jobs.launcher

    @property
    def stopped_by(self) -> int | None:
        """The signal that stopped it."""
        return self._stops[0] if self._stops else None

    def run(self, wanted: Sequence[Task]) -> dict[str, Event]:
        """Run the tasks; returns each run's last event by its key.

        Raises
        ------
        Interrupted
            A signal of `core.signals` came. If the launcher is detached, its jobs go on, and `running` are their
            tasks. Otherwise they have saved their state and ended.
        """
        self.waiting = list(wanted)
        with answered(self.stop):
            self._settle(self.waiting)
            looked = time.monotonic()
            while self.running or (self.waiting and not self._stops):
                self._begin_what_fits()
                self.watch(self)
                for task, exit in self.jobs.wait(min(TURN_SECONDS, self.launcher.pace)):
                    self._exited(self.running.pop(task.spec.key), exit)
                if self._stops and self.launcher.detached:
                    break
                while self._interrupts < len(self._stops):
                    self.launcher.interrupt()
                    self._interrupts += 1
                if time.monotonic() - looked >= self.launcher.pace:
                    self._look()
                    looked = time.monotonic()
            self.watch(self)
        if self._stops:
            raise Interrupted(self._stops[0])
        return self.ended

    def stop(self, number: int = signal.SIGINT) -> None:
        """Start no more runs; running ones save their state and end, unless the launcher is detached. A second call
        ends them at once."""
        self._stops.append(number)

    def _settle(self, tasks: Sequence[Task]) -> None:
        """Take tasks off the list that need no run, and those whose jobs an earlier sweep has started."""
        for task in list(tasks):
            self._to_start(task)

    def _to_start(self, task: Task) -> Job | None:
        """The job of a task that has still to be started; None where `_settle` takes the task off the list."""
        state = task.state()
        if state == "done" or (state == "failed" and not self.retry_failed):
            self._end(task, state, task.error())
            return None
        job = self._job(task)
        if self.jobs.adopt(task, job):
            self._runs(task)
            self._tell(Event(task, "adopted"))
            return None
        return job

    def _begin_what_fits(self) -> None:
        """Start runs while jobs are free."""
        for task in list(self.waiting):
            if self._stops or len(self.running) >= self.launcher.resources.jobs:
                break
            if task.spec.key not in self._busy and (job := self._to_start(task)):
                self._begin(task, job)

    def _begin(self, task: Task, job: Job) -> None:
        """Start a run, unless another process works on it."""
        folder = task.folder
        try:
            with folder.locked():
                self.jobs.claim(task, job)
                folder.failed_file.unlink(missing_ok=True)
                if task.spec.key not in self._began:
                    folder.log_file.unlink(missing_ok=True)
            self.jobs.start(task, job)
        except Busy as busy:
            self._busy.add(task.spec.key)
            return self._tell(Event(task, "busy", str(busy)))
        except (RobflatError, OSError) as error:
            return self._end(task, "failed", str(error).splitlines()[0])
        self._runs(task)
        self._began[task.spec.key] = time.monotonic()

    def _job(self, task: Task) -> Job:
        pace = self.estimates.pace
        return job_of(task, self.command(task), self.estimates.seconds(task), pace.memory if pace else None)

    def _runs(self, task: Task) -> None:
        """Count an attempt of a task whose job has started."""
        key = task.spec.key
        self.waiting.remove(task)
        self.running[key] = task
        self._attempts[key] += 1
        self._saved[key] = task.saved()

    def _look(self) -> None:
        """Look at what may have changed without a job's end: runs of other processes, and how far ours have come."""
        if not self._stops:
            self._settle([task for task in self.waiting if task.spec.key in self._busy])
            self._busy.clear()
        self.standings = self.jobs.standings()
        for key, task in self.running.items():
            self.estimates.look(task)
            if self.standings[key].startswith("queued") and key in self._began:
                self._began[key] = time.monotonic()  # its process has not begun

    def _exited(self, task: Task, exit: Exit) -> None:
        """Read how a run ended from its folder; its exit counts only if the folder does not say."""
        key, state, saved, why = task.spec.key, task.state(), task.saved(), reason(exit, task.folder.log_file)
        self.waiting.append(task)  # behind all others; `_end` takes it off again
        self.estimates.stopped(task)
        if state == "done":
            whole = key in self._began and self._attempts[key] == 1 and not self._saved[key]
            self.estimates.finished(task, time.monotonic() - self._began[key] if whole else None)
        if state in ("done", "failed"):
            self._end(task, state, task.error())
        elif exit.cause == CANCELLED:
            self.stop()
            self._interrupts += 1  # every job has got its signal already
            self._end(task, "interrupted", CANCELLED)
        elif self._stops:
            self._end(task, "interrupted", "the sweep was stopped")
        elif is_pause(exit) and saved > self._saved[key]:
            self._attempts[key] = 0
            self._tell(Event(task, "continued", f"{why}; epoch {task.course().epochs} of {task.spec.recipe.epochs}"))
        elif self._attempts[key] == 1:
            self._tell(Event(task, "again", why))
        elif from_outside(exit):
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
