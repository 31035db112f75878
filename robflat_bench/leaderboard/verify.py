"""Verification of an entry in a fresh process: from its weights (re-evaluated) or from its spec (reproduced).

What agreement means is in `agreement.py`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from robflat_bench.config.protocol import load, recorded
from robflat_bench.config.spec import run_options
from robflat_bench.core import CheckFailed, RunFailed
from robflat_bench.leaderboard.agreement import (
    Disagreement,
    agreement,
    error_rates,
    same_training,
    training_agreement,
    training_spread,
)
from robflat_bench.leaderboard.child import run_child
from robflat_bench.leaderboard.entries import Submission, Verification
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.records.quantities import Outcomes
from robflat_bench.records.record import EvaluationRecord, Result, RunRecord
from robflat_bench.records.store import RunFolder, read_outcomes, read_record
from robflat_bench.registry.registry import Registry

Granted = Literal["re-evaluated", "reproduced"]


def reevaluate(entry: Submission, registry: Registry, weights: Path, options: list[str], today: str) -> Verification:
    """Evaluate the checkpoint with these weights again.

    Parameters
    ----------
    options : further options of `robflat-bench evaluate`.
    today : YYYY-MM-DD.

    Raises
    ------
    CheckFailed : the weights are not this entry's, or the results do not agree.
    """
    found = digest(read_weights(weights))
    names = [name for name, known in sorted(entry.entry.weights.items(), reverse=True) if known == found]
    if not names:
        raise CheckFailed(f"{weights} are not the weights of this entry: its best and last have another SHA-256")
    spec = entry.record.spec
    with tempfile.TemporaryDirectory() as store:
        file = Path(store) / f"{names[0]}.safetensors"
        shutil.copyfile(weights, file)
        model = [
            str(file),
            "--protocol",
            _protocol(registry, entry),
            "--set",
            f"recipe.activation={spec.recipe.activation}",
        ]
        _harness("evaluate", *model, "--checkpoint", names[0], "--store", store, *options)
        path = next(Path(store).glob("*/external/*/evaluations/*.json"))
        again: EvaluationRecord = read_record(path, EvaluationRecord)
        outcomes = read_outcomes(again, path.with_suffix(".npz"))
    return _granted(entry, "re-evaluated", again, outcomes, today, {})


def reproduce(
    entry: Submission, others: Iterable[Submission], registry: Registry, options: list[str], today: str
) -> Verification:
    """Train and evaluate a run of the same spec. options, today: as in `reevaluate`, of `robflat-bench run`.

    others: the entries of the leaderboard, of which those of the same board say how far two trainings are apart.

    Raises CheckFailed where the results do not agree, or this version makes another run of the spec.
    """
    spec = entry.record.spec
    known, training = _protocol(registry, entry), chance_of_training(entry, others)
    row = run_options(spec, load(registry, known), known)
    with tempfile.TemporaryDirectory() as store:
        _harness("run", *row, "--store", store, *options)
        run = RunFolder(Path(store) / spec.folder)
        if not run.record_file.is_file():
            raise CheckFailed(f"{entry.folder}: this version makes another run of that spec (its key differs)")
        again, outcomes = run.evidence()
    return _granted(entry, "reproduced", again, outcomes, today, training)


def chance_of_training(entry: Submission, others: Iterable[Submission]) -> dict[str, float]:
    """The `training_spread` of the other rows of the entry's board; empty where none of them has two seeds."""
    rows = defaultdict(list)
    for one in others:
        if one.entry.status == "active" and one.record.protocol == entry.record.protocol and one.row != entry.row:
            rows[one.row].append(error_rates(one.outcomes))
    return training_spread(rows.values())


def _protocol(registry: Registry, entry: Submission) -> str:
    """What `--protocol` takes for the entry's protocol."""
    ref = entry.record.protocol
    return recorded(registry, ref.name, ref.version)


def _harness(*arguments: str) -> None:
    """Run robflat-bench in a process of its own."""
    if code := run_child(*arguments):
        raise RunFailed(f"`robflat-bench {arguments[0]}` ended with {code}; its last lines are above")


def _granted(
    entry: Submission,
    tier: Granted,
    again: RunRecord | EvaluationRecord,
    outcomes: Outcomes,
    today: str,
    training: Mapping[str, float],
) -> Verification:
    """The verification, where the second look agrees with the entry."""
    try:
        found = second_look(entry, again, outcomes, training)
    except CheckFailed as error:
        raise CheckFailed(f"{entry.folder}: {error}") from None
    return Verification(
        tier=tier,
        date=today,
        **found._asdict(),
        environment=again.environment,
        provenance=again.provenance,
    )


def second_look(
    entry: Submission, again: RunRecord | EvaluationRecord, outcomes: Outcomes, training: Mapping[str, float]
) -> Disagreement:
    """How far an evaluation of the entry's weights, or another training of its spec, is from the entry.

    Raises CheckFailed where it does not agree, or was made under another protocol, of other data or other weights.
    """
    record = entry.record
    if (again.protocol, again.dataset.checksum) != (record.protocol, record.dataset.checksum):
        raise CheckFailed("the second look was made under another protocol or on other data than the entry")
    if isinstance(again, RunRecord):
        if again.spec.identity != record.spec.identity:
            raise CheckFailed("the second look trained by another spec than the entry's")
        return between_trainings(record, entry.outcomes, again, outcomes, training)
    results: Mapping[Any, Result] = again.results
    if any(result.weights != entry.entry.weights.get(name) for name, result in results.items()):
        raise CheckFailed("the second look evaluated other weights than the entry's")
    return agreement(record, entry.outcomes, results, outcomes, training)


def between_trainings(
    mine: RunRecord, my_outcomes: Outcomes, again: RunRecord, outcomes: Outcomes, training: Mapping[str, float]
) -> Disagreement:
    """How far two trainings by one spec are apart, or by specs that differ in their seed alone.

    Where the second one found another epoch best, it has no network to compare with the first one's `best`: the
    held-out errors of neighbouring epochs are nearly equal, so that rounding decides which is the lowest.

    Raises CheckFailed where they do not agree.
    """
    training_agreement(mine, again)
    results: Mapping[Any, Result] = again.results
    epochs = {name: result.epoch for name, result in mine.results.items()}
    if not same_training(mine, again):
        results = {name: found for name, found in results.items() if found.epoch == epochs[name]}
    elif any(found.epoch != epochs[name] for name, found in results.items()):
        raise CheckFailed("the second look ended with the entry's weights and found another epoch best")
    return agreement(mine, my_outcomes, results, outcomes, training)
