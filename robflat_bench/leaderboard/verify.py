"""Looks at an entry again, in a fresh process: from its weights (re-evaluated) or from its spec (reproduced).

Other machines round differently, so agreement is not equality: a re-evaluation may differ in 0.5 % of the examples'
outcomes and by one standard error in a loss or a measure; a retrained network is another network where a single bit
differs, so its error rates, losses and measures may differ by three standard errors.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from robflat_bench.config.protocol import Checkpoint, load
from robflat_bench.core import CheckFailed, RunFailed
from robflat_bench.leaderboard.entries import Submission, Verification
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import EvaluationRecord, Result, RunRecord, standard_error
from robflat_bench.results.store import RunFolder, read_outcomes, read_record

Outcomes = Mapping[str, np.ndarray]
Granted = Literal["re-evaluated", "reproduced"]


class Difference(NamedTuple):
    """See `Verification`."""

    identical: bool
    flags: tuple[int, int]
    deviation: float


class Bound(NamedTuple):
    """Fraction of outcomes that may differ, and by how many standard errors a number may."""

    flags: float
    deviation: float


ROUNDING = 1e-5
"""Relative: what float32 makes of sums in another order."""
BOUNDS: dict[Granted, Bound] = {"re-evaluated": Bound(0.005, 1.0), "reproduced": Bound(1.0, 3.0)}


def reevaluate(entry: Submission, weights: Path, options: list[str], today: str) -> Verification:
    """Evaluate the checkpoint with these weights again. options: more of the command line.

    CheckFailed where the weights are another's or the result does not agree.
    """
    found = digest(read_weights(weights))
    names = [name for name, known in sorted(entry.entry.weights.items(), reverse=True) if known == found]
    if not names:
        raise CheckFailed(f"{weights} are not the weights of this entry, neither best nor last (SHA-256 differs)")
    with tempfile.TemporaryDirectory() as store:
        file = Path(store) / f"{names[0]}.safetensors"
        shutil.copyfile(weights, file)
        activation = f"recipe.activation={entry.record.spec.recipe.activation}"
        _harness(
            "evaluate",
            str(file),
            "--protocol",
            entry.record.protocol.name,
            "--set",
            activation,
            "--checkpoint",
            names[0],
            "--store",
            store,
            *options,
        )
        path = next(Path(store).glob("*/external/*/evaluations/*.json"))
        again: EvaluationRecord = read_record(path, EvaluationRecord)
        outcomes = read_outcomes(again, path.with_suffix(".npz"))
    return _granted(entry, "re-evaluated", again, outcomes, names[:1], today)


def reproduce(entry: Submission, registry: Registry, options: list[str], today: str) -> Verification:
    """Train and evaluate a run of the same spec; CheckFailed where the result does not agree."""
    spec = entry.record.spec
    protocol = load(registry, spec.protocol.name)
    changes = replace(protocol, recipe=spec.recipe).overrides
    settings = [part for key, value in changes.items() for part in ("--set", f"recipe.{key}={value}")]
    with tempfile.TemporaryDirectory() as store:
        row = ["--method", spec.method, "--protocol", protocol.name, "--seed", str(spec.seed), *settings]
        _harness("run", *row, "--store", store, *options)
        run = RunFolder(Path(store) / spec.folder)
        if not run.record_file.is_file():
            raise CheckFailed(f"{entry.folder}: this version makes another run of that spec (its key differs)")
        again = run.record()
        outcomes = read_outcomes(again, run.outcomes_file)
    return _granted(entry, "reproduced", again, outcomes, [*again.results], today)


def _harness(*arguments: str) -> None:
    """robflat-bench in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "robflat_bench", *arguments], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise RunFailed(f"`robflat-bench {arguments[0]}` ended with {done.returncode}; its last words are above")


def _granted(
    entry: Submission,
    tier: Granted,
    again: RunRecord | EvaluationRecord,
    outcomes: Outcomes,
    checkpoints: Sequence[Checkpoint],
    today: str,
) -> Verification:
    results = {str(name): result for name, result in again.results.items()}
    found = difference(entry, results, outcomes, checkpoints)
    bound = BOUNDS[tier]
    if found.flags[0] > bound.flags * found.flags[1] or found.deviation > bound.deviation:
        raise CheckFailed(
            f"{entry.folder}: does not agree: {found.flags[0]} of {found.flags[1]} outcomes differ (at most "
            f"{bound.flags:.1%} may), and a number by {found.deviation:.2f} standard errors (at most "
            f"{bound.deviation:g})"
        )
    return Verification(
        tier=tier,
        date=today,
        checkpoints=tuple(checkpoints),
        **found._asdict(),
        environment=again.environment,
        provenance=again.provenance,
    )


def difference(
    entry: Submission, results: Mapping[str, Result], outcomes: Outcomes, checkpoints: Sequence[Checkpoint]
) -> Difference:
    """How far two evaluations of the same checkpoints are apart; CheckFailed where one lacks what the other has."""
    names = [name for name in entry.outcomes if name.partition("/")[0] in checkpoints]
    if any(name not in outcomes or outcomes[name].shape != entry.outcomes[name].shape for name in names):
        raise CheckFailed(f"{entry.folder}: evaluated again it has other outcomes")
    pairs = {name: (entry.outcomes[name], outcomes[name]) for name in names}
    errors = [pair for name, pair in pairs.items() if name.endswith("/error")]
    losses = [pair for name, pair in pairs.items() if name.endswith("/loss")]
    apart = [_apart(float(a.mean()), float(b.mean()), _deviation(a), _deviation(b)) for a, b in errors]
    apart += [
        _apart(float(a.mean()), float(b.mean()), standard_error(a) or 0.0, standard_error(b) or 0.0) for a, b in losses
    ]
    for checkpoint in checkpoints:
        for split in ("measures", "measures_train"):
            mine, again = (getattr(one, split) for one in (entry.record.results[checkpoint], results[checkpoint]))
            if mine.keys() != again.keys():
                raise CheckFailed(f"{entry.folder}: evaluated again it has other measures")
            for name, one in mine.items():
                other = again[name]
                if one.value is None or other.value is None:
                    apart.append(0.0 if one.value == other.value else math.inf)
                else:
                    apart.append(_apart(one.value, other.value, one.standard_error or 0.0, other.standard_error or 0.0))
    return Difference(
        all(np.array_equal(a, b) for a, b in pairs.values()),
        (sum(int((a != b).sum()) for a, b in errors), sum(len(a) for a, _ in errors)),
        max(apart),
    )


def _deviation(bits: np.ndarray) -> float:
    """Standard error of a fraction; that of half an example where it is 0 or 1."""
    p = min(max(float(bits.mean()), 0.5 / len(bits)), 1 - 0.5 / len(bits))
    return math.sqrt(p * (1 - p) / len(bits))


def _apart(a: float, b: float, one: float, other: float) -> float:
    """|a - b| in standard errors of the difference, of which rounding is the least."""
    return abs(a - b) / max(math.hypot(one, other), ROUNDING * max(abs(a), abs(b)), 1e-12)
