"""Records: the evidence a run leaves. Numbers are fractions in [0,1] for errors, nats for losses.

A record is one JSON beside `outcomes.npz`, which keeps what happened to every example. `check` recomputes every
total from the outcomes; a record that disagrees with its own outcomes is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from robflat_bench.config.protocol import Strict
from robflat_bench.config.spec import DatasetRef, ProtocolRef, RunSpec

MAX_BYTES = 8 * 1024 * 1024

Outcomes = Mapping[str, np.ndarray]
SPLITS: tuple[Literal["test", "train"], ...] = ("test", "train")
NUMBERS = "biuf"
"""Kinds of dtype that outcomes have."""


class TestTrain(Strict):
    """One quantity on test and (where the protocol asks for it) on training examples."""

    __test__ = False
    test: float
    train: float | None = None


class Gap(Strict):
    """Test minus train of the reference attack; None where training examples were not attacked."""

    robust_error: float | None
    robust_loss: float | None


class MeasureResult(Strict):
    """A measure's value (None: it has none here, for this reason), its standard error (None: not defined), examples,
    seconds, image passes through the network and further numbers."""

    value: float | None
    standard_error: float | None
    n: int
    seconds: float
    forward: int = 0
    backward: int = 0
    reason: str = ""
    details: dict[str, float] = Field(default_factory=dict)


class Flags(Strict):
    """Reasons to distrust an attack.

    zero_gradients: fraction of test examples whose input gradient is exactly zero. random_forward: two forwards
    of one batch differ. pgd_beats_autoattack / square_beats_white_box: examples only the weaker attack broke
    (None: not both were run on them).
    """

    zero_gradients: float
    random_forward: bool
    pgd_beats_autoattack: int | None = None
    square_beats_white_box: int | None = None

    def reasons(self, examples: int = 0) -> tuple[str, ...]:
        """Those that were raised, in words; what concerns at most 1 % of so many examples is left out."""
        few = 0.01 * examples
        beaten = self.pgd_beats_autoattack or 0
        raised = {
            f"zero gradients on {self.zero_gradients:.1%}": self.zero_gradients > 0.01,
            "random forward": self.random_forward,
            f"another attack broke {beaten} that AutoAttack did not": beaten > few,
            f"only Square broke {self.square_beats_white_box}": (self.square_beats_white_box or 0) > few,
        }
        return tuple(reason for reason, holds in raised.items() if holds)


class Result(Strict):
    """One checkpoint under evaluation. Robust error counts clean errors too."""

    epoch: int | None
    weights: str
    clean_error: float
    clean_error_train: float | None
    robust_error: dict[str, TestTrain]
    robust_loss: TestTrain | None
    gap: Gap
    measures: dict[str, MeasureResult]
    measures_train: dict[str, MeasureResult] = Field(default_factory=dict)
    flags: Flags
    seconds: dict[str, float]


class Budget(Strict):
    """Image passes of training, and what the whole run took."""

    forward: int
    backward: int
    seconds: float
    evaluation_seconds: float
    peak_memory_bytes: int


class Epoch(Strict):
    """One line of the history: means over the epoch's steps, then the held-out check (None between checks)."""

    epoch: int
    learning_rate: float
    train_loss: float
    heldout_clean_error: float | None
    heldout_robust_error: float | None
    heldout_robust_loss: float | None
    seconds: float


class Versioned(Strict):
    """A file of schema version 2, or of 1, which it is read as.

    Version 2 added measures on training examples, and of each measure its passes and why it has no value: what a
    record of version 1 lacks is empty.
    """

    schema_version: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, data: Any) -> Any:
        former = isinstance(data, dict) and data.get("schema_version") == 1
        return {**data, "schema_version": 2} if former else data


class RunRecord(Versioned):
    """Everything about one finished run but its per-example outcomes, whose SHA-256 it carries."""

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
    outcomes: str = Field(pattern=r"^[0-9a-f]{64}$")
    environment: dict[str, Any]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _is_of_its_spec(self) -> RunRecord:
        for name in ("key", "protocol", "method", "seed", "dataset"):
            if getattr(self, name) != getattr(self.spec, name):
                raise ValueError(f"its {name} is not that of its spec")
        if self.extra_data != bool(self.spec.extra_data):
            raise ValueError("its extra_data is not that of its spec")
        return self


class EvaluationRecord(Versioned):
    """What `evaluate` adds to a model after the fact."""

    key: str
    model: str
    protocol: ProtocolRef
    dataset: DatasetRef
    results: dict[str, Result]
    outcomes: str = Field(pattern=r"^[0-9a-f]{64}$")
    environment: dict[str, Any]
    provenance: dict[str, Any]


def broken(outcomes: Outcomes, checkpoint: str, split: str, attack: str) -> NDArray[np.bool_] | None:
    """[n] of the attacked examples: wrong when clean or when attacked; None where not attacked."""
    fooled = outcomes.get(f"{checkpoint}/{split}/{attack}/error")
    return None if fooled is None else fooled | outcomes[f"{checkpoint}/{split}/clean/error"][: len(fooled)]


def union_error(outcomes: Outcomes, checkpoint: str, split: str, attack: str) -> float | None:
    """Fraction of the attacked examples wrong when clean or when attacked; None where not attacked."""
    wrong = broken(outcomes, checkpoint, split, attack)
    return None if wrong is None else float(np.mean(wrong))


def mean_loss(outcomes: Outcomes, checkpoint: str, split: str, attack: str) -> float | None:
    """Mean cross-entropy under the attack, in nats; None where not attacked."""
    losses = outcomes.get(f"{checkpoint}/{split}/{attack}/loss")
    return None if losses is None else float(np.mean(losses, dtype=np.float64))


def standard_error(*samples: np.ndarray) -> float | None:
    """Of the mean of one value per example, [n], or of the difference of two such means on independent examples; None
    where a sample has a single example. It is one network's: another seed may be further off."""
    known = [np.asarray(sample, np.float64) for sample in samples if len(sample) > 1]
    if len(known) < len(samples):
        return None
    return math.sqrt(sum(float(sample.var(ddof=1)) / len(sample) for sample in known))


class Number(NamedTuple):
    """One number about one network. of: the attack or measure it is about, or "". split: the examples it is about.
    n: how many (of a gap: test examples)."""

    quantity: Literal["clean_error", "robust_error", "robust_loss", "gap_robust_error", "gap_robust_loss", "measure"]
    of: str
    split: Literal["test", "train", "test-train"]
    value: float | None
    standard_error: float | None
    n: int


def numbers(checkpoint: str, result: Result, outcomes: Outcomes) -> Iterator[Number]:
    """Everything a result says, with standard errors over examples from the outcomes it was made from."""
    reference = next(iter(result.robust_error), "")
    clean = {split: outcomes.get(f"{checkpoint}/{split}/clean/error") for split in SPLITS}
    losses = {split: outcomes.get(f"{checkpoint}/{split}/{reference}/loss") for split in SPLITS}

    def wrong(split: str, attack: str = reference) -> NDArray[np.bool_] | None:
        return broken(outcomes, checkpoint, split, attack)

    sampled: list[tuple[Any, str, Any, float | None, list[NDArray[Any] | None]]] = [
        ("clean_error", "", "test", result.clean_error, [clean["test"]]),
        ("clean_error", "", "train", result.clean_error_train, [clean["train"]]),
        *(
            ("robust_error", attack, split, getattr(pair, split), [wrong(split, attack)])
            for attack, pair in result.robust_error.items()
            for split in SPLITS
        ),
        *(
            ("robust_loss", reference, split, getattr(result.robust_loss, split, None), [losses[split]])
            for split in SPLITS
        ),
        ("gap_robust_error", reference, "test-train", result.gap.robust_error, [wrong(split) for split in SPLITS]),
        ("gap_robust_loss", reference, "test-train", result.gap.robust_loss, [*losses.values()]),
    ]
    for quantity, of, split, value, samples in sampled:
        if value is not None:  # and so its outcomes are there: a record without them is refused
            known = [sample for sample in samples if sample is not None]
            yield Number(quantity, of, split, value, standard_error(*known), len(known[0]))
    for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
        for measure, found in measures.items():
            yield Number("measure", measure, split, found.value, found.standard_error, found.n)


def totals(outcomes: Outcomes, checkpoint: str, attacks: list[str]) -> dict[str, Any]:
    """The part of a `Result` that follows from outcomes; the first attack is the reference."""

    def both(quantity: Any, attack: str) -> TestTrain | None:
        test = quantity(outcomes, checkpoint, "test", attack)
        train = quantity(outcomes, checkpoint, "train", attack)
        return None if test is None else TestTrain(test=test, train=train)

    errors = {attack: error for attack in attacks if (error := both(union_error, attack)) is not None}
    loss = both(mean_loss, attacks[0]) if attacks else None
    train_clean = outcomes.get(f"{checkpoint}/train/clean/error")
    return {
        "clean_error": float(np.mean(outcomes[f"{checkpoint}/test/clean/error"])),
        "clean_error_train": None if train_clean is None else float(np.mean(train_clean)),
        "robust_error": errors,
        "robust_loss": loss,
        "gap": Gap(
            robust_error=_difference(errors.get(attacks[0]) if attacks else None),
            robust_loss=_difference(loss),
        ),
    }


def _difference(pair: TestTrain | None) -> float | None:
    return None if pair is None or pair.train is None else pair.test - pair.train


def malformed(outcomes: Outcomes, checkpoints: Iterable[str] = ()) -> list[str]:
    """Arrays that no evaluation writes: every array holds numbers; what a total or a measure's value is the mean of is
    finite and one-dimensional, errors of the checkpoints are bits, and no attack met more examples than were there. Of
    a measure only `per_example` has a meaning here: its other arrays have any name and shape."""
    attacked = tuple(f"{checkpoint}/{split}/" for checkpoint in checkpoints for split in SPLITS)
    problems = []
    for name, array in outcomes.items():
        folder, _, kind = name.rpartition("/")
        total = name.startswith(attacked)
        bits, averaged = total and kind == "error", total or kind == "per_example"
        flat = array.ndim == 1 and array.size and array.dtype.kind in NUMBERS and bool(np.isfinite(array).all())
        if array.dtype.kind not in NUMBERS or (averaged and not flat) or (total and (array.dtype.kind == "b") != bits):
            problems.append(f"{name!r:.200} is {array.dtype}{list(array.shape)}, or not finite: no outcome")
        elif bits and len(array) > len(outcomes.get(f"{folder.rpartition('/')[0]}/clean/error", ())):
            problems.append(f"{name!r:.200} has more examples than were clean")
    return problems


def check(results: Mapping[Any, Result], outcomes: Outcomes) -> list[str]:
    """Every way in which the results disagree with their outcomes; empty when they agree.

    Where a measure keeps an array `per_example`, its mean must be the measure's value.
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
        for split, measures in (("test", result.measures), ("train", result.measures_train)):
            for measure, measured in measures.items():
                per_example = outcomes.get(f"{measure_path(checkpoint, split, measure)}/per_example")
                if per_example is None or measured.value is None:
                    continue
                value = float(np.mean(per_example, dtype=np.float64))
                if not math.isclose(value, measured.value, rel_tol=1e-9, abs_tol=1e-12):
                    problems.append(
                        f"{checkpoint}: {measure} is {measured.value!r} on {split}, its outcomes give {value!r}"
                    )
    return problems


def measure_path(checkpoint: str, split: str, measure: str) -> str:
    """Below which the outcomes keep the arrays of a measure."""
    return f"{checkpoint}/measure/{measure}" if split == "test" else f"{checkpoint}/measure-{split}/{measure}"
