"""The numbers that a record holds about one network, each defined once: identifier, labels, unit, per-example outcomes.

    error_i = 1 if test image i is misclassified, clean or under the attack     (clean error: clean only)
    loss_i  = cross-entropy of image i under the attack, in nats

A quantity is the mean of `error_i` or `loss_i` over test or over training images; a gap is the test mean minus the
training mean. A measure brings its own value. Lower is better in every error, loss and gap; lower is flatter in every
ranked measure. Records, the board, reports, the terminal and the site take their names, units and values from here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robflat_bench.registry.components import title

if TYPE_CHECKING:
    from robflat_bench.records.record import Result
    from robflat_bench.registry.registry import Registry

Outcomes = Mapping[str, np.ndarray]
Samples = tuple[NDArray[Any], ...]
Unit = Literal["fraction", "nats", ""]
Name = Literal[
    "worst_case", "clean_error", "robust_error", "robust_loss", "gap_robust_error", "gap_robust_loss", "measure"
]
Split = Literal["test", "train", "test-train"]
SPLITS: tuple[Literal["test", "train"], ...] = ("test", "train")


class Quantity(NamedTuple):
    """One kind of number about one network.

    Attributes
    ----------
    label : heading in the terminal; `{of}` is the title of the attack or measure, `{split}` the examples, `{n}` their
        number.
    column : identifier of its column on the board; `{of}` is the canonical text of the attack or measure.
    heading : heading of that column; `{of}` as in `label`.
    unit : "fraction" in [0,1], "nats", or "" for a measure: see `quantity_unit`.
    outcome : the per-example outcome it is the mean of, "error" or "loss"; "" for a measure.
    """

    label: str
    column: str
    heading: str
    unit: Unit
    outcome: Literal["error", "loss", ""]


MEASURE = "measure:"
BOTH = " and "
"""Joins the attacks of a worst case."""
WORST_CASE = "robust_error"
"""The board's column of the per-example worst case over clean images and all attacks: see `worst_case`."""
QUANTITIES: dict[Name, Quantity] = {
    "worst_case": Quantity(
        "worst case of {of}, {split}, n={n} (boards rank it)", WORST_CASE, "robust error", "fraction", "error"
    ),
    "clean_error": Quantity("clean error, {split}", "clean_error", "clean error", "fraction", "error"),
    "robust_error": Quantity("robust error, {split}: {of}", "attack:{of}", "{of}", "fraction", "error"),
    "robust_loss": Quantity("robust loss, {split} (nats)", "robust_loss", "robust loss, {of}", "nats", "loss"),
    "gap_robust_error": Quantity(
        "gap in robust error (test - train)", "gap_robust_error", "gap in error, {of}", "fraction", "error"
    ),
    "gap_robust_loss": Quantity(
        "gap in robust loss (test - train)", "gap_robust_loss", "gap in loss, {of}", "nats", "loss"
    ),
    "measure": Quantity("{of}, {split}", MEASURE + "{of}", "{of}", "", ""),
}
MEASURES_IN_NATS = ("average-case", "worst-case")
"""Measures whose value is a rise of the robust loss."""


class QuantityValue(NamedTuple):
    """One number about one network.

    Attributes
    ----------
    quantity : key of `QUANTITIES`.
    of : canonical text of the attack or measure, of the worst case those of all attacks; "" for the clean error.
    split : the examples; "test-train" for a gap.
    value : in the quantity's unit; None for a measure without a value.
    standard_error : over examples, of this one network: another seed may differ by more. None where undefined.
    n : number of examples (of a gap: test examples).
    """

    quantity: Name
    of: str
    split: Split
    value: float | None
    standard_error: float | None
    n: int


# ---------------------------------------------------------------------------------------------------------
# Names and units
# ---------------------------------------------------------------------------------------------------------


def column_id(quantity: Name, of: str = "") -> str:
    """The identifier of a quantity's column on the board."""
    return QUANTITIES[quantity].column.format(of=of)


def quantity_unit(quantity: Name, of: str = "") -> Unit:
    """The unit of a quantity; of a measure, "nats" for the flatness of the robust loss, else ""."""
    return "nats" if quantity == "measure" and of.startswith(MEASURES_IN_NATS) else QUANTITIES[quantity].unit


def component_title(registry: Registry, quantity: Name, of: str) -> str:
    """The title of the attack or measure that a quantity is about; of the worst case, the number of its attacks."""
    if quantity == "worst_case":
        count = len(of.split(BOTH))
        return f"{count} attack{'s' * (count > 1)}"
    return title(registry, "measure" if quantity == "measure" else "attack", of) if of else ""


def quantity_label(registry: Registry, found: QuantityValue) -> str:
    """The heading of a value in the terminal: `robust error, test: PGD-20`."""
    of = component_title(registry, found.quantity, found.of)
    return QUANTITIES[found.quantity].label.format(of=of, split=found.split, n=found.n)


def heading(registry: Registry, quantity: Name, of: str) -> str:
    """The heading of a quantity's column on the board: `gap in loss, PGD-20`."""
    return QUANTITIES[quantity].heading.format(of=component_title(registry, quantity, of))


def column_label(registry: Registry, id: str) -> str:
    """A column of the board in words: `robust error`, or the title of a measure."""
    return (
        component_title(registry, "measure", id.removeprefix(MEASURE))
        if id.startswith(MEASURE)
        else id.replace("_", " ")
    )


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


def example_outcomes(outcomes: Outcomes, checkpoint: str, split: str, attack: str, outcome: str) -> NDArray[Any] | None:
    """Per-example errors or losses under one attack, or on clean images.

    Parameters
    ----------
    attack : canonical text of the attack, or "clean".
    outcome : "error" (bool: wrong when clean or when attacked) or "loss" (float, nats).

    Returns
    -------
    [n] over the attacked examples; None where none were attacked.

    Raises
    ------
    KeyError : the examples were attacked, and their clean errors are missing.
    """
    found = outcomes.get(f"{checkpoint}/{split}/{attack}/{outcome}")
    if found is None or outcome == "loss":
        return found
    return found | outcomes[f"{checkpoint}/{split}/clean/error"][: len(found)]


def samples(outcomes: Outcomes, checkpoint: str, quantity: Name, of: str, split: Split) -> Samples:
    """Per-example outcomes whose mean is the quantity: ([n],), of a gap ([n of test], [n of train]); () if missing."""
    if quantity == "worst_case":
        return (worst_case(outcomes, checkpoint, of.split(BOTH)),)
    splits = SPLITS if split == "test-train" else (split,)
    outcome = QUANTITIES[quantity].outcome
    found = [example_outcomes(outcomes, checkpoint, each, of or "clean", outcome) for each in splits]
    known = tuple(array for array in found if array is not None)
    return known if len(known) == len(splits) else ()


def mean(test: NDArray[Any], *train: NDArray[Any]) -> float:
    """Mean over test examples, minus the mean over training examples where there are any; in float64."""
    return float(np.mean(test, dtype=np.float64)) - sum(float(np.mean(each, dtype=np.float64)) for each in train)


def total(outcomes: Outcomes, checkpoint: str, quantity: Name, of: str, split: Split) -> float | None:
    """The value of an error, a loss or a gap; None where its examples were not attacked."""
    found = samples(outcomes, checkpoint, quantity, of, split)
    return mean(*found) if found else None


def worst_case(outcomes: Outcomes, checkpoint: str, attacks: Iterable[str]) -> NDArray[np.bool_]:
    """[n] of the test examples that every attack met: wrong when clean or under any of the attacks."""
    errors = [samples(outcomes, checkpoint, "robust_error", attack, "test")[0] for attack in attacks]
    met = min(map(len, errors))
    worst: NDArray[np.bool_] = np.logical_or.reduce([error[:met] for error in errors])
    return worst


def autoattack_missed(outcomes: Outcomes, checkpoint: str, attacks: Iterable[str]) -> int | None:
    """Number of test examples that another attack broke and AutoAttack (or its APGD tier) did not.

    None unless AutoAttack and another attack were run. Examples that some attack did not see are left out.
    """
    errors: dict[bool, list[NDArray[Any]]] = {True: [], False: []}
    for attack in attacks:
        autoattack = attack.partition("(")[0] == "autoattack"
        errors[autoattack].append(outcomes[f"{checkpoint}/test/{attack}/error"])
    if not all(errors.values()):
        return None
    n = min(len(error) for found in errors.values() for error in found)
    strong, weak = (np.any([error[:n] for error in errors[autoattack]], axis=0) for autoattack in (True, False))
    clean = outcomes[f"{checkpoint}/test/clean/error"][:n]
    return int((weak & ~strong & ~clean).sum())


def standard_error(*means: np.ndarray) -> float | None:
    """Standard error, over examples, of one network's mean or of the difference of two independent means.

    Parameters
    ----------
    means : one array [n] per mean, one value per example.

    Returns
    -------
    In the unit of the values; None where an array has a single example. Another seed may differ by more.

    Notes
    -----
    sqrt(sum_k s_k^2 / n_k), s_k^2 the sample variance of array k.
    """
    if any(len(values) < 2 for values in means):
        return None
    return math.sqrt(sum(float(np.asarray(values, np.float64).var(ddof=1)) / len(values) for values in means))


def result_samples(checkpoint: str, result: Result, outcomes: Outcomes) -> dict[tuple[Name, str, Split], Samples]:
    """(quantity, attack, split) -> `samples` of every error, loss and gap of a result; first the worst case, which the
    board ranks. The first attack is the reference: losses and gaps are under it."""
    attacks = list(result.robust_error)
    reference = attacks[0] if attacks else "no attack"
    rows: list[tuple[Name, str, Split]] = [("worst_case", BOTH.join(attacks), "test")] if attacks else []
    rows += [("clean_error", "", split) for split in SPLITS]
    rows += [("robust_error", attack, split) for attack in attacks for split in SPLITS]
    rows += [("robust_loss", reference, split) for split in SPLITS]
    rows += [("gap_robust_error", reference, "test-train"), ("gap_robust_loss", reference, "test-train")]
    return {row: found for row in rows if (found := samples(outcomes, checkpoint, *row))}


def quantity_values(checkpoint: str, result: Result, outcomes: Outcomes) -> Iterator[QuantityValue]:
    """Every number of a result, with standard errors over the examples of its outcomes."""
    for (quantity, of, split), found in result_samples(checkpoint, result, outcomes).items():
        yield QuantityValue(quantity, of, split, mean(*found), standard_error(*found), len(found[0]))
    for side, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
        for measure, measured in measures.items():
            yield QuantityValue("measure", measure, side, measured.value, measured.standard_error, measured.n)
