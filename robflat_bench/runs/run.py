"""One run from spec to record: train (or resume), evaluate (or resume), write the record."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench import NUMERICS
from robflat_bench.runs import environment
from robflat_bench.backbones.parts import initialize
from robflat_bench.config.protocol import Protocol, content_hash, load
from robflat_bench.config.spec import ProtocolRef, RunSpec, make_spec, plugin_sources, used_components
from robflat_bench.core import Kind, RobflatError, RunFailed, RunView, Threat, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.data.splits import Splits
from robflat_bench.evaluation.evaluate import DTYPES, Plan, EvaluatedModel, configure, evaluate
from robflat_bench.numerics.compilation import Compilation
from robflat_bench.numerics.weights import digest, load_weights, read_weights
from robflat_bench.core import Observer, Observers
from robflat_bench.runs.observers import HistoryFile, PluginObservers
from robflat_bench.registry.components import Component, compose, resolve
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import Budget, EvaluationRecord, Result, RunRecord
from robflat_bench.results.store import (
    INITIAL,
    RunFolder,
    Store,
    StoredJournal,
    outcomes_bytes,
    write_atomically,
    write_json,
)
from robflat_bench.training.composition import Composition
from robflat_bench.training.loop import TrainingInputs, State, train

CHECKPOINTS = ("best", "last")


def choose_device(wanted: str) -> str:
    """auto -> cuda where there is one; UsageError where cuda is asked for and absent."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu (or auto)")
    return wanted


def build_model(
    registry: Registry,
    protocol: Protocol,
    backbone: str,
    activation: str,
    splits: Splits,
    seed: int,
    device: str,
) -> nn.Module:
    """The backbone, initialised from the seed unless it comes with its weights, in the protocol's precision and the
    faster layout, on the device."""
    component = resolve(registry, "backbone", backbone)
    model: nn.Module = component.build(splits.shape, activation)
    if not component.info.pretrained:
        initialize(model, generator(seed, "init"))
    model = model.to(device, DTYPES[protocol.fixed.precision])
    return model.to(memory_format=layout(model))


def layout(model: nn.Module) -> torch.memory_format:
    """Channels last, which is faster, unless the network has a strided 1x1 convolution of channels not in sixteens:
    there oneDNN (up to torch 2.15 at least) corrupts the heap in its weight gradient."""
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) != m.stride]
    return torch.channels_last if all(m.in_channels % 16 == 0 for m in strided) else torch.contiguous_format


@dataclass(frozen=True)
class Bench:
    """What every run of a session shares."""

    registry: Registry
    protocol: Protocol
    splits: Splits
    store: Store
    device: str
    observer: Observer = field(default_factory=Observer)
    keep_every: int = 0
    """Keep the weights of every so many epochs (0: of none but best and last); changes no number."""
    compile: Compilation | None = None
    """Its networks are compiled; noted in the record's environment, never part of a run's identity."""

    def spec(self, method: str, seed: int) -> RunSpec:
        """The spec of `method+modifier+...` under this protocol on this data."""
        return make_spec(self.registry, self.protocol, compose(self.registry, method), self.splits.ref, seed)


def execute(bench: Bench, spec: RunSpec, fresh: bool = False) -> RunRecord:
    """The run's record: read if it is finished, otherwise made, from wherever an earlier process stopped.

    A failure leaves `failed.json` with the error and its trace; it never counts as a result.
    """
    folder = bench.store.folder(spec)
    with folder.locked():
        if fresh:
            folder.clear()
        if folder.record_file.is_file():
            return folder.record()
        document = spec.model_dump(mode="json")
        write_json(folder.path / "spec.json", document)
        folder.failed_file.unlink(missing_ok=True)  # it is being tried again
        run = RunView(spec.key, spec.label, spec.method, spec.protocol.name, spec.seed, folder.path, document)
        watchers = PluginObservers(bench.registry.plugins, run, bench.observer.note)
        try:
            watchers.starts()
            return _make(bench, spec, folder, watchers)
        except Exception as error:
            watchers.fails(error)
            failure = {"key": spec.key, "error": str(error), "trace": traceback.format_exc()[-20_000:]}
            with contextlib.suppress(RobflatError):  # a full disk: the error itself is what the user must see
                write_json(folder.failed_file, failure)
            raise


def _make(bench: Bench, spec: RunSpec, folder: RunFolder, watchers: PluginObservers) -> RunRecord:
    registry, fixed, splits = bench.registry, bench.protocol.fixed, bench.splits
    configure(fixed)
    model, trained = _train(bench, spec, folder, watchers)
    if trained.best is None:
        raise RunFailed("training ended without a checkpoint; run again with --fresh")
    epochs = {"best": trained.best.epoch, "last": spec.recipe.epochs - 1}

    plans = {checkpoint: Plan.of(fixed, checkpoint) for checkpoint in CHECKPOINTS}
    stages = [stage for name, plan in plans.items() for stage in plan.stages(registry, name)]
    bench.observer.evaluation_starts(stages)
    journal = StoredJournal(folder.work, bench.observer.unit_ends)
    initial = initial_weights(folder.weights(INITIAL))
    results: dict[str, Result] = {}
    outcomes: dict[str, np.ndarray] = {}
    for checkpoint, plan in plans.items():
        load_weights(model, read_weights(folder.weights(checkpoint)), checkpoint)
        subject = EvaluatedModel(model, checkpoint, epochs[checkpoint], initial)
        results[checkpoint], arrays = evaluate(
            registry, fixed, splits, bench.device, plan, subject, journal, bench.observer
        )
        outcomes |= arrays
        watchers.evaluation_ends(checkpoint, results[checkpoint])
    raw = outcomes_bytes(results, outcomes)
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
        environment=_environment(registry, bench.device, bench.compile),
        provenance=_provenance(used_components(registry, bench.protocol, compose(registry, spec.method))),
    )
    watchers.ends(record)
    record = record.model_copy(update={"provenance": record.provenance | {"observers": watchers.report}})
    folder.finish(record, raw)
    return record


def _environment(registry: Registry, device: str, compilation: Compilation | None) -> dict[str, Any]:
    """Of this process: the machine, torch, how networks were compiled (None: not), and what plugins say."""
    return {
        **environment.describe(),
        **environment.torch_environment(device),
        "compiled": compilation.report() if compilation else None,
        "plugins": registry.plugins.environment(),
    }


def _provenance(used: Iterable[Component]) -> dict[str, Any]:
    """Which code made a record: this package's, and whose each component is."""
    components = {f"{part.info.kind}:{part.name}": part.offer.provenance for part in used}
    return environment.provenance() | {"components": dict(sorted(components.items()))}


def _train(bench: Bench, spec: RunSpec, folder: RunFolder, *watchers: Observer) -> tuple[nn.Module, State]:
    """The run's network (with whatever weights training left in it) and where its training ended.

    What its helpers cost is part of what it cost.
    """
    registry, fixed = bench.registry, bench.protocol.fixed
    composed = compose(registry, spec.method)
    helpers = {name: _helper(bench, text, spec.seed) for name, text in composed.helpers.items()}
    model = _network(bench, spec.seed)
    job = TrainingInputs(
        model=model,
        composition=Composition(composed),
        helpers={name: network for name, (network, _) in helpers.items()},
        recipe=spec.recipe,
        splits=bench.splits,
        seed=spec.seed,
        selection=resolve(registry, "attack", fixed.selection.attack).build(
            Threat(fixed.threat.epsilon, fixed.threat.norm)
        ),
        check_every=fixed.selection.every,
        evaluation_seed=fixed.seed,
        folder=folder.checkpoints,
        device=bench.device,
        dtype=DTYPES[fixed.precision],
        reduced=fixed.training_precision == "bfloat16",
        keep_every=bench.keep_every,
    )
    state = train(job, Observers(HistoryFile(folder.path / "history.jsonl"), bench.observer, *watchers))
    for _, cost in helpers.values():
        state.forward += cost.forward
        state.backward += cost.backward
        state.seconds += cost.seconds - cost.evaluation_seconds
    return model, state


def _network(bench: Bench, seed: int) -> nn.Module:
    protocol = bench.protocol
    model = build_model(
        bench.registry,
        protocol,
        protocol.fixed.backbone,
        protocol.recipe.activation,
        bench.splits,
        seed,
        bench.device,
    )
    if bench.compile:
        bench.compile.add(model)
    return model


def _helper(bench: Bench, method: str, seed: int) -> tuple[nn.Module, Budget]:
    """A network trained by another method first, frozen, in eval mode, and what it cost; its run lies in the same
    store and is trained, but not evaluated, where that has not happened yet."""
    spec = bench.spec(method, seed)
    folder = bench.store.folder(spec)
    weights = folder.weights("last")
    with folder.locked(wait=True):
        if folder.record_file.is_file() and weights.is_file():
            cost = folder.record().budget
        else:
            write_json(folder.path / "spec.json", spec.model_dump(mode="json"))
            cost = _budget(_train(bench, spec, folder)[1], 0.0)
    network = _network(bench, seed)
    load_weights(network, read_weights(weights), str(weights))
    return network.eval().requires_grad_(False), cost


def _budget(trained: State, evaluation_seconds: float) -> Budget:
    return Budget(
        forward=trained.forward,
        backward=trained.backward,
        seconds=trained.seconds + evaluation_seconds,
        evaluation_seconds=evaluation_seconds,
        peak_memory_bytes=environment.peak_memory_bytes(),
    )


def initial_weights(path: Path | None) -> dict[str, Tensor] | None:
    """The weights that training began with, where they were kept."""
    return read_weights(path) if path is not None and path.is_file() else None


@dataclass(frozen=True)
class FoundModel:
    """A model to evaluate: what to build, its weights (None: as initialised), what it is called, where its evaluations
    go, and, of a run's, its epoch and the weights that training began with."""

    protocol: Protocol
    backbone: str
    activation: str
    weights: Path | None
    name: str
    home: Path | None = None
    epoch: int | None = None
    initial: Path | None = None


def find_model(
    registry: Registry, protocol: Protocol, store: Store, name: str, backbone: str | None, checkpoint: str
) -> FoundModel:
    """A run's folder or key, a weights file, or a backbone by its component text, as `evaluate` takes it; of a run,
    the checkpoint best, last, initial or epoch-N."""
    if name.endswith(".safetensors"):
        weights = Path(name)
        activation = protocol.recipe.activation
        return FoundModel(protocol, backbone or protocol.fixed.backbone, activation, weights, weights.stem)
    if "(" in name:
        return FoundModel(protocol, name, "relu", None, resolve(registry, "backbone", name).brief)
    folder = store.find(name)
    record = folder.record()
    if record.protocol.hash != protocol.hash and record.protocol.name in registry.protocols:
        protocol = load(registry, record.protocol.name)
    if record.protocol.hash != protocol.hash:
        raise UsageError(
            f"{name} was made under {record.protocol.name} {record.protocol.version} "
            f"({record.protocol.hash[:8]}), which is not the one here; name its file with --protocol"
        )
    epochs: dict[str, int | None] = {result: record.results[result].epoch for result in record.results}
    epochs |= {INITIAL: None, **folder.kept()}
    if checkpoint not in epochs:
        raise UsageError(
            f"{name} has no checkpoint '{checkpoint}', only {', '.join(epochs)}; train it again with "
            "`robflat-bench run ... --keep-every N --fresh` to keep more"
        )
    return FoundModel(
        protocol,
        protocol.fixed.backbone,
        record.spec.recipe.activation,
        folder.weights(checkpoint),
        checkpoint,
        folder.path,
        epochs[checkpoint],
        folder.weights(INITIAL),
    )


def load_model(registry: Registry, found: FoundModel, splits: Splits, device: str) -> nn.Module:
    """The network with its weights, on the device."""
    model = build_model(registry, found.protocol, found.backbone, found.activation, splits, 0, device)
    if found.weights is not None:
        load_weights(model, read_weights(found.weights), found.weights.name)
    return model


def _evaluated(registry: Registry, protocol: Protocol, found: FoundModel, plan: Plan) -> list[Component]:
    """What an evaluation is made of."""
    texts: list[tuple[Kind, str]] = [("backbone", found.backbone), ("dataset", protocol.fixed.data.dataset)]
    texts += [("attack", row.attack) for row in plan.attacks]
    texts += [("measure", row.measure) for row in plan.measures]
    return [resolve(registry, kind, text) for kind, text in texts]


def evaluate_model(
    registry: Registry,
    found: FoundModel,
    plan: Plan,
    splits: Splits,
    store: Store,
    device: str,
    observer: Observer,
    compilation: Compilation | None = None,
) -> tuple[EvaluationRecord, Path]:
    """What `evaluate` adds to a model: attacks and measures of `plan`, written beside it; and the file's path.

    A finished evaluation of the same network, plan and data by the same code answers from its file.
    """
    protocol = found.protocol
    configure(protocol.fixed)
    model = load_model(registry, found, splits, device)
    if compilation:
        compilation.add(model)
    weights = digest(model.state_dict())
    initial = initial_weights(found.initial)
    used = _evaluated(registry, protocol, found, plan)
    identity = {
        "name": found.name,
        "backbone": resolve(registry, "backbone", found.backbone).canonical,
        "activation": found.activation,
        "weights": weights,
        "initial": digest(initial) if initial and plan.measures else None,  # no attack reads them
        "attacks": [row.model_dump(mode="json") for row in plan.attacks],
        "measures": [row.model_dump(mode="json") for row in plan.measures],
        "protocol": protocol.hash,
        "dataset": splits.ref.checksum,
        "numerics": NUMERICS,
        "plugins": plugin_sources(used),
    }
    key = content_hash(identity)[:16]
    folder = RunFolder(found.home or store.root / protocol.name / "external" / weights[:16])
    path = folder.path / "evaluations" / f"{key}.json"
    with folder.locked():
        if path.is_file():
            return next(item for item, _ in folder.evaluations() if item.key == key), path
        observer.evaluation_starts(plan.stages(registry, found.name))
        journal = StoredJournal(path.with_name(f"work-{key}"), observer.unit_ends)
        subject = EvaluatedModel(model, found.name, found.epoch, initial)
        result, outcomes = evaluate(registry, protocol.fixed, splits, device, plan, subject, journal, observer)
        raw = outcomes_bytes({found.name: result}, outcomes)
        record = EvaluationRecord(
            key=key,
            model=found.name,
            protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
            dataset=splits.ref,
            results={found.name: result},
            outcomes=hashlib.sha256(raw).hexdigest(),
            environment=_environment(registry, device, compilation),
            provenance=_provenance(used),
        )
        write_atomically(path.with_suffix(".npz"), raw)
        write_json(path, record.model_dump(mode="json"))
        shutil.rmtree(journal.folder, ignore_errors=True)
        return record, path
