"""Launchers whose jobs wait in a scheduler's queue: one look at its table shows all jobs, however many there are.

A job that the scheduler cannot take yet, because it does not answer or a limit of queued jobs is reached, is held back,
and submitted at a later look unless it is in the queue by then. A submitted job that is missing from the table has
ended: schedulers forget, and the run's folder says how it ended.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from robflat_bench.api import Exit, Job, Launcher, Resources, UsageError

FRESH = 1.0
"""Seconds for which a look serves all jobs that are adopted at a time."""


class Unanswered(Exception):
    """The scheduler cannot answer or accept now; the text is its own."""


class Row(Protocol):
    """A job in a scheduler's table."""

    @property
    def id(self) -> str:
        """What the scheduler calls it."""

    @property
    def ended(self) -> bool:
        """Whether it neither waits nor runs."""

    @property
    def exit(self) -> Exit:
        """How it ended."""

    @property
    def standing(self) -> str:
        """Where an unended job stands, as `Launcher.standings` has it."""


R = TypeVar("R", bound=Row)


class Scheduled(Launcher, Generic[R]):
    """A queue of jobs, found again by their names. A subclass asks its scheduler."""

    outlives: ClassVar[bool] = True
    detached: ClassVar[bool] = True
    pace: ClassVar[float] = 5.0

    scheduler: ClassVar[str]
    """Its name in sentences."""

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self.rows: dict[str, R] = {}
        """The table as of the last answered look, by the jobs' ids."""
        self.problem = ""
        """Why the scheduler did not answer or accept when it was last asked; "" if it did."""
        self._jobs: dict[str, Job] = {}
        self._ids: dict[str, str] = {}
        self._never_begun: dict[str, Exit] = {}
        self._looked = -math.inf
        self._stopping = False

    @abstractmethod
    def table(self) -> Sequence[R]:
        """The jobs in the scheduler's table; raises Unanswered."""

    @abstractmethod
    def submit(self, job: Job) -> str:
        """Submit a job; returns its id.

        Raises
        ------
        Unanswered
            The scheduler may accept the same job later, or has accepted it without an answer.
        UsageError
            The scheduler refuses the job.
        """

    @abstractmethod
    def found(self, job: Job) -> str:
        """The id of the unended job with this job's name as of the last look; "" if there is none."""

    @abstractmethod
    def end(self, rows: Sequence[R], again: bool) -> None:
        """Interrupt running jobs and take queued ones off the queue, each once, and once more if `again`."""

    def start(self, job: Job) -> str:
        try:
            self._ids[job.name] = self.submit(job)
        except Unanswered as problem:
            self.problem = str(problem)
        self._jobs[job.name] = job
        return self._ids.get(job.name, "")

    def adopt(self, job: Job, known: str) -> bool:
        if time.monotonic() >= self._looked + FRESH:
            self.look()
        answered = not self.problem
        if found := self.found(job) or ("" if answered else known):
            self._ids[job.name] = found
        adopted = bool(found) or not answered
        if adopted:
            self._jobs[job.name] = job
        return adopted

    def wait(self, seconds: float) -> Mapping[str, Exit]:
        until = time.monotonic() + seconds
        while True:
            due = self._looked + self.pace if self._jobs or self._never_begun else math.inf
            if time.monotonic() >= due and self.look() and (ended := self._take_ended()):
                return ended
            left = min(until, due) - time.monotonic()
            if time.monotonic() >= until:
                return {}
            time.sleep(max(0.0, left))

    def standings(self) -> Mapping[str, str]:
        rows = {name: self.rows.get(id) for name, id in self._ids.items()}
        doubt = f"; {self.scheduler} does not answer: {self.problem}" if self.problem else ""
        placed = {name: f"{row.standing if row else 'queued'}{doubt}" for name, row in rows.items()}
        return placed | dict.fromkeys(self._held_back, f"queued ({self.scheduler} has not taken it: {self.problem})")

    def interrupt(self) -> None:
        self._stopping = True
        if self.look():
            self._stop(again=True)

    def look(self) -> bool:
        """Read the scheduler's table; False if the scheduler does not answer."""
        self._looked = time.monotonic()
        try:
            self.rows = {row.id: row for row in self.table()}
            self.problem = ""
        except Unanswered as problem:
            self.problem = str(problem)
        return not self.problem

    def put_back(self, names: Sequence[str]) -> None:
        """Hold these jobs back: the scheduler has given them up before they began."""
        for name in names:
            del self._ids[name]

    @property
    def mine(self) -> dict[str, R]:
        """The rows of this launcher's unended jobs, by the jobs' names."""
        return {name: self.rows[id] for name, id in self._ids.items() if id in self.rows}

    @property
    def _held_back(self) -> dict[str, Job]:
        return {name: job for name, job in self._jobs.items() if name not in self._ids}

    def _take_ended(self) -> dict[str, Exit]:
        """Take the jobs off the list that have ended as of the last look, and act on the others."""
        rows = {name: self.rows.get(id) for name, id in self._ids.items()}
        ended = {name: row.exit if row else Exit(None) for name, row in rows.items() if row is None or row.ended}
        for name in ended:
            del self._ids[name], self._jobs[name]
        if self._stopping:
            self._stop()
        else:
            self._submit_held_back()
        never_begun, self._never_begun = self._never_begun, {}
        return ended | never_begun

    def _submit_held_back(self) -> None:
        """Submit the jobs that the scheduler has not taken; a submission without an answer may have succeeded."""
        for name, job in self._held_back.items():
            try:
                self._ids[name] = self.found(job) or self.submit(job)
            except Unanswered as problem:
                self.problem = str(problem)
                break
            except UsageError as refused:
                del self._jobs[name]
                self._never_begun[name] = Exit(None, str(refused))

    def _stop(self, again: bool = False) -> None:
        """Interrupt each running job once, also those that have begun since; take the others off the queue."""
        for name, job in self._held_back.items():
            if found := self.found(job):
                self._ids[name] = found
            else:
                del self._jobs[name]
                self._never_begun[name] = Exit(None, "cancelled")
        self.end([row for row in self.mine.values() if not row.ended], again)
