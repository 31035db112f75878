"""How long runs take, estimated from the seconds of finished and of running ones."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from robflat_bench.core import RobflatError
from robflat_bench.records.record import Budget, RunRecord
from robflat_bench.records.store import Store, read_record
from robflat_bench.runs.tasks import Course, Task


@dataclass(frozen=True)
class Pace:
    """The mean speed of runs.

    Parameters
    ----------
    training : float
        Seconds of training per image pass.
    evaluation : float or None
        Seconds of one run's evaluation. None without a finished run: then its passes count like those of training.
    memory : int or None
        The largest peak memory of a finished run, in bytes.
    runs : int
        The number of finished runs.
    start : float
        Seconds that the process of a run needs besides: until training starts, and to end.
    """

    training: float
    evaluation: float | None = None
    memory: int | None = None
    runs: int = 0
    start: float = 0.0

    def seconds(self, task: Task, course: Course) -> float:
        """The seconds that the rest of a task takes at this pace, or at its own where it has trained for an epoch."""
        epochs, whole = task.spec.recipe.epochs, self.training * sum(task.training)
        epoch = course.seconds / course.epochs if course.epochs else whole / epochs
        evaluation = self.training * sum(task.evaluation) if self.evaluation is None else self.evaluation
        started = 0.0 if course.epochs else self.start
        return started + epoch * (epochs - course.epochs) + max(0.0, evaluation - course.evaluated)


def pace_of(budgets: Sequence[Budget]) -> Pace | None:
    """The pace of finished runs with these budgets; None without any."""
    if not budgets:
        return None
    evaluation = sum(budget.evaluation_seconds for budget in budgets)
    training = sum(budget.seconds for budget in budgets) - evaluation
    passes = sum(budget.forward + budget.backward for budget in budgets)
    memory = max(budget.peak_memory_bytes for budget in budgets)
    return Pace(training / passes, evaluation / len(budgets), memory, len(budgets))


def pace(store: Store, protocol: str) -> Pace | None:
    """The pace of a store's finished runs under the protocol with this hash; None without any."""
    return pace_of([*_budgets(store, protocol)])


def _budgets(store: Store, protocol: str) -> Iterator[Budget]:
    """The budgets of readable records under the protocol."""
    for run in store.runs("record.json"):
        with contextlib.suppress(RobflatError):
            record: RunRecord = read_record(run.record_file, RunRecord)
            if record.protocol.hash == protocol:
                yield record.budget


class Estimates:
    """What the runs of a sweep need, estimated from the sweep's own runs as soon as there are any.

    Parameters
    ----------
    pace : Pace or None
        Of the runs that were finished before.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self._before = pace
        self._budgets: list[Budget] = []
        self._starts: list[float] = []
        self._courses: dict[str, Course] = {}
        self._rates: dict[str, float] = {}

    def look(self, task: Task) -> None:
        """Read how far a running task has come."""
        course = task.course()
        if course.epochs:
            passes = sum(task.training) * course.epochs / task.spec.recipe.epochs
            self._rates[task.spec.key] = course.seconds / passes
        if course.epochs == task.spec.recipe.epochs:
            course = replace(course, evaluated=task.evaluated())
        self._courses[task.spec.key] = course

    def course(self, task: Task) -> Course:
        """How far a task has come, as of the last look at it."""
        if task.spec.key not in self._courses:
            self._courses[task.spec.key] = task.course()
        return self._courses[task.spec.key]

    def stopped(self, task: Task) -> None:
        """Forget how far a task has come that ended unfinished: it repeats what was not saved."""
        self._courses.pop(task.spec.key, None)

    def finished(self, task: Task, seconds: float | None) -> None:
        """Learn from a finished run, and from the seconds of its process where that has done all of the run's work."""
        with contextlib.suppress(RobflatError):
            budget = read_record(task.folder.record_file, RunRecord).budget
            self._budgets.append(budget)
            if seconds is not None:
                self._starts.append(max(0.0, seconds - budget.seconds))

    @property
    def pace(self) -> Pace | None:
        """Of this sweep's finished runs; else of those before it; else of the epochs that its runs have trained."""
        found = pace_of(self._budgets) or self._before
        if found is None and self._rates:
            found = Pace(sum(self._rates.values()) / len(self._rates))
        start = sum(self._starts) / len(self._starts) if self._starts else 0.0
        return found and replace(found, start=start)

    def seconds(self, task: Task) -> float | None:
        """Seconds of the rest of a task; None where nothing like it was run yet."""
        pace = self.pace
        return pace.seconds(task, self.course(task)) if pace else None

    def left(self, running: Sequence[Task], waiting: Sequence[Task], jobs: int) -> float | None:
        """Seconds until the last of these tasks ends, where `jobs` run at a time."""
        pace = self.pace
        if pace is None:
            return None
        rest = [pace.seconds(task, self.course(task)) for task in running]
        slots = [*rest, *[0.0] * (jobs - len(rest))]
        heapq.heapify(slots)
        for task in waiting:
            heapq.heapreplace(slots, slots[0] + pace.seconds(task, self.course(task)))
        return max(slots)
