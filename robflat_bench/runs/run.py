"""One run from its method to its record: train (or resume), evaluate (or resume), write the record."""

from __future__ import annotations

import contextlib
import hashlib
import traceback
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np
from torch import nn

from robflat_bench.config.spec import RunSpec, make_spec, used_components
from robflat_bench.core import Interrupted, Observer, Observers, RobflatError, RunFailed, RunView
from robflat_bench.core.faults import text_of
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import build_model, initial_weights
from robflat_bench.evaluation.network import check_trainable
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.evaluation.workers import ahead
from robflat_bench.numerics.capacity import peak_memory_bytes
from robflat_bench.numerics.weights import load_weights, read_weights
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.lease import Lost
from robflat_bench.records.record import Budget, Result, RunRecord
from robflat_bench.records.store import INITIAL, RunFolder, outcomes_bytes, write_json
from robflat_bench.registry.components import Composed, compose, resolve
from robflat_bench.registry.faults import faults
from robflat_bench.runs import environment
from robflat_bench.runs.observers import HistoryFile, PluginObservers
from robflat_bench.training.composition import Composition
from robflat_bench.training.inputs import TrainingInputs
from robflat_bench.training.loop import State, train
from robflat_bench.training.processes import Processes, launched

CHECKPOINTS = ("best", "last")
"""The checkpoints that every run evaluates."""


@dataclass(frozen=True)
class PlannedRun:
    """A method under a session's protocol, with a seed.

    Parameters
    ----------
    session : Session
        Protocol, data, store and device.
    method : Composed
        The method and its modifiers.
    seed : int
        Seed of the initial weights and of all random numbers in training; at least 0.
    """

    session: Session
    method: Composed
    seed: int

    @cached_property
    def spec(self) -> RunSpec:
        """The canonical description, whose hash is the run's key."""
        session = self.session
        return make_spec(session.registry, session.protocol, self.method, session.splits.ref, self.seed)

    @cached_property
    def folder(self) -> RunFolder:
        """The run's folder in the session's store."""
        return self.session.store.folder(self.spec)


def execute(run: PlannedRun, fresh: bool = False) -> RunRecord:
    """Carry out a run, or read its record if it is finished; an interrupted run goes on where it stopped.

    Parameters
    ----------
    run : PlannedRun
        The run.
    fresh : bool
        Delete everything that an earlier attempt left, and start anew.

    Returns
    -------
    RunRecord
        The record, as it is in the run's folder.

    Raises
    ------
    UsageError
        If the processes of `torchrun` cannot divide the recipe's shards.
    SystemExit
        In every process of `torchrun` but the first, after training.
    Busy
        If another process works on the run.
    Exception
        Whatever made the run fail (see `faults`). `failed.json` then holds the error and its traceback, and the run is
        not finished.
    """
    session, folder, spec = run.session, run.folder, run.spec
    processes = launched(session.device)
    processes.share(spec.recipe.shards)
    if not processes.leads:
        _follow(run, processes)
    if folder.record_file.is_file() and not fresh:
        processes.told(True)
        return folder.record()  # without the lock: the store may be read-only
    with folder.locked(told=session.observer.note):
        if fresh:
            folder.clear()
        if processes.told(folder.record_file.is_file()):
            return folder.record()
        document = spec.model_dump(mode="json")
        write_json(folder.path / "spec.json", document)
        folder.failed_file.unlink(missing_ok=True)  # this attempt replaces the one that failed
        view = RunView(spec.key, spec.label, spec.method, spec.protocol.name, spec.seed, folder.path, document)
        watchers = PluginObservers(session.registry.plugins, view, session.observer.note)
        try:
            with faults(session.registry):
                watchers.starts()
                return _make(run, watchers)
        except Lost:
            raise
        except Exception as error:
            watchers.fails(error)
            failure = {"key": spec.key, "error": text_of(error), "trace": traceback.format_exc()[-20_000:]}
            with contextlib.suppress(RobflatError):  # the disk may be full; the user must see the first error
                write_json(folder.failed_file, failure)
            raise


def _follow(run: PlannedRun, processes: Processes) -> NoReturn:
    """Compute this process's shards of a run that process 0 leads, and leave: process 0 reports how training ended."""
    session = replace(run.session, observer=Observer(), data=run.session.splits)
    configure(session.fixed)
    with faults(session.registry), contextlib.suppress(RunFailed, Interrupted):
        if not processes.told(False):
            _train(replace(run, session=session))
    raise SystemExit(0)


def _make(run: PlannedRun, watchers: PluginObservers) -> RunRecord:
    """Train, evaluate and write the record."""
    session, spec = run.session, run.spec
    configure(session.fixed)
    trained = _train(run, watchers)
    journal = StoredJournal(run.folder.work, session.observer.unit_ends)
    results, outcomes = _evaluate(run, trained, journal, watchers)
    raw = outcomes_bytes(results, outcomes)
    used = used_components(session.registry, session.protocol, run.method)
    record = RunRecord(
        key=spec.key,
        spec=spec,
        protocol=spec.protocol,
        method=spec.method,
        seed=spec.seed,
        dataset=spec.dataset,
        results=results,  # type: ignore[arg-type]
        budget=_budget(trained, journal.spent.seconds),
        extra_data=bool(spec.extra_data),
        history=tuple(trained.history),
        outcomes=hashlib.sha256(raw).hexdigest(),
        environment=environment.of(session, launched(session.device).count),
        provenance=environment.provenance(used),
    )
    watchers.ends(record)
    record = record.model_copy(update={"provenance": record.provenance | {"observers": watchers.report}})
    run.folder.finish(record, raw)
    return record


def _train(run: PlannedRun, *watchers: Observer) -> State:
    """The state in which training ended; its passes and seconds include those of the helpers' training."""
    session, spec, fixed = run.session, run.spec, run.session.fixed
    model = build_model(session, run.seed)
    check_trainable(session, model, fixed.backbone)
    helpers = {name: _helper(run, text) for name, text in run.method.helpers.items()}
    inputs = TrainingInputs(
        model=model,
        composition=Composition(run.method),
        helpers={name: network for name, (network, _) in helpers.items()},
        recipe=spec.recipe,
        splits=session.splits,
        seed=run.seed,
        selection=resolve(session.registry, "attack", fixed.selection.attack).build(session.threat),
        check_every=fixed.selection.every,
        evaluation_seed=fixed.seed,
        folder=run.folder.checkpoints,
        device=session.device,
        dtype=session.dtype,
        reduced=fixed.training_precision == "bfloat16",
        keep_every=session.keep_every,
        processes=launched(session.device),
        norm=fixed.threat.norm,
    )
    history = HistoryFile(run.folder.history_file)
    state = train(inputs, Observers(history, session.observer, *watchers))
    for _, cost in helpers.values():
        state.forward += cost.forward
        state.backward += cost.backward
        state.seconds += cost.seconds - cost.evaluation_seconds
    return state


def _helper(run: PlannedRun, method: str) -> tuple[nn.Module, Budget]:
    """A helper's network, frozen and in eval mode, and what its training cost.

    A helper is a network that the method needs, such as a teacher: a run of the same store. It is trained here if it is
    not finished, but not evaluated.
    """
    session = run.session
    helper = PlannedRun(session, compose(session.registry, method), run.seed)
    folder, weights = helper.folder, helper.folder.weights("last")
    processes = launched(session.device)
    with folder.locked(wait=True) if processes.leads else contextlib.nullcontext():
        if processes.told(folder.record_file.is_file() and weights.is_file()):
            cost = folder.record().budget
        else:
            if processes.leads:
                write_json(folder.path / "spec.json", helper.spec.model_dump(mode="json"))
            cost = _budget(_train(helper), 0.0)
        processes.told(True)  # the weights are written
    network = build_model(session, run.seed)
    load_weights(network, read_weights(weights), str(weights))
    return network.eval().requires_grad_(False), cost


def _evaluate(
    run: PlannedRun, trained: State, journal: StoredJournal, watchers: PluginObservers
) -> tuple[dict[str, Result], dict[str, np.ndarray]]:
    """Result by checkpoint, and the outcomes of all checkpoints."""
    if trained.best is None:
        raise RunFailed("training ended without a checkpoint; run again with --fresh")
    session, folder = run.session, run.folder
    epochs = {"best": trained.best.epoch, "last": run.spec.recipe.epochs - 1}
    initial = initial_weights(folder.weights(INITIAL))
    subjects: list[tuple[Plan, EvaluatedModel]] = []
    for checkpoint in CHECKPOINTS:
        model = build_model(session, run.seed)  # anew: a network may keep what it derived from other weights
        load_weights(model, read_weights(folder.weights(checkpoint)), checkpoint)
        subject = EvaluatedModel(model, checkpoint, epochs[checkpoint], initial)
        subjects.append((Plan.of(session.fixed, checkpoint), subject))
    stages = [stage for plan, subject in subjects for stage in plan.stage_names(session.registry, subject.checkpoint)]
    session.observer.evaluation_starts(stages)
    results: dict[str, Result] = {}
    outcomes: dict[str, np.ndarray] = {}
    with ahead(session, subjects, journal):
        for plan, subject in subjects:
            result, arrays = evaluate(session, plan, subject, journal)
            results[subject.checkpoint] = result
            outcomes |= arrays
            watchers.evaluation_ends(subject.checkpoint, result)
    return results, outcomes


def _budget(trained: State, evaluation_seconds: float) -> Budget:
    return Budget(
        forward=trained.forward,
        backward=trained.backward,
        seconds=trained.seconds + evaluation_seconds,
        evaluation_seconds=evaluation_seconds,
        peak_memory_bytes=peak_memory_bytes(),
    )
