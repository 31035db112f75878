"""A queue of jobs that no process runs: a test says what each job does, and several launchers may look at the queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from robflat_bench.config.protocol import load
from robflat_bench.config.study import load_study
from robflat_bench.core import Exit, Job, Launcher, Params, Resources
from robflat_bench.evaluation.session import Session
from robflat_bench.records.store import Store
from robflat_bench.registry.registry import Registry
from robflat_bench.runs.jobs import Jobs, job_of
from robflat_bench.runs.tasks import Task, tasks

STUDY = """
name = "three"
version = "1.0"
summary = "Three runs."
protocol = "tiny.toml"

[[groups]]
title = "all"
methods = ["standard"]
grid = { "recipe.epochs" = [1, 2, 3] }
"""


def three_tasks(registry: Registry, tiny: Path, folder: Path) -> list[Task]:
    """The runs of a study in this folder, `three.toml`, with their store `runs` beside it."""
    (folder / "tiny.toml").write_text(tiny.read_text())
    (folder / "three.toml").write_text(STUDY)
    study = load_study(str(folder / "three.toml"))
    session = Session(registry, load(registry, study.protocol), None, Store(folder / "runs"), "cpu")
    return tasks(session, study, 1)[0]


class World:
    """What the processes of jobs would leave in the runs' folders; every record is the same one."""

    def __init__(self, wanted: list[Task], record: bytes) -> None:
        self.folders = {job_of(task, ()).name: task.folder for task in wanted}
        self.record = record

    def finish(self, job: Job) -> Exit:
        self.folders[job.name].path.mkdir(parents=True, exist_ok=True)
        self.folders[job.name].record_file.write_bytes(self.record)
        return Exit(0)

    def save(self, job: Job, updates: int) -> None:
        folder = self.folders[job.name].checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"state-{updates:09d}.safetensors").touch()


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
