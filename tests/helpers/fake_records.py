"""Synthetic runs: complete, consistent records with random outcomes, as a run under `digits-linf` would leave them."""

import hashlib
from pathlib import Path

import numpy as np

from robflat_bench.config.cost import passes_of_training
from robflat_bench.config.protocol import Protocol, load
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.core.estimates import ESTIMATES
from robflat_bench.leaderboard.submit import add_entries
from robflat_bench.records.quantities import autoattack_missed
from robflat_bench.records.record import (
    Budget,
    Epoch,
    EvaluationRecord,
    Flags,
    MeasureResult,
    Result,
    RunRecord,
    measure_path,
    totals,
)
from robflat_bench.records.store import RunFolder, write_atomically, write_json
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import Registry, discover

REGISTRY = discover()
DATASET = DatasetRef(
    name="digits",
    checksum=load(REGISTRY, "digits-linf").checksum,
    spare="f" * 64,
    canonical=True,
    origin="scikit-learn digits (1,797 images)",
)
DIFFICULTY = np.random.default_rng(0).normal(size=1000)
"""Difficulty of each example, the same for all networks."""


def fake_run(
    store: Path,
    method: str = "at",
    seed: int = 1,
    *,
    skill: float = 0.0,
    flatness: float = 1.0,
    settings: tuple[str, ...] = (),
    dataset: DatasetRef | None = None,
    protocol: str = "digits-linf",
    registry: Registry = REGISTRY,
    training: int = 0,
) -> RunFolder:
    """A finished run. skill: higher is more robust. training: another number gives another network of the same spec.
    Its outcomes depend on these arguments only."""
    chosen, composed = load(registry, protocol, settings), compose(registry, method)
    dataset = dataset or DATASET.model_copy(update={"checksum": chosen.checksum or DATASET.checksum})
    spec = make_spec(registry, chosen, composed, dataset, seed)
    rng = np.random.default_rng(
        int(hashlib.sha256(f"{spec.label} {seed} {skill}{training or ''}".encode()).hexdigest()[:12], 16)
    )
    outcomes, results = {}, {}
    epochs = chosen.recipe.epochs
    for checkpoint, epoch in (("best", epochs // 2), ("last", epochs - 1)):
        skilled = skill + rng.normal(scale=0.05)
        results[checkpoint] = _result(registry, chosen, checkpoint, epoch, outcomes, rng, skilled, flatness)
    forward, backward = passes_of_training(registry, composed, spec.recipe, chosen.fixed.data.train.count)
    raw = arrays_bytes(outcomes)
    record = RunRecord(
        key=spec.key,
        spec=spec,
        protocol=spec.protocol,
        method=spec.method,
        seed=seed,
        dataset=dataset,
        results=results,
        budget=Budget(
            forward=forward, backward=backward, seconds=50.0, evaluation_seconds=30.0, peak_memory_bytes=10**8
        ),
        history=tuple(
            Epoch(
                epoch=epoch,
                learning_rate=0.1,
                train_loss=2.0 / (epoch + 1),
                heldout_clean_error=0.1,
                heldout_robust_error=0.4,
                heldout_robust_loss=1.5 + 0.01 * abs(epoch - epochs // 2),
                seconds=1.0,
            )
            for epoch in range(epochs)
        ),
        outcomes=hashlib.sha256(raw).hexdigest(),
        environment={"cpu": "made up"},
        provenance={"robflat_bench": "0", "source": "0" * 64},
    )
    folder = RunFolder(store / spec.folder)
    write_json(folder.path / "spec.json", spec.model_dump(mode="json"))
    write_atomically(folder.outcomes_file, raw)
    write_json(folder.record_file, record.model_dump(mode="json"))
    return folder


def fake_evaluation(run: RunFolder, key: str, value: float = 1.0) -> Path:
    """An evaluation of a run's last checkpoint that adds one measure; its JSON file."""
    record, outcomes = run.evidence()
    clean = {name: array for name, array in outcomes.items() if name.startswith("last/test/clean/")}
    raw = arrays_bytes(clean)
    result = Result(
        epoch=record.results["last"].epoch,
        weights=record.results["last"].weights,
        measures={"spectral-norm": MeasureResult(value=value, standard_error=None, n=0, seconds=1.0)},
        flags=Flags(zero_gradients=0.0, random_forward=False),
        seconds={},
        **totals(clean, "last", []),
    )
    evaluation = EvaluationRecord(
        key=key,
        model="last",
        protocol=record.protocol,
        dataset=record.dataset,
        results={"last": result},
        outcomes=hashlib.sha256(raw).hexdigest(),
        environment={},
        provenance={},
    )
    run.add(evaluation, raw)
    return run.evaluation_file(key)


def _result(
    registry: Registry,
    protocol: Protocol,
    checkpoint: str,
    epoch: int,
    outcomes: dict,
    rng: np.random.Generator,
    skill: float,
    flatness: float,
) -> Result:
    attacks = [row for row in protocol.fixed.attacks if checkpoint in row.checkpoints]
    measures = [row for row in protocol.fixed.measures if checkpoint in row.checkpoints]
    for split, ease in (("test", 0.0), ("train", 0.6)):
        most = max(getattr(row, split) for row in attacks)
        hard = DIFFICULTY[:most] + rng.normal(scale=0.5, size=most) - skill - ease
        outcomes[f"{checkpoint}/{split}/clean/error"] = hard > 1.5
        outcomes[f"{checkpoint}/{split}/clean/loss"] = np.log1p(np.exp(hard - 1.5))
        for row in attacks:
            count = getattr(row, split)
            if count:
                reach = 0.8 if row.attack.startswith("autoattack") else 0.6
                outcomes[f"{checkpoint}/{split}/{row.attack}/error"] = hard[:count] > 1.5 - reach
                if row is attacks[0]:
                    outcomes[f"{checkpoint}/{split}/{row.attack}/loss"] = np.log1p(np.exp(hard[:count] - 0.9))
    found = {}
    for row in measures:
        component = resolve(registry, "measure", row.measure)
        per_example = flatness * rng.gamma(4.0, 0.25, size=row.test)
        arrays = measure_arrays(component.info.estimate, per_example, component.params.model_dump())
        outcomes |= {f"{measure_path(checkpoint, 'test', row.measure)}/{name}": array for name, array in arrays.items()}
        found[row.measure] = MeasureResult(seconds=1.0, **ESTIMATES[component.info.estimate](arrays))
    attacks_asked = [row.attack for row in attacks]
    return Result(
        epoch=epoch,
        weights=hashlib.sha256(rng.bytes(8)).hexdigest(),
        measures=found,
        flags=Flags(
            zero_gradients=0.0,
            random_forward=False,
            pgd_beats_autoattack=autoattack_missed(outcomes, checkpoint, attacks_asked),
        ),
        seconds={},
        **totals(outcomes, checkpoint, attacks_asked),
    )


def measure_arrays(estimate: str, per_example: np.ndarray, params: dict) -> dict[str, np.ndarray]:
    """The arrays of average-case or worst-case flatness that give this rise of each example."""
    reference = np.ones(len(per_example))
    count = params["draws"] if estimate == "draws and examples" else params["restarts"]
    spread = np.linspace(-0.1, 0.1, count)[:, None] if estimate == "draws and examples" else -np.arange(count)[:, None]
    losses = reference + per_example * (1 + spread)
    rises = losses - reference
    found = rises.mean(0) if estimate == "draws and examples" else rises[0]
    return {"losses": losses, "reference": reference, "per_example": found}


def league(store: Path, methods: dict[str, float], seeds: int = 3) -> list[RunFolder]:
    """Runs of several methods: method -> skill. More robust methods are flatter."""
    return [
        fake_run(store, method, seed, skill=skill, flatness=float(np.exp(-skill)))
        for method, skill in methods.items()
        for seed in range(1, seeds + 1)
    ]


def submitted(root: Path, runs: list[RunFolder], day: str = "2026-01-02") -> list[Path]:
    return add_entries(root, runs, REGISTRY, day)
