"""The runs of a study: their specs, their states, and how long they will take. `sweep` runs them."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from robflat_bench.config.cost import passes_of_evaluation, passes_of_training
from robflat_bench.config.protocol import load
from robflat_bench.config.spec import RunSpec
from robflat_bench.config.study import Study, Variant
from robflat_bench.core import RobflatError
from robflat_bench.evaluation.session import Session
from robflat_bench.records.record import Budget, RunRecord
from robflat_bench.records.store import RunFolder, Store, read_record
from robflat_bench.registry.components import compose
from robflat_bench.runs.run import PlannedRun

State = Literal["new", "unfinished", "failed", "done"]


@dataclass(frozen=True)
class Task:
    """One run of a study.

    Parameters
    ----------
    variant : Variant
        The study's row that the run belongs to.
    spec : RunSpec
        The run's description.
    folder : RunFolder
        The run's folder.
    training : tuple of int
        Forward and backward image passes of its whole training, as its components declare them.
    evaluation : tuple of int
        Forward and backward image passes of its evaluation, as far as components declare them.
    """

    variant: Variant
    spec: RunSpec
    folder: RunFolder
    training: tuple[int, int]
    evaluation: tuple[int, int]

    @property
    def title(self) -> str:
        return f"{self.spec.label}, seed {self.spec.seed}"

    def state(self) -> State:
        """The state of its folder; "new" if training has not saved anything."""
        state = self.folder.state
        return "new" if state == "unfinished" and not self.folder.checkpoints.is_dir() else state

    def error(self) -> str:
        """The first line of its failure; "" if it has not failed."""
        try:
            text = str(json.loads(self.folder.failed_file.read_text("utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return text.splitlines()[0][:500] if text else "failed without a message"

    def epochs(self) -> int:
        """The number of epochs that it has trained."""
        try:
            lines: int = self.folder.history_file.read_bytes().count(b"\n")
            return lines
        except OSError:
            return 0

    def left(self) -> tuple[int, int]:
        """Image passes left in training and in evaluation; an interrupted evaluation counts as a whole one."""
        if self.state() == "done":
            return 0, 0
        epochs = self.spec.recipe.epochs
        return sum(self.training) * (epochs - self.epochs()) // epochs, sum(self.evaluation)


@dataclass(frozen=True)
class Refused:
    """A variant that cannot be run, with the reason in one line."""

    variant: Variant
    reason: str


def tasks(session: Session, study: Study, seeds: int) -> tuple[list[Task], list[Refused]]:
    """Every run of a study, and the variants that cannot be run.

    Parameters
    ----------
    session : Session
        Under the study's protocol; its store keeps the runs.
    study : Study
        The variants.
    seeds : int
        Each variant is run with the seeds 1 to `seeds`.

    Returns
    -------
    list of Task
        Seed 1 of every variant, then seed 2, and so on. Variants that share a run have one task.
    list of Refused
        Variants with an unknown component, a wrong parameter or a setting that the recipe does not admit.
    """
    registry, images = session.registry, len(session.splits.pools["train"].y)
    made: list[list[Task]] = []
    refused: list[Refused] = []
    for variant in study.variants():
        try:
            protocol = load(registry, study.protocol, variant.settings)
            composed = compose(registry, variant.method)
            runs = [PlannedRun(session.under(protocol), composed, seed) for seed in range(1, seeds + 1)]
            places = [(run.spec, run.folder) for run in runs]  # first: a spec refuses helpers without end
            training = passes_of_training(registry, composed, protocol.recipe, images)
            evaluation = passes_of_evaluation(registry, protocol)
            made.append([Task(variant, spec, folder, training, evaluation) for spec, folder in places])
        except RobflatError as error:
            refused.append(Refused(variant, str(error).splitlines()[0]))
    found: dict[str, Task] = {}
    for task in itertools.chain.from_iterable(zip(*made, strict=True)):
        found.setdefault(task.spec.key, task)
    return list(found.values()), refused


@dataclass(frozen=True)
class Pace:
    """The mean speed of finished runs.

    Parameters
    ----------
    training : float
        Seconds of training per image pass.
    evaluation : float
        Seconds of one run's evaluation.
    runs : int
        The number of finished runs.
    """

    training: float
    evaluation: float
    runs: int

    @classmethod
    def of(cls, budgets: Sequence[Budget]) -> Pace | None:
        """The pace of runs with these budgets; None without any."""
        if not budgets:
            return None
        evaluation = sum(budget.evaluation_seconds for budget in budgets)
        passes = sum(budget.forward + budget.backward for budget in budgets)
        training = sum(budget.seconds - budget.evaluation_seconds for budget in budgets)
        return cls(training / passes, evaluation / len(budgets), len(budgets))

    def seconds(self, task: Task) -> float:
        """The seconds that the rest of a task takes at this pace."""
        training, evaluation = task.left()
        return self.training * training + self.evaluation * (evaluation > 0)


def pace(store: Store, protocol: str) -> Pace | None:
    """The pace of a store's finished runs under the protocol with this hash; None without any."""
    return Pace.of([*_budgets(store, protocol)])


def _budgets(store: Store, protocol: str) -> Iterator[Budget]:
    """The budgets of readable records under the protocol."""
    for run in store.runs():
        with contextlib.suppress(RobflatError):
            record: RunRecord = read_record(run.record_file, RunRecord)
            if record.protocol.hash == protocol:
                yield record.budget
