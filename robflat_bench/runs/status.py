"""Where the runs of a study stand, read from their folders and asked of their launchers. It changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from robflat_bench.runs.agenda import identity
from robflat_bench.runs.exits import last_line
from robflat_bench.runs.jobs import Jobs
from robflat_bench.runs.pace import Estimates
from robflat_bench.runs.tasks import Course, State, Task


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Parameters
    ----------
    task : Task
        The run.
    state : str
        "done", "failed", "queued" or "running"; "unknown" where its launcher cannot be asked here; "unfinished" or
        "new" where no launcher has a job of it, and no process works on it.
    words : str
        What its launcher says of its job; without a job, which process works on it; why its launcher cannot be asked.
    course : Course
        How far it has come.
    seconds : float or None
        Estimated seconds until it ends, for a running or queued one; from the start of its process for a queued one.
    log : str
        The last line of its log, as it is in the file.
    """

    task: Task
    state: State | Literal["queued", "running", "unknown"]
    words: str
    course: Course
    seconds: float | None
    log: str

    @property
    def place(self) -> str:
        """The epoch or the stage of a run; "" for one that is done or has not begun."""
        done, epochs = self.course.epochs, self.task.spec.recipe.epochs
        if self.state in ("done", "new", "queued"):
            return ""
        return place(done, epochs) if self.state == "running" else f"{done} of {epochs} epochs"

    def document(self) -> dict[str, Any]:
        """As a JSON document."""
        return {
            **identity(self.task),
            "state": self.state,
            "job": self.words,
            "epoch": self.course.epochs,
            "epochs": self.task.spec.recipe.epochs,
            "seconds": self.seconds,
            "log": self.log,
        }


def place(done: int, epochs: int) -> str:
    """The epoch or stage of a running task that has trained for `done` epochs."""
    return "starting" if not done else "evaluation" if done == epochs else f"epoch {done + 1}/{epochs}"


def standings(
    wanted: Sequence[Task], attached: Iterable[Jobs], estimates: Estimates, unknown: Mapping[str, str]
) -> list[Standing]:
    """Where each run stands.

    Parameters
    ----------
    wanted : sequence of Task
        The runs.
    attached : iterable of Jobs
        Their unended jobs (`jobs.attach`). Nothing is waited for: a launcher may start a job meanwhile.
    estimates : Estimates
        How long runs take.
    unknown : Mapping of str to str
        Run key -> why the launcher of its job cannot be asked.
    """
    said: dict[str, str] = {}
    for jobs in attached:
        said |= jobs.standings()
    for task in wanted:
        if task.spec.key in said:
            estimates.look(task)
    found = {task.spec.key: said.get(task.spec.key) or task.folder.worker() for task in wanted}
    return [_standing(task, found[task.spec.key], unknown.get(task.spec.key, ""), estimates) for task in wanted]


def _standing(task: Task, words: str, unknown: str, estimates: Estimates) -> Standing:
    state: Any = task.state()
    if words and state != "done":
        state = "queued" if words.startswith("queued") else "running"
    elif unknown and state != "done":
        state, words = "unknown", unknown
    course, log = estimates.course(task), last_line(task.folder.log_file)
    seconds = estimates.seconds(task) if state in ("queued", "running") else None
    return Standing(task, state, words, course, seconds, log)


def summary(found: Iterable[Standing]) -> str:
    """`3 done, 2 running, 25 queued`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(one.state for one in found).items())
