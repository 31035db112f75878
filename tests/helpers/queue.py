"""A queue of jobs that no process runs: a test says what each job does, and several launchers may look at the queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from robflat_bench.core import Exit, Job, Launcher, Params, Resources
from robflat_bench.runs.jobs import Jobs

Does = Callable[[Job, int], "Exit | str"]
"""A job and the number of its attempt -> its exit; "queued" or "running" if it has not ended."""


class Killed(BaseException):
    """Ends a sweep as SIGKILL would: nothing is done after it."""


@dataclass
class Queue:
    """The scheduler. It outlives the launchers that use it.

    Parameters
    ----------
    does : callable
        What each job does at each look.
    """

    does: Does
    submitted: list[str] = field(default_factory=list)
    unended: dict[str, Job] = field(default_factory=dict)
    interrupts: int = 0

    def submit(self, job: Job) -> str:
        self.submitted.append(job.name)
        self.unended[str(len(self.submitted))] = job
        return str(len(self.submitted))

    def look(self, number: str) -> Exit | str:
        job = self.unended[number]
        return self.does(job, self.submitted.count(job.name))

    def jobs(self, slots: int = 2, kind: type[Queued] | None = None) -> Jobs:
        """A new launcher of this queue, as a new process makes it."""
        return Jobs((kind or Queued)(self, slots), "queue")


class Queued(Launcher):
    """A launcher whose jobs wait and run in a `Queue`."""

    outlives = True
    detached = True
    pace = 0.01

    def __init__(self, queue: Queue, slots: int) -> None:
        super().__init__(Params(), Resources(slots))
        self.queue = queue
        self.known: dict[str, str] = {}

    def start(self, job: Job) -> str:
        self.known[job.name] = self.queue.submit(job)
        return self.known[job.name]

    def adopt(self, job: Job, known: str) -> bool:
        by_name = (number for number, other in self.queue.unended.items() if other.name == job.name)
        number = known or next(by_name, "")
        if number in self.queue.unended:
            self.known[job.name] = number
        return number in self.queue.unended

    def wait(self, seconds: float) -> dict[str, Exit]:
        time.sleep(0.001)
        ended = {}
        for name, number in self.known.items():
            # Another launcher may have seen the end before.
            found = self.queue.look(number) if number in self.queue.unended else Exit(None)
            if isinstance(found, Exit):
                ended[name] = found
        for name in ended:
            self.queue.unended.pop(self.known.pop(name), None)
        return ended

    def standings(self) -> dict[str, str]:
        return {name: str(self.queue.look(number)) for name, number in self.known.items()}

    def interrupt(self) -> None:
        self.queue.interrupts += 1
