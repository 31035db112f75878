"""The runs of a study: their specs, their states, and how far they have come. `sweep` runs them."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from robflat_bench.config.cost import passes_of_evaluation, passes_of_training
from robflat_bench.config.protocol import load
from robflat_bench.config.spec import RunSpec
from robflat_bench.config.study import Study, Variant
from robflat_bench.core import RobflatError
from robflat_bench.core.files import read_regular
from robflat_bench.evaluation.session import Session
from robflat_bench.records.record import LARGEST, MAX_BYTES
from robflat_bench.records.store import RunFolder
from robflat_bench.registry.components import compose
from robflat_bench.runs.run import PlannedRun

State = Literal["new", "unfinished", "failed", "done"]


@dataclass(frozen=True)
class Course:
    """How far a run has come: epochs trained, their seconds, and seconds of evaluation."""

    epochs: int = 0
    seconds: float = 0.0
    evaluated: float = 0.0


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
    helpers : tuple of RunFolder
        The runs whose networks it trains first where they are not there.
    """

    variant: Variant
    spec: RunSpec
    folder: RunFolder
    training: tuple[int, int]
    evaluation: tuple[int, int]
    helpers: tuple[RunFolder, ...] = ()

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

    def course(self) -> Course:
        """How far it has come. An evaluation counts from its beginning, whatever of it is saved."""
        try:
            lines = read_regular(self.folder.history_file, MAX_BYTES).decode().splitlines()
            seconds = [float(json.loads(line)["seconds"]) for line in lines]
        except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
            return Course()
        return Course(len(seconds), sum(seconds)) if all(0 <= each <= LARGEST for each in seconds) else Course()

    def evaluated(self) -> float:
        """Seconds since its newest state was saved. A running task that has trained began its evaluation then."""
        saved = []
        for state in self.folder.checkpoints.glob("state-*.safetensors"):
            with contextlib.suppress(OSError):
                saved.append(state.stat().st_mtime)
        return max(0.0, time.time() - max(saved)) if saved else 0.0

    def saved(self) -> int:
        """Saved updates and units of evaluation, its helpers' included. While it advances, each attempt adds some."""
        return sum(map(_saved, (self.folder, *self.helpers)))


def _saved(folder: RunFolder) -> int:
    steps = (path.stem.rpartition("-")[2] for path in folder.checkpoints.glob("state-*.safetensors"))
    return max((int(step) for step in steps if step.isdecimal()), default=0) + sum(
        1 for _ in folder.work.rglob("*.npz")
    )


def _helpers(run: PlannedRun) -> Iterator[RunFolder]:
    """The folders of a run's helpers, and of theirs."""
    for text in run.method.helpers.values():
        helper = PlannedRun(run.session, compose(run.session.registry, text), run.seed)
        yield helper.folder
        yield from _helpers(helper)


@dataclass(frozen=True)
class Refused:
    """A variant that cannot be run, with the reason in one line."""

    variant: Variant
    reason: str


def tasks(
    session: Session, study: Study, seeds: int, settings: tuple[str, ...] = ()
) -> tuple[list[Task], list[Refused]]:
    """Every run of a study, and the variants that cannot be run.

    Parameters
    ----------
    session : Session
        Under the study's protocol and `settings`; its store keeps the runs.
    study : Study
        The variants.
    seeds : int
        Each variant is run with the seeds 1 to `seeds`.
    settings : tuple of str
        Settings of every run beside the study's own, as after `--set`.

    Returns
    -------
    list of Task
        Seed 1 of every variant, then seed 2, and so on. Variants that share a run have one task.
    list of Refused
        Variants with an unknown component, a wrong parameter or a setting that the recipe does not admit.

    Raises
    ------
    UsageError
        A grid of the study varies a key of `settings`.
    """
    registry, images = session.registry, len(session.splits.pools["train"].y)
    made: list[list[Task]] = []
    refused: list[Refused] = []
    for variant in study.variants(settings):
        try:
            protocol = load(registry, study.protocol, variant.settings)
            composed = compose(registry, variant.method)
            runs = [PlannedRun(session.under(protocol), composed, seed) for seed in range(1, seeds + 1)]
            specs = [run.spec for run in runs]  # first: a spec refuses helpers without end
            training = passes_of_training(registry, composed, protocol.recipe, images)
            evaluation = passes_of_evaluation(registry, protocol)
            made.append(
                [
                    Task(variant, spec, run.folder, training, evaluation, tuple(_helpers(run)))
                    for run, spec in zip(runs, specs, strict=True)
                ]
            )
        except RobflatError as error:
            refused.append(Refused(variant, str(error).splitlines()[0]))
    found: dict[str, Task] = {}
    for task in itertools.chain.from_iterable(zip(*made, strict=True)):
        found.setdefault(task.spec.key, task)
    return list(found.values()), refused
