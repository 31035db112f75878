"""The numbers of a record: one table names them, and their values follow from the outcomes."""

import math

import numpy as np
import pytest
from helpers.fake_records import REGISTRY
from helpers.small_result import OUTCOMES, small_result

from robflat_bench.records.quantities import (
    QUANTITIES,
    WORST_CASE,
    column_id,
    column_label,
    heading,
    quantity_label,
    quantity_unit,
    quantity_values,
    samples,
    standard_error,
    total,
    worst_case,
)

PGD = 'pgd(init="uniform", loss="ce", restarts=3, steps=20)'
AVERAGE = "average-case"


def test_robust_error_counts_clean_errors_too():
    assert total(OUTCOMES, "best", "robust_error", "pgd", "test") == 2 / 4
    assert total(OUTCOMES, "best", "robust_error", "fgsm", "test") == 2 / 3
    assert total(OUTCOMES, "best", "robust_error", "pgd", "train") == 1 / 2
    assert total(OUTCOMES, "best", "robust_error", "fgsm", "train") is None


def test_losses_are_means_in_float64():
    assert total(OUTCOMES, "best", "robust_loss", "pgd", "test") == 1.0
    assert total(OUTCOMES, "best", "robust_loss", "fgsm", "test") is None
    many = {"best/test/pgd/loss": np.full(10_000_000, 0.1, dtype=np.float32)}
    assert abs(total(many, "best", "robust_loss", "pgd", "test") - np.float64(np.float32(0.1))) < 1e-12


def test_every_number_has_the_standard_error_of_its_examples():
    """A fraction p of n: sqrt(p (1 - p) / (n - 1)); a difference of independent means: in quadrature."""
    found = {value[:3]: value for value in quantity_values("best", small_result(), OUTCOMES)}
    assert next(iter(found)) == ("worst_case", "pgd and fgsm", "test"), "the number that boards rank comes first"
    assert set(found) == {
        ("worst_case", "pgd and fgsm", "test"),
        *(("clean_error", "", split) for split in ("test", "train")),
        *(("robust_error", "pgd", split) for split in ("test", "train")),
        ("robust_error", "fgsm", "test"),
        *(("robust_loss", "pgd", split) for split in ("test", "train")),
        *((gap, "pgd", "test-train") for gap in ("gap_robust_error", "gap_robust_loss")),
        *(("measure", name, "test") for name in ("flat", "sharp")),
    }
    clean = found["clean_error", "", "test"]
    assert (clean.value, clean.n) == (0.25, 4)
    assert clean.standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    fgsm = found["robust_error", "fgsm", "test"]
    assert (fgsm.value, fgsm.n) == (2 / 3, 3)
    assert fgsm.standard_error == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    worst = found["worst_case", "pgd and fgsm", "test"]
    assert (worst.value, worst.standard_error, worst.n) == (1.0, 0.0, 3), "PGD breaks the second, FGSM the third"
    gap = found["gap_robust_error", "pgd", "test-train"]
    assert gap.standard_error == pytest.approx(math.sqrt(0.5 * 0.5 / 3 + 0.5 * 0.5 / 1))
    loss = found["robust_loss", "pgd", "test"]
    assert loss.standard_error == pytest.approx(math.sqrt((0 + 1 + 0.25 + 0.25) / 3 / 4))
    assert found["measure", "flat", "test"][3:] == (1.0, 0.5, 2)


def test_a_single_example_has_no_standard_error():
    assert standard_error(np.array([True])) is None
    assert standard_error(np.array([1.0, 3.0]), np.array([1.0])) is None
    assert standard_error(np.array([1.0, 3.0])) == 1.0


def test_values_agree_with_the_result_that_is_written_down():
    result = small_result()
    found = {value[:3]: value.value for value in quantity_values("best", result, OUTCOMES)}
    assert found["clean_error", "", "train"] == result.clean_error_train
    assert found["robust_error", "fgsm", "test"] == result.robust_error["fgsm"].test
    assert found["robust_loss", "pgd", "train"] == result.robust_loss.train
    assert found["gap_robust_error", "pgd", "test-train"] == result.gap.robust_error
    assert found["gap_robust_loss", "pgd", "test-train"] == result.gap.robust_loss


def test_a_result_without_an_attack_has_no_robust_numbers():
    result = small_result(robust_error={}, robust_loss=None, gap={"robust_error": None, "robust_loss": None})
    names = {value.quantity for value in quantity_values("best", result, OUTCOMES)}
    assert names == {"clean_error", "measure"}


def test_the_worst_case_is_over_the_examples_that_every_attack_met():
    assert worst_case(OUTCOMES, "best", ["pgd"]).tolist() == [True, True, False, False]
    assert worst_case(OUTCOMES, "best", ["pgd", "fgsm"]).tolist() == [True, True, True]


def test_a_gap_needs_both_splits():
    few = {name: array for name, array in OUTCOMES.items() if "/train/" not in name}
    assert samples(few, "best", "gap_robust_loss", "pgd", "test-train") == ()


def test_columns_of_the_board_are_named_once_and_differ():
    columns = [column_id(name, PGD) for name in QUANTITIES]
    assert columns == [
        WORST_CASE,
        "clean_error",
        f"attack:{PGD}",
        "robust_loss",
        "gap_robust_error",
        "gap_robust_loss",
        f"measure:{PGD}",
    ]
    assert len(set(columns)) == len(columns)


def test_labels_and_units_say_what_is_counted():
    labels = {value[:3]: quantity_label(REGISTRY, value) for value in quantity_values("best", small_result(), OUTCOMES)}
    assert labels["worst_case", "pgd and fgsm", "test"] == "worst case of 2 attacks, test, n=3 (boards rank it)"
    assert labels["robust_error", "pgd", "train"].startswith("robust error, train: PGD")
    assert labels["robust_loss", "pgd", "test"] == "robust loss, test (nats)"
    assert labels["gap_robust_loss", "pgd", "test-train"] == "gap in robust loss (test - train)"
    assert column_label(REGISTRY, "gap_robust_error") == "gap robust error"
    assert column_label(REGISTRY, column_id("measure", PGD)) == PGD
    assert heading(REGISTRY, "gap_robust_error", PGD) == "gap in error, PGD-20 x 3"
    assert [quantity_unit(name) for name in QUANTITIES] == [*["fraction"] * 3, "nats", "fraction", "nats", ""]
    assert (quantity_unit("measure", AVERAGE), quantity_unit("measure", "hessian-lambda-max")) == ("nats", "")
