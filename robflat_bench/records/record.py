"""Records: the JSON document that a finished run or an added evaluation leaves beside its `outcomes.npz`.

Errors are fractions in [0,1], losses are in nats. `outcomes.npz` keeps the errors and losses of every example; `check`
recomputes every total from them, and a record that disagrees with its own outcomes is refused. The numbers of a record
are named and read in `results/quantities.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from robflat_bench.config.protocol import Digest
from robflat_bench.config.spec import DatasetRef, ProtocolRef, RunSpec
from robflat_bench.core import Strict
from robflat_bench.records.quantities import SPLITS, Name, Outcomes, autoattack_missed, mean, total

MAX_BYTES = 8 * 1024 * 1024
"""Size limit of a record file."""
NUMERIC_KINDS = "biuf"
"""Kinds of dtype that outcomes may have: bool, integers and floats."""
LARGEST = 1e100
"""Largest number of a record: sums and squares of such numbers are finite."""
Bounded = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
"""Losses, standard errors, seconds."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class TestTrain(Strict):
    """One number on test examples and, where the protocol asks for it, on training examples."""

    __test__ = False
    test: NonNegative
    train: NonNegative | None = None


class Gap(Strict):
    """Test minus training value under the reference attack; None where no training example was attacked."""

    robust_error: Bounded | None
    robust_loss: Bounded | None


class MeasureResult(Strict):
    """The value of one measure.

    Attributes
    ----------
    value : None where the measure has no value here; `reason` says why.
    standard_error : over examples or draws, as the measure defines it; None where it defines none.
    n : number of examples.
    seconds : wall-clock time.
    forward, backward : image passes through the network.
    details : further numbers of the measure.
    """

    value: Bounded | None
    standard_error: NonNegative | None
    n: Count
    seconds: NonNegative
    forward: Count = 0
    backward: Count = 0
    reason: str = ""
    details: dict[str, Bounded] = Field(default_factory=dict)


class Flags(Strict):
    """Reasons to distrust an attack.

    Attributes
    ----------
    zero_gradients : fraction of test examples whose input gradient is exactly zero.
    nonfinite_gradients : fraction of test examples whose input gradient holds NaN or infinity; operations without a
        finite derivative counted as constant in attacks.
    random_forward : two forward passes of one batch differ.
    pgd_beats_autoattack : number of examples broken by another attack and not by AutoAttack; None if not both ran.
    square_beats_white_box : number of examples broken by Square alone; None if it did not run beside another attack.
    """

    zero_gradients: Fraction
    nonfinite_gradients: Fraction = 0.0
    random_forward: bool
    pgd_beats_autoattack: Count | None = None
    square_beats_white_box: Count | None = None

    def reasons(self, examples: int = 0) -> tuple[str, ...]:
        """The raised flags in words. Counts of at most 1 % of `examples` are left out; gradients that are not finite
        are named at any share."""
        few = 0.01 * examples
        beaten = self.pgd_beats_autoattack or 0
        raised = {
            f"zero gradients on {self.zero_gradients:.1%}": self.zero_gradients > 0.01,
            f"gradients not finite on {100 * self.nonfinite_gradients:.3g}%": self.nonfinite_gradients > 0,
            "random forward": self.random_forward,
            f"another attack broke {beaten} that AutoAttack did not": beaten > few,
            f"only Square broke {self.square_beats_white_box}": (self.square_beats_white_box or 0) > few,
        }
        return tuple(reason for reason, holds in raised.items() if holds)


class Result(Strict):
    """The evaluation of one checkpoint.

    Attributes
    ----------
    epoch : counted from 0; None for a model without a run.
    weights : SHA-256 of the weights.
    robust_error : attack -> fraction wrong when clean or when attacked. The first attack is the reference attack.
    robust_loss, gap : under the reference attack.
    measures, measures_train : canonical text -> value, on test and on training examples.
    seconds : wall-clock time by attack and for the clean images.
    forward, backward : image passes of all attacks and measures. The work that measures share counts once here, and in
        each of those measures.
    """

    epoch: Count | None
    weights: str
    clean_error: Fraction
    clean_error_train: Fraction | None
    robust_error: dict[str, TestTrain]
    robust_loss: TestTrain | None
    gap: Gap
    measures: dict[str, MeasureResult]
    measures_train: dict[str, MeasureResult] = Field(default_factory=dict)
    flags: Flags
    seconds: dict[str, NonNegative]
    forward: Count = 0
    backward: Count = 0


class Budget(Strict):
    """Cost of a run: image passes of training, seconds of the whole run and of its evaluation, peak memory."""

    forward: Count
    backward: Count
    seconds: NonNegative
    evaluation_seconds: NonNegative
    peak_memory_bytes: Count


class Epoch(Strict):
    """One line of the history: means over the epoch's steps, then the check on held-out examples (None between
    checks)."""

    epoch: Count
    learning_rate: NonNegative
    train_loss: Bounded
    heldout_clean_error: Fraction | None
    heldout_robust_error: Fraction | None
    heldout_robust_loss: NonNegative | None
    seconds: NonNegative


class Versioned(Strict):
    """A document of schema version 2; a document of version 1 is read as version 2.

    Version 2 added measures on training examples, and each measure's image passes and reason for having no value.
    These fields are empty in a record of version 1.
    """

    schema_version: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, data: Any) -> Any:
        former = isinstance(data, dict) and data.get("schema_version") == 1
        return {**data, "schema_version": 2} if former else data


class RunRecord(Versioned):
    """A finished run. `outcomes` is the SHA-256 of its `outcomes.npz`."""

    key: str
    spec: RunSpec
    protocol: ProtocolRef
    method: str
    seed: int
    dataset: DatasetRef
    results: dict[Literal["best", "last"], Result]
    budget: Budget
    extra_data: bool = False
    history: tuple[Epoch, ...]
    outcomes: Digest
    environment: dict[str, Any]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _agrees_with_its_spec(self) -> RunRecord:
        if missing := {"best", "last"} - {*self.results}:
            raise ValueError(f"its results lack the checkpoint {min(missing)}")
        for name in ("key", "protocol", "method", "seed", "dataset"):
            if getattr(self, name) != getattr(self.spec, name):
                raise ValueError(f"its {name} differs from the {name} in its spec")
        if self.extra_data != bool(self.spec.extra_data):
            raise ValueError("its extra_data differs from the extra_data in its spec")
        return self

    @model_validator(mode="after")
    def _has_the_history_of_its_spec(self) -> RunRecord:
        epochs = self.spec.recipe.epochs
        if [row.epoch for row in self.history] != [*range(epochs)]:
            raise ValueError(f"its history is not one line for each of the {epochs} epochs of its recipe, in order")
        checked = [
            (row.heldout_robust_error, row.heldout_robust_loss, row.epoch)
            for row in self.history
            if row.heldout_robust_error is not None and row.heldout_robust_loss is not None
        ]
        epoch_of = {"best": min(checked, default=(0, 0, -1))[-1], "last": epochs - 1}
        for name, result in self.results.items():
            if result.epoch != epoch_of[name]:
                raise ValueError(f"its {name} is of epoch {result.epoch}, its history says {epoch_of[name]}")
        return self


class EvaluationRecord(Versioned):
    """What `evaluate` adds to a trained model. `outcomes` is the SHA-256 of its per-example outcomes."""

    key: str
    model: str
    protocol: ProtocolRef
    dataset: DatasetRef
    results: dict[str, Result]
    outcomes: Digest
    environment: dict[str, Any]
    provenance: dict[str, Any]


def totals(outcomes: Outcomes, checkpoint: str, attacks: Sequence[str]) -> dict[str, Any]:
    """The fields of a `Result` that follow from its outcomes.

    Parameters
    ----------
    attacks : canonical texts; the first is the reference attack of losses and gaps.

    Raises
    ------
    KeyError : the clean errors are missing.
    """
    reference = attacks[0] if attacks else "no attack"

    def pair(quantity: Name, attack: str) -> TestTrain | None:
        test, train = (total(outcomes, checkpoint, quantity, attack, split) for split in SPLITS)
        return None if test is None else TestTrain(test=test, train=train)

    def gap(quantity: Name) -> float | None:
        return total(outcomes, checkpoint, quantity, reference, "test-train")

    return {
        "clean_error": mean(outcomes[f"{checkpoint}/test/clean/error"]),
        "clean_error_train": total(outcomes, checkpoint, "clean_error", "", "train"),
        "robust_error": {attack: found for attack in attacks if (found := pair("robust_error", attack)) is not None},
        "robust_loss": pair("robust_loss", reference),
        "gap": Gap(robust_error=gap("gap_robust_error"), robust_loss=gap("gap_robust_loss")),
    }


def malformed(outcomes: Outcomes, checkpoints: Iterable[str] = ()) -> list[str]:
    """The arrays that no evaluation writes, one sentence each.

    Every array must hold numbers. Errors and losses of the checkpoints and every measure's `per_example` must be
    bounded and one-dimensional; errors must be bool, losses not negative; an attack must not have more examples than
    the clean images. Other arrays of a measure may have any name and shape.
    """
    attacked = tuple(f"{checkpoint}/{split}/" for checkpoint in checkpoints for split in SPLITS)
    problems = []
    for name, array in outcomes.items():
        folder, _, kind = name.rpartition("/")
        is_total = name.startswith(attacked)
        bits, averaged = is_total and kind == "error", is_total or kind == "per_example"
        numeric = array.dtype.kind in NUMERIC_KINDS
        flat = numeric and _in_range(array, 0 if is_total else -LARGEST)
        if not numeric or (averaged and not flat) or (is_total and (array.dtype.kind == "b") != bits):
            problems.append(f"{name!r:.200} is {array.dtype}{list(array.shape)}, or out of range: no outcome")
        elif bits and array.size > getattr(outcomes.get(f"{folder.rpartition('/')[0]}/clean/error"), "size", 0):
            problems.append(f"{name!r:.200} has more examples than the clean images")
    return problems


def _in_range(array: np.ndarray, low: float) -> bool:
    """Whether it is one or more numbers [n] from `low` to `LARGEST`, which smaller types than float64 cannot hold."""
    wide = array.astype(float)
    return array.ndim == 1 and array.size > 0 and bool(((low <= wide) & (wide <= LARGEST)).all())


def check(results: Mapping[Any, Result], outcomes: Outcomes) -> list[str]:
    """Every disagreement of the results with their outcomes, one sentence each; empty where they agree.

    Totals and counts must be equal bit for bit. Where a measure keeps an array `per_example`, its mean must be the
    measure's value, and its length the measure's n.
    """
    problems = []
    for checkpoint, result in results.items():
        try:
            expected = totals(outcomes, checkpoint, list(result.robust_error))
        except KeyError as error:
            problems.append(f"{checkpoint}: outcomes lack {error}")
            continue
        problems += [
            f"{checkpoint}: {name} is {getattr(result, name)!r}, its outcomes give {value!r}"
            for name, value in expected.items()
            if getattr(result, name) != value
        ]
        problems += _flag_problems(checkpoint, result.flags, outcomes, list(expected["robust_error"]))
        for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
            for measure, measured in measures.items():
                per_example = outcomes.get(f"{measure_path(checkpoint, split, measure)}/per_example")
                if per_example is None or measured.value is None:
                    continue
                value = mean(per_example)
                if not math.isclose(value, measured.value, rel_tol=1e-9, abs_tol=1e-12):
                    stated = f"{measure} is {measured.value!r} on {split}"
                    problems.append(f"{checkpoint}: {stated}, its outcomes give {value!r}")
                if len(per_example) != measured.n:
                    stated = f"n of {measure} is {measured.n} on {split}"
                    problems.append(f"{checkpoint}: {stated}, its outcomes give {len(per_example)}")
    return problems


def _flag_problems(checkpoint: str, flags: Flags, outcomes: Outcomes, attacks: Sequence[str]) -> Iterator[str]:
    """Counts of flags that differ from the outcomes, or exceed the number of examples."""
    missed = autoattack_missed(outcomes, checkpoint, attacks)
    if flags.pgd_beats_autoattack != missed:
        yield f"{checkpoint}: pgd_beats_autoattack is {flags.pgd_beats_autoattack}, its outcomes give {missed}"
    examples = len(outcomes[f"{checkpoint}/test/clean/error"])
    if (flags.square_beats_white_box or 0) > examples:
        yield f"{checkpoint}: square_beats_white_box is {flags.square_beats_white_box} of {examples} examples"


def measure_path(checkpoint: str, split: str, measure: str) -> str:
    """The prefix of a measure's arrays in the outcomes."""
    return f"{checkpoint}/measure/{measure}" if split == "test" else f"{checkpoint}/measure-{split}/{measure}"
