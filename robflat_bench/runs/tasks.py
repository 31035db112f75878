"""The runs of a study: which they are, where each stands, and what it will take. `sweep` runs them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from robflat_bench.config.cost import passes_of_evaluation, passes_of_training
from robflat_bench.config.protocol import load
from robflat_bench.config.spec import DatasetRef, RunSpec, make_spec
from robflat_bench.config.study import Study, Variant
from robflat_bench.core import RobflatError
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import RunRecord
from robflat_bench.results.store import RunFolder, Store, read_record

State = Literal["new", "unfinished", "failed", "done"]


@dataclass(frozen=True)
class Task:
    """One run of a study and where it lies."""

    variant: Variant
    spec: RunSpec
    folder: RunFolder
    training: tuple[int, int]
    """Forward and backward image passes of its training, as its components declare them."""
    evaluation: tuple[int, int]
    """Of its evaluation, as far as they are declared."""

    @property
    def title(self) -> str:
        return f"{self.spec.label}, seed {self.spec.seed}"

    def state(self) -> State:
        """What lies in its folder."""
        if self.folder.record_file.is_file():
            return "done"
        if self.folder.failed_file.is_file():
            return "failed"
        return "unfinished" if self.folder.checkpoints.is_dir() else "new"

    def error(self) -> str:
        """Why it failed, in one line; empty where it did not."""
        try:
            text = str(json.loads(self.folder.failed_file.read_text("utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return text.splitlines()[0][:500] if text else "failed without a word"

    def epochs(self) -> int:
        """How many epochs of its training are behind it."""
        try:
            return (self.folder.path / "history.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def left(self) -> tuple[int, int]:
        """Image passes of training and of evaluation that lie ahead; an evaluation half done counts whole."""
        if self.state() == "done":
            return 0, 0
        epochs = self.spec.recipe.epochs
        return sum(self.training) * (epochs - self.epochs()) // epochs, sum(self.evaluation)


@dataclass(frozen=True)
class Refused:
    """A variant that cannot be run, and why, in one line."""

    variant: Variant
    reason: str


def tasks(
    registry: Registry, study: Study, seeds: int, dataset: DatasetRef, images: int, store: Store
) -> tuple[list[Task], list[Refused]]:
    """Every variant with seeds 1..N, the first seed of all variants first; a run that two variants share, once.
    And the variants that no run can be made of.

    images: training examples of the protocol.
    """
    made: dict[str, Task] = {}
    refused: list[Refused] = []
    sound: list[tuple[Variant, list[RunSpec], tuple[int, int], tuple[int, int]]] = []
    for variant in study.variants():
        try:
            protocol = load(registry, study.protocol, variant.settings)
            composed = compose(registry, variant.method)
            specs = [make_spec(registry, protocol, composed, dataset, seed) for seed in range(1, seeds + 1)]
            training = passes_of_training(registry, composed, protocol.recipe, images)
            sound.append((variant, specs, training, passes_of_evaluation(registry, protocol)))
        except RobflatError as error:
            refused.append(Refused(variant, str(error).splitlines()[0]))
    for number in range(seeds):
        for variant, specs, training, evaluation in sound:
            spec = specs[number]
            made.setdefault(spec.key, Task(variant, spec, store.folder(spec), training, evaluation))
    return list(made.values()), refused


@dataclass(frozen=True)
class Pace:
    """What finished runs took: seconds of training per image pass, of the whole evaluation, and how many they are."""

    training: float
    evaluation: float
    runs: int

    def seconds(self, task: Task) -> float:
        """What is left of a task, at this pace."""
        training, evaluation = task.left()
        return self.training * training + self.evaluation * (evaluation > 0)


def pace(store: Store, protocol: str) -> Pace | None:
    """Of the runs in a store that are finished under the protocol of this hash; None where there are none."""
    budgets = [record.budget for record in _records(store.runs()) if record.protocol.hash == protocol]
    if not budgets:
        return None
    return Pace(
        sum(budget.seconds - budget.evaluation_seconds for budget in budgets)
        / sum(budget.forward + budget.backward for budget in budgets),
        sum(budget.evaluation_seconds for budget in budgets) / len(budgets),
        len(budgets),
    )


def _records(runs: Iterable[RunFolder]) -> Iterable[RunRecord]:
    """The readable ones."""
    for run in runs:
        try:
            yield read_record(run.record_file, RunRecord)
        except RobflatError:
            continue
