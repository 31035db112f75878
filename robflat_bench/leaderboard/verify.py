"""Verification of an entry in a fresh process: from its weights (re-evaluated) or from its spec (reproduced).

Other machines round differently, so agreement does not mean equality. A re-evaluation may differ in 0.5 % of the
examples' outcomes and by one standard error in a loss or a measure. A retrained network becomes another network once a
single bit differs, so its error rates, losses and measures may differ by three standard errors.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from robflat_bench.config.protocol import Checkpoint, load
from robflat_bench.core import CheckFailed, RunFailed
from robflat_bench.leaderboard.child import run_child
from robflat_bench.leaderboard.entries import Submission, Verification
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.registry.registry import Registry
from robflat_bench.results.quantities import Outcomes, standard_error
from robflat_bench.results.record import EvaluationRecord, Result, RunRecord
from robflat_bench.results.store import RunFolder, read_outcomes, read_record

Granted = Literal["re-evaluated", "reproduced"]


class Disagreement(NamedTuple):
    """How far two evaluations are apart; the fields are those of `Verification`."""

    identical: bool
    flags: tuple[int, int]
    deviation: float


class Bound(NamedTuple):
    """flags: largest fraction of outcomes that may differ. deviation: largest difference in standard errors."""

    flags: float
    deviation: float


ROUNDING = 1e-5
"""Relative difference of float32 sums in another order."""
BOUNDS: dict[Granted, Bound] = {"re-evaluated": Bound(0.005, 1.0), "reproduced": Bound(1.0, 3.0)}


def reevaluate(entry: Submission, weights: Path, options: list[str], today: str) -> Verification:
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
        model = [str(file), "--protocol", spec.protocol.name, "--set", f"recipe.activation={spec.recipe.activation}"]
        _harness("evaluate", *model, "--checkpoint", names[0], "--store", store, *options)
        path = next(Path(store).glob("*/external/*/evaluations/*.json"))
        again: EvaluationRecord = read_record(path, EvaluationRecord)
        outcomes = read_outcomes(again, path.with_suffix(".npz"))
    return _granted(entry, "re-evaluated", again, outcomes, names[:1], today)


def reproduce(entry: Submission, registry: Registry, options: list[str], today: str) -> Verification:
    """Train and evaluate a run of the same spec. options, today: as in `reevaluate`, of `robflat-bench run`.

    Raises CheckFailed where the results do not agree, or this version makes another run of the spec.
    """
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
        again, outcomes = run.evidence()
    return _granted(entry, "reproduced", again, outcomes, [*again.results], today)


def _harness(*arguments: str) -> None:
    """Run robflat-bench in a process of its own."""
    if code := run_child(*arguments):
        raise RunFailed(f"`robflat-bench {arguments[0]}` ended with {code}; its last lines are above")


def _granted(
    entry: Submission,
    tier: Granted,
    again: RunRecord | EvaluationRecord,
    outcomes: Outcomes,
    checkpoints: Sequence[Checkpoint],
    today: str,
) -> Verification:
    """The verification, where the results agree within `BOUNDS`."""
    results = {str(name): result for name, result in again.results.items()}
    found, bound = disagreement(entry, results, outcomes, checkpoints), BOUNDS[tier]
    differing, compared = found.flags
    if differing > bound.flags * compared or found.deviation > bound.deviation:
        raise CheckFailed(
            f"{entry.folder}: does not agree: {differing} of {compared} outcomes differ (at most {bound.flags:.1%} "
            f"may), and a number by {found.deviation:.2f} standard errors (at most {bound.deviation:g})"
        )
    return Verification(
        tier=tier,
        date=today,
        checkpoints=tuple(checkpoints),
        **found._asdict(),
        environment=again.environment,
        provenance=again.provenance,
    )


def disagreement(
    entry: Submission, results: Mapping[str, Result], outcomes: Outcomes, checkpoints: Sequence[Checkpoint]
) -> Disagreement:
    """How far another evaluation of these checkpoints is from the entry's.

    Raises CheckFailed where one has arrays or measures that the other lacks.
    """
    names = [name for name in entry.outcomes if name.partition("/")[0] in checkpoints]
    if any(name not in outcomes or outcomes[name].shape != entry.outcomes[name].shape for name in names):
        raise CheckFailed(f"{entry.folder}: the new evaluation has other outcomes than the entry")
    pairs = {name: (entry.outcomes[name], outcomes[name]) for name in names}
    errors = [pair for name, pair in pairs.items() if name.endswith("/error")]
    losses = [pair for name, pair in pairs.items() if name.endswith("/loss")]
    apart = [_apart(*((float(array.mean()), _rate_error(array)) for array in pair)) for pair in errors]
    apart += [_apart(*((float(array.mean()), standard_error(array)) for array in pair)) for pair in losses]
    for checkpoint in checkpoints:
        for field in ("measures", "measures_train"):
            mine, again = (getattr(one, field) for one in (entry.record.results[checkpoint], results[checkpoint]))
            if mine.keys() != again.keys():
                raise CheckFailed(f"{entry.folder}: the new evaluation has other measures than the entry")
            found = ((mine[name], again[name]) for name in mine)
            apart += [_apart(*((one.value, one.standard_error) for one in pair)) for pair in found]
    return Disagreement(
        all(np.array_equal(a, b) for a, b in pairs.values()),
        (sum(int((a != b).sum()) for a, b in errors), sum(len(a) for a, _ in errors)),
        max(apart),
    )


def _rate_error(bits: np.ndarray) -> float:
    """Standard error of an error rate; of half an example where the rate is 0 or 1."""
    p = min(max(float(bits.mean()), 0.5 / len(bits)), 1 - 0.5 / len(bits))
    return math.sqrt(p * (1 - p) / len(bits))


def _apart(one: tuple[float | None, float | None], other: tuple[float | None, float | None]) -> float:
    """|a - b| in standard errors of the difference, at least those of rounding. one, other: value and standard error.
    A value that only one has is infinitely far."""
    (a, error_a), (b, error_b) = one, other
    if a is None or b is None:
        return 0.0 if a == b else math.inf
    return abs(a - b) / max(math.hypot(error_a or 0.0, error_b or 0.0), ROUNDING * max(abs(a), abs(b)), 1e-12)
