"""Whether a second look at a network agrees with an entry, image by image.

Other machines round differently, so agreement does not mean equality. A second look at the same weights changes few
images. A retrained network is another network once a single bit differs; then the images are paired, and the numbers
differ by the chance of training. How far apart that puts their error rates, the other rows of the board say, whose
seeds differ by nothing else: at the ranked checkpoint, and no further than that at a best one of the same epoch. No
spread is the entry's: its own standard errors and the other seeds of its row count for nothing.
The bounds are measured: `benchmarks/verification_rates.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from robflat_bench.analysis.variance import variance
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.model import RANKED_AT
from robflat_bench.records.quantities import SPLITS, Outcomes, standard_error
from robflat_bench.records.record import Epoch, Flags, MeasureResult, Result, RunRecord


class Bound(NamedTuple):
    """How far two honest looks are apart.

    Attributes
    ----------
    images, losses, measures : largest fraction of the images of one array with another error, another loss, another
        value of a measure; one image always may. An ascent of the weights amplifies rounding, so measures have more.
    unrelated : an error may also differ on this share of the images on which two networks would differ that have the
        second look's error rate and nothing else in common.
    balance : largest |b - c| / sqrt(b + c), b and c the numbers of images that only one look finds wrong (McNemar).
    training : largest |b - c| / sqrt(b + c + 2 (n s)^2), n the number of images, where the standard deviation s of the
        error rate over trainings is known; then `balance` does not count.
    image : largest difference of the loss of one image, in standard deviations over images.
    mean : largest difference of the mean of losses or of a measure, in standard errors, beyond which `factor` decides.
    factor : largest quotient of two means.
    spread : largest quotient of two standard errors, or of the image passes of a measure.
    flags : largest difference of a flag, as a fraction of the images.
    history : largest mean difference of a column of the history, relative to its mean or to `LEVEL`.
    """

    images: float
    losses: float
    measures: float
    unrelated: float
    balance: float
    training: float
    image: float
    mean: float
    factor: float
    spread: float
    flags: float
    history: float


SAME_WEIGHTS = Bound(
    images=0.005,
    losses=0.02,
    measures=0.5,
    unrelated=0.0,
    balance=math.inf,
    training=math.inf,
    image=0.5,
    mean=0.25,
    factor=1.0,
    spread=1.1,
    flags=0.005,
    history=0.01,
)
RETRAINED = Bound(
    images=0.3,
    losses=1.0,
    measures=1.0,
    unrelated=0.8,
    balance=4.0,
    training=3.0,
    image=16.0,
    mean=4.0,
    factor=2.0,
    spread=4.0,
    flags=0.05,
    history=0.4,
)
LEVEL = 0.25
"""A column of the history with a lower mean, in nats or as a fraction, is compared as if this were its mean."""
ROUNDING = 1e-5
"""Relative difference of float32 sums in another order."""
SAME_LOSS = 1e-3
"""Losses of one image that differ by less, relative to 1 + loss, count as equal."""


class Difference(NamedTuple):
    """One comparison. mean: whether it is the difference of a mean in standard errors."""

    what: str
    size: float
    limit: float
    mean: bool = False


class Disagreement(NamedTuple):
    """How far two evaluations are apart; the fields are those of `Verification`."""

    checkpoints: tuple[str, ...]
    identical: bool
    flags: tuple[int, int]
    deviation: float


def agreement(
    entry: RunRecord,
    entry_outcomes: Outcomes,
    again: Mapping[Any, Result],
    outcomes: Outcomes,
    training: Mapping[str, float],
) -> Disagreement:
    """How far a second look at some checkpoints is from the entry.

    Parameters
    ----------
    training : the `training_spread` of the entry's board; other weights may differ by it.

    Raises
    ------
    CheckFailed
        It is farther than the bounds allow, or one has arrays or measures that the other lacks.
    """
    found: list[Difference] = []
    for checkpoint in again:
        mine = entry.results[checkpoint]
        same = mine.weights == again[checkpoint].weights
        bound, spread = (SAME_WEIGHTS, {}) if same else (RETRAINED, training)
        found += _array_differences(checkpoint, entry_outcomes, outcomes, bound, spread)
        images = len(outcomes[f"{checkpoint}/test/clean/error"])
        found += _result_differences(checkpoint, mine, again[checkpoint], bound, images)
    raise_if_apart(found)
    pairs = [(entry_outcomes[name], outcomes[name]) for name in _compared(again, entry_outcomes)]
    errors = [pair for pair in pairs if pair[0].dtype.kind == "b"]
    return Disagreement(
        tuple(again),
        all(np.array_equal(a, b) for a, b in pairs),
        (sum(int((a != b).sum()) for a, b in errors), sum(len(a) for a, _ in errors)),
        max((one.size for one in found if one.mean), default=0.0),
    )


def error_rates(outcomes: Outcomes) -> dict[str, float]:
    """Every error rate of the ranked checkpoint, by split and attack."""
    names = (name for name in _compared([RANKED_AT], outcomes) if name.endswith("/error"))
    return {_split_and_attack(name): float(outcomes[name].mean()) for name in names}


def _split_and_attack(name: str) -> str:
    """The name of an array of outcomes, without its checkpoint."""
    return name.partition("/")[2]


def training_spread(rows: Iterable[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """The standard deviation of each error rate over trainings of one spec, from several rows.

    It is the median over rows with two seeds or more, since one noisy or invented row must not widen it: the variance
    of a row with d degrees of freedom, relative to the median of chi^2_d / d.

    rows: the `error_rates` of each row's seeds, under one protocol.
    """
    from scipy.stats import chi2

    variances = defaultdict[str, list[float]](list)
    for seeds in rows:
        d = len(seeds) - 1
        for name in seeds[0] if d else ():
            found = variance(np.array([seed[name] for seed in seeds]))
            variances[name].append(found * d / float(chi2.median(d)))
    return {name: math.sqrt(median(each)) for name, each in variances.items()}


def raise_if_apart(found: Sequence[Difference]) -> None:
    """CheckFailed with the first difference beyond its limit. A size that is not a number is beyond."""
    beyond = [one for one in found if not one.size <= one.limit]
    if beyond:
        what, size, limit, _ = beyond[0]
        more = f"; so do {len(beyond) - 1} other comparisons" if len(beyond) > 1 else ""
        raise CheckFailed(f"does not agree: {what} differs by {size:.3g} (at most {limit:.3g} may){more}")


# ---------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------


def _compared(checkpoints: Iterable[str], outcomes: Outcomes) -> list[str]:
    """The arrays with one number for each image: errors, losses, values of a measure."""
    totals = tuple(f"{checkpoint}/{split}/" for checkpoint in checkpoints for split in SPLITS)
    measures = tuple(f"{checkpoint}/measure" for checkpoint in checkpoints)
    return [
        name
        for name in outcomes
        if name.startswith(totals) or (name.startswith(measures) and name.endswith("/per_example"))
    ]


def _array_differences(
    checkpoint: str, mine: Outcomes, again: Outcomes, bound: Bound, spread: Mapping[str, float]
) -> Iterator[Difference]:
    names, others = (_compared([checkpoint], each) for each in (mine, again))
    if {*names} != {*others} or any(mine[name].shape != again[name].shape for name in names):
        raise CheckFailed("the new evaluation has other outcomes than the entry")
    for name in names:
        if name.endswith("/error"):
            yield from _error_differences(
                name, mine[name], again[name], bound, spread.get(_split_and_attack(name), 0.0)
            )
        else:
            yield from _loss_differences(name, np.asarray(mine[name], float), np.asarray(again[name], float), bound)


def _error_differences(
    name: str, mine: np.ndarray, again: np.ndarray, bound: Bound, training: float
) -> Iterator[Difference]:
    """Errors [n], bool. Of their mean only the size is reported: the images decide.

    training: spread of the mean over trainings, 0 if unknown.
    """
    only_mine, only_again, n = int((mine & ~again).sum()), int((again & ~mine).sum()), len(mine)
    differing, one, other = only_mine + only_again, float(mine.mean()), float(again.mean())
    limit = max(1.0, bound.images * n, bound.unrelated * n * 2 * other * (1 - other))
    yield Difference(f"the number of images in {name}", differing, limit)
    balance = abs(only_mine - only_again) / math.sqrt((differing or 1) + 2 * (n * training) ** 2)
    limit = bound.training if training else bound.balance
    yield Difference(f"{name}, paired over images and in standard deviations,", balance, limit)
    size = abs(one - other) / _rate_error(again)
    yield Difference(f"the mean of {name}, in standard errors,", size, math.inf, mean=True)


def _loss_differences(name: str, mine: np.ndarray, again: np.ndarray, bound: Bound) -> Iterator[Difference]:
    """Losses or values of a measure [n], float64. The mean of a measure's values is compared as the measure's value."""
    difference = np.abs(mine - again)
    differing = int((difference > SAME_LOSS * (1 + np.abs(again))).sum())
    share = bound.losses if name.endswith("/loss") else bound.measures
    yield Difference(f"the number of images in {name}", differing, max(1.0, share * len(mine)))
    spread = float(again.std(ddof=1)) if len(again) > 1 else 0.0
    single = float(difference.max()) / max(spread, SAME_LOSS * (1 + float(np.abs(again).max())))
    yield Difference(f"an image of {name}, in standard deviations,", single, bound.image)
    if name.endswith("/loss"):
        yield _apart(name, float(mine.mean()), float(again.mean()), standard_error(again), bound)


def _rate_error(bits: np.ndarray) -> float:
    """Standard error of an error rate; of half an example where the rate is 0 or 1."""
    p = min(max(float(bits.mean()), 0.5 / len(bits)), 1 - 0.5 / len(bits))
    return math.sqrt(p * (1 - p) / len(bits))


def _apart(name: str, mine: float, again: float, error: float | None, bound: Bound) -> Difference:
    """|mine - again| in standard errors of the second look, at least those of rounding. Within the factor, any
    number of standard errors is."""
    size = abs(mine - again) / max(error or 0.0, ROUNDING * abs(again), 1e-12)
    limit = max(bound.mean, size) if 1 < _quotient(mine, again) <= bound.factor else bound.mean
    return Difference(f"the mean of {name}, in standard errors,", size, limit, mean=True)


def _quotient(a: float, b: float) -> float:
    """The larger of two positive numbers by the smaller; 1 for equal numbers, else infinity."""
    return 1.0 if a == b else max(a, b) / min(a, b) if min(a, b) > 0 else math.inf


# ---------------------------------------------------------------------------------------------------------
# Results, budget and history
# ---------------------------------------------------------------------------------------------------------


def _result_differences(
    checkpoint: str, mine: Result, again: Result, bound: Bound, images: int
) -> Iterator[Difference]:
    """Measures and flags. images: number of test images."""
    for split, found, others in zip(
        SPLITS, (mine.measures, mine.measures_train), (again.measures, again.measures_train), strict=True
    ):
        if found.keys() != others.keys():
            raise CheckFailed("the new evaluation has other measures than the entry")
        for name in found:
            yield from _measure_differences(f"{checkpoint}: {name} on {split}", found[name], others[name], bound)
    for flag in Flags.model_fields:
        ours, theirs = (getattr(one.flags, flag) for one in (mine, again))
        yield _flag_difference(f"{checkpoint}: the flag {flag}", ours, theirs, bound, images)


def _measure_differences(name: str, mine: MeasureResult, again: MeasureResult, bound: Bound) -> Iterator[Difference]:
    one, other = ((each.value is None, each.standard_error is None, bool(each.reason)) for each in (mine, again))
    yield Difference(f"whether {name} has a value, an error and a reason", float(one != other), 0.0)
    if mine.value is not None and again.value is not None:
        yield _apart(name, mine.value, again.value, again.standard_error, bound)
    if mine.standard_error is not None and again.standard_error is not None:
        quotient = _quotient(mine.standard_error, again.standard_error)
        yield Difference(f"the standard error of {name}, as a quotient,", quotient, bound.spread)
    yield Difference(f"n of {name}", abs(mine.n - again.n), bound.images * again.n)
    if mine.forward or mine.backward:  # a record of schema version 1 holds none
        for ours, theirs in ((mine.forward, again.forward), (mine.backward, again.backward)):
            yield Difference(f"the image passes of {name}, as a quotient,", _quotient(ours, theirs), bound.spread)


def _flag_difference(name: str, mine: float | None, again: float | None, bound: Bound, images: int) -> Difference:
    """A flag is a fraction of images, a number of images, or true or false."""
    if mine is None or again is None or isinstance(again, bool):
        return Difference(name, float(mine != again), 0.0)
    limit = max(1.0, bound.flags * images) if isinstance(again, int) else bound.flags
    return Difference(name, abs(mine - again), limit)


def same_training(mine: RunRecord, again: RunRecord) -> bool:
    """Whether two trainings ended with the same weights: then every epoch before was the same, too."""
    return mine.results[RANKED_AT].weights == again.results[RANKED_AT].weights


def training_agreement(mine: RunRecord, again: RunRecord) -> None:
    """CheckFailed unless two trainings of one spec agree in their budget and history."""
    bound = SAME_WEIGHTS if same_training(mine, again) else RETRAINED
    found = [
        Difference(f"the number of {name} passes", abs(getattr(mine.budget, name) - getattr(again.budget, name)), 0.0)
        for name in ("forward", "backward")
    ]
    for column in Epoch.model_fields:
        if column not in ("epoch", "seconds"):
            ours, theirs = ([getattr(row, column) for row in one.history] for one in (mine, again))
            found.append(_column_difference(column, ours, theirs, bound))
    raise_if_apart(found)


def _column_difference(name: str, mine: list[float | None], again: list[float | None], bound: Bound) -> Difference:
    """The mean difference of a column of the history over the epochs that have a value."""
    if [value is None for value in mine] != [value is None for value in again]:
        return Difference(f"the epochs of {name}", math.inf, 0.0)
    one, other = (np.array([value for value in each if value is not None]) for each in (mine, again))
    limit, level = (ROUNDING, 1e-12) if name == "learning_rate" else (bound.history, LEVEL)
    apart = float(np.abs(one - other).mean() / max(np.abs(other).mean(), level))
    return Difference(f"{name} of the history, relative,", apart, limit)
