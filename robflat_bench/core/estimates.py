"""Numbers of a measurement that follow from its arrays: value, standard error, n and details.

A measure names its estimate in its row, computes its numbers by it, and keeps the arrays. So the checks of a record
compute the numbers again, without torch and without the network.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from robflat_bench.core.interfaces import Measurement

Arrays: TypeAlias = Mapping[str, np.ndarray]
MAX_NUMBERS = 64 * 1024 * 1024
"""Largest array that the arrays of a measure may make together; an honest measure needs fewer numbers."""
Numbers: TypeAlias = dict[str, Any]
"""Some of the fields value, standard_error, n and details of a `Measurement`."""


def standard_deviation(values: np.ndarray) -> float:
    """Standard deviation of values [n]; 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def error_of_mean(values: np.ndarray) -> float | None:
    """Standard error of the mean, std / sqrt(count); None for a single value."""
    return standard_deviation(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _variance_over_draws(values: np.ndarray, correction: np.ndarray | None) -> float:
    """Variance of the mean of values [draws] plus the mean of a correction [m], known at the first m draws:

    var(values) / draws + var(correction) / m + 2 cov(values, correction) / draws
    """
    draws = len(values)
    alone = float(values.var(ddof=1) / draws)
    if correction is None:
        return alone
    m = len(correction)
    together = float(np.cov(values[:m], correction)[0, 1])
    return max(alone + float(correction.var(ddof=1)) / m + 2 * together / draws, 0.0)


def _interaction(one: np.ndarray, other: np.ndarray) -> float:
    """Covariance of two arrays [draws, N] without the effects of draws and of examples."""
    draws, n = one.shape
    rests = [each - each.mean(1, keepdims=True) - each.mean(0) + each.mean() for each in (one, other)]
    return float((rests[0] * rests[1]).sum() / max((draws - 1) * (n - 1), 1))


def crossed_errors(difference: np.ndarray, shortfall: np.ndarray | None = None) -> dict[str, float]:
    """Standard errors of the mean of values [draws, N], where draws and examples are both random and crossed.

    The variance over draws and the variance over examples each contain the interaction once; the combined
    standard error counts it once. shortfall: [m, N] at the first m draws, whose mean over them is part of the values.
    """
    draws, n = difference.shape
    correction = None if shortfall is None else shortfall.mean(1)
    over_draws = _variance_over_draws(difference.mean(1), correction)
    over_examples = difference.mean(0).var(ddof=1) / n if n > 1 else 0.0
    interaction = _interaction(difference, difference) / (draws * n)
    if shortfall is not None:
        m = len(shortfall)
        interaction += _interaction(shortfall, shortfall) / (m * n)
        interaction += 2 * _interaction(difference[:m], shortfall) / (draws * n)
    combined = max(over_draws + over_examples - interaction, over_draws, over_examples)
    return {
        "standard_error": math.sqrt(combined),
        "standard_error_draws": math.sqrt(over_draws),
        "standard_error_examples": math.sqrt(over_examples),
    }


def over_examples(arrays: Arrays) -> Numbers:
    """The mean of `per_example` [N]; nothing but the examples counts as random."""
    values = arrays["per_example"]
    return {"value": float(values.mean()), "standard_error": error_of_mean(values), "n": len(values)}


def over_changed(arrays: Arrays) -> Numbers:
    """The mean of `thickness` [N] where it is not NaN; 0 where all are."""
    thickness = arrays["thickness"]
    changed = thickness[~np.isnan(thickness)]
    value = float(changed.mean()) if len(changed) else 0.0
    details = {"unchanged": float(len(thickness) - len(changed))}
    return {"value": value, "standard_error": error_of_mean(changed), "n": len(changed), "details": details}


def over_draws_and_examples(arrays: Arrays) -> Numbers:
    """The mean rise of `losses` [draws, N] over `reference` [N]; draws and examples are random and crossed.

    `shortfall` [m, N], if there: its mean over the first m draws is part of the losses.
    """
    losses, reference = arrays["losses"], arrays["reference"]
    difference = losses - reference
    errors, value, before = (
        crossed_errors(difference, arrays.get("shortfall")),
        float(difference.mean()),
        float(reference.mean()),
    )
    relative = {"relative": value / before} if before > 0 else {}
    return {
        "value": value,
        "standard_error": errors.pop("standard_error"),
        "n": len(reference),
        "details": {"loss": before, "loss_moved": float(losses.mean()), **errors, **relative},
    }


def over_batches(arrays: Arrays) -> Numbers:
    """The mean of `per_example` [n] in batches of equal size with the means `per_batch`; batches are random."""
    each, values = arrays["per_batch"], arrays["per_example"]
    if not np.allclose(values.reshape(len(each), -1).mean(1), each, rtol=1e-9, atol=1e-12):
        raise ValueError("`per_batch` does not follow from `per_example`")
    details = {"batches": float(len(each)), "m": float(len(values) // len(each))}
    return {"value": float(values.mean()), "standard_error": error_of_mean(each), "n": len(values), "details": details}


def over_directions(arrays: Arrays) -> Numbers:
    """The mean of `radii` [directions, 2]; directions are random."""
    radii, reference = arrays["radii"], arrays["reference"]
    details = {"loss": float(reference.mean())}
    error = error_of_mean(radii.mean(1))
    return {"value": float(radii.mean()), "standard_error": error, "n": len(reference), "details": details}


def over_probes(arrays: Arrays) -> Numbers:
    """The mean of `probes` [probes]; probes are random."""
    probes = arrays["probes"]
    return {"value": float(probes.mean()), "standard_error": error_of_mean(probes)}


def jackknife(arrays: Arrays) -> Numbers:
    """The jackknife error of a value from `leave_one_group_out` [groups], the value without each group."""
    without = arrays["leave_one_group_out"]
    groups = len(without)
    return {"standard_error": math.sqrt((groups - 1) * without.var()) if groups > 1 else None}


def relative_rise(arrays: Arrays) -> Numbers:
    """100 (mean loss - L) / (1 + L), L the mean of `reference` [N]; a quotient, linearised in the mean losses."""
    losses, reference = arrays["losses"], arrays["reference"]
    scale = 1 + reference.mean()
    values = 100 * (losses - reference) / scale
    value = float(values.mean())
    linearised = values - value * (reference - reference.mean()) / scale
    return {"value": value, "standard_error": error_of_mean(linearised), "n": len(reference)}


def free_energy(arrays: Arrays) -> Numbers:
    """-log mean_k exp(-mean loss of draw k), of `losses` [draws, N]; draws and examples are random.

    `shortfall` [m, N], if there: its mean over the first m draws is part of the losses.
    """
    losses, reference = arrays["losses"], arrays["reference"]
    means = losses.mean(1)
    weights = np.exp(means.min() - means)  # e_k, relative to the lowest loss so that nothing underflows
    value, loss = float(means.min() - np.log(weights.mean())), float(reference.mean())
    shortfall = arrays.get("shortfall")
    correction = None if shortfall is None else shortfall.mean(1)
    draws = math.sqrt(_variance_over_draws(-weights / weights.mean(), correction))
    examples = error_of_mean(weights @ losses / weights.sum()) or 0.0
    details = {
        "effective_sample_size": float(weights.sum() ** 2 / (weights**2).sum()),
        "loss": loss,
        "rise": value - loss,
        "standard_error_draws": draws,
        "standard_error_examples": examples,
    }
    return {"value": value, "standard_error": math.hypot(draws, examples), "n": len(reference), "details": details}


ESTIMATES: Mapping[str, Callable[[Arrays], Numbers]] = {
    "examples": over_examples,
    "changed examples": over_changed,
    "draws and examples": over_draws_and_examples,
    "batches": over_batches,
    "directions": over_directions,
    "probes": over_probes,
    "groups": jackknife,
    "examples of a quotient": relative_rise,
    "draws and examples of a free energy": free_energy,
}
"""What is random in a measure -> the function that computes its numbers from its arrays."""
EXAMPLES, WHOLE_BATCHES = "examples", "examples in whole batches"
AXES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "examples": {"per_example": (EXAMPLES,)},
    "changed examples": {"thickness": (EXAMPLES,)},
    "draws and examples": {"losses": ("draws", EXAMPLES), "reference": (EXAMPLES,)},
    "batches": {"per_example": (WHOLE_BATCHES,)},
    "directions": {"radii": ("directions",), "reference": (EXAMPLES,)},
    "probes": {"probes": ("probes",)},
    "examples of a quotient": {"reference": (EXAMPLES,)},
    "draws and examples of a free energy": {"losses": ("draws", EXAMPLES), "reference": (EXAMPLES,)},
}
"""Estimate -> array -> what its first axes count: the examples, or a parameter of the measure by its name."""


def estimated(estimate: str, arrays: Arrays, details: Mapping[str, float] | None = None) -> Measurement:
    """The measurement with these arrays. details: further numbers, which do not follow from arrays."""
    numbers = ESTIMATES[estimate](arrays)
    return Measurement(**{**numbers, "details": {**numbers.get("details", {}), **(details or {})}}, arrays=arrays)


def contradictions(estimate: str, arrays: Arrays, stated: Mapping[str, float | None]) -> list[str]:
    """How stated numbers differ from what the arrays give, one sentence each.

    Parameters
    ----------
    estimate : a key of `ESTIMATES`.
    arrays : the arrays of one measurement; they may come from anyone.
    stated : value, standard_error, n and details, by name.
    """
    if _largest_sum(arrays) > MAX_NUMBERS:
        return ["its arrays have shapes that do not belong together"]
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # NaN agrees with nothing
            numbers = ESTIMATES[estimate](arrays)
    except (LookupError, ValueError, ArithmeticError, TypeError) as error:
        return [f"its arrays give no value: {type(error).__name__} {error}"]
    expected = numbers.pop("details", {}) | numbers
    return [
        f"its {name} is {stated.get(name)!r}, its arrays give {number!r}"
        for name, number in expected.items()
        if not _close(stated.get(name), number)
    ]


def counted_examples(examples: int, params: Mapping[str, Any]) -> dict[str, int]:
    """What `miscounted` takes for a measure with these parameters that was to read so many examples, at least one.

    Whole batches are of `m` examples, where the measure has such a parameter.
    """
    m = params.get("m")
    size = min(m, examples) if isinstance(m, int) and m > 0 else 1
    return {EXAMPLES: examples, WHOLE_BATCHES: examples - examples % size}


def miscounted(estimate: str, arrays: Arrays, counts: Mapping[str, Any]) -> Iterator[str]:
    """Arrays of a measurement that have other sizes than they ought to have, one sentence each.

    Parameters
    ----------
    estimate : a key of `ESTIMATES`; others have no sizes.
    arrays : the arrays of one measurement; they may come from anyone.
    counts : the measure's parameters, `counted_examples`, or both; an axis of `AXES` that is not there has any length.
    """
    for name, axes in AXES.get(estimate, {}).items():
        shape = arrays[name].shape if name in arrays else ()
        for place, axis in enumerate(axes):
            size = shape[place] if place < len(shape) else 0
            if size != counts.get(axis, size):
                yield f"its array {name} is of {size} {axis}, not of {counts[axis]}"


def _largest_sum(arrays: Arrays) -> int:
    """The most numbers that a sum of two arrays has: [n, 1] and [m] are small, their sum [n, m] is not."""
    sizes = [0]
    for one, other in combinations([array.shape for array in arrays.values()], 2):
        with suppress(ValueError):  # these two have no sum
            sizes.append(math.prod(np.broadcast_shapes(one, other)))
    return max(sizes)


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
