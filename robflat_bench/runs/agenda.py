"""The plan of a sweep: which runs it makes, which it skips and why, and how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robflat_bench.core.clock import duration
from robflat_bench.runs.pace import Pace
from robflat_bench.runs.sweep import Event
from robflat_bench.runs.tasks import Refused, Task


@dataclass(frozen=True)
class Agenda:
    """The runs of a study as a sweep finds them.

    Attributes
    ----------
    wanted, refused
        Runs that can be made, and variants that cannot.
    jobs
        Runs at a time.
    retry_failed
        Whether failed runs are tried again.
    pace
        Speed of finished runs in the store; None if there is none.
    """

    wanted: Sequence[Task]
    refused: Sequence[Refused]
    jobs: int
    retry_failed: bool
    pace: Pace | None

    def skipped(self, task: Task) -> str:
        """Why the sweep skips a run; empty if it makes the run."""
        if task.state() == "failed" and not self.retry_failed:
            return f"--retry-failed tries it again: {task.error()}"
        return "its record is there" if task.state() == "done" else ""

    @property
    def ahead(self) -> list[Task]:
        """The runs to make."""
        return [task for task in self.wanted if not self.skipped(task)]

    def seconds(self, task: Task) -> float | None:
        """Estimated seconds of a run to make; None without a pace, or if the run is skipped."""
        return self.pace.seconds(task, task.course()) if self.pace and not self.skipped(task) else None

    def estimate(self) -> dict[str, float] | None:
        """Seconds of work ahead and of waiting for it, and the number of finished runs behind the estimate."""
        if self.pace is None:
            return None
        seconds = sum(self.pace.seconds(task, task.course()) for task in self.ahead)
        return {"runs": self.pace.runs, "seconds": seconds, "elapsed": seconds / self.jobs}

    def summary(self) -> str:
        """One line: the number of runs in each state, and how long the rest takes."""
        states = Counter(task.state() for task in self.wanted) + Counter(refused=len(self.refused))
        found = ", ".join(f"{count} {state}" for state, count in states.items())
        line = f"{states.total()} runs ({found}), {len(self.ahead)} to make"
        estimate = self.estimate()
        if estimate is None or not self.ahead:
            return line
        line += f": about {duration(estimate['seconds'])}"
        line += f", {duration(estimate['elapsed'])} with {self.jobs} at a time" if self.jobs > 1 else ""
        return f"{line}, estimated from {estimate['runs']} finished runs in this store"

    def document(self) -> dict[str, Any]:
        """The plan as a JSON document."""
        rows = [
            {
                **identity(task),
                "state": task.state(),
                "skipped": self.skipped(task),
                "forward": task.training[0],
                "backward": task.training[1],
                "evaluation": {"forward": task.evaluation[0], "backward": task.evaluation[1]},
                "seconds": self.seconds(task),
            }
            for task in self.wanted
        ]
        return {"jobs": self.jobs, "estimate": self.estimate(), "runs": [*rows, *map(refusal, self.refused)]}


def outcome(event: Event) -> dict[str, Any]:
    """The end of a run as a JSON document, with its results if it is done."""
    task = event.task
    row = {**identity(task), "state": event.what, "error": event.why, "folder": str(task.folder.path)}
    if event.what == "done":
        record = task.folder.record()
        row |= {"results": record.results, "budget": record.budget}
    return row


def refusal(refused: Refused) -> dict[str, Any]:
    """A variant that cannot be run, as a JSON document."""
    variant = refused.variant
    return {"group": variant.group, "run": str(variant), "state": "refused", "error": refused.reason}


def identity(task: Task) -> dict[str, Any]:
    """The fields by which JSON documents name a run of a study."""
    return {"group": task.variant.group, "run": task.spec.label, "seed": task.spec.seed, "key": task.spec.key}
