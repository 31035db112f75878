"""Somebody else's look at an entry: what agrees moves its tier, what does not is refused with how far it is off."""

import dataclasses

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, fake_run, submitted

from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.verify import BOUNDS, disagreement, reevaluate


@pytest.fixture
def entry(tmp_path):
    submitted(tmp_path / "leaderboard", [fake_run(tmp_path / "runs", "at", 1)])
    return read_entries(tmp_path / "leaderboard", REGISTRY)[0][0]


def seen_again(entry, change=lambda outcomes: None):
    outcomes = {name: array.copy() for name, array in entry.outcomes.items()}
    change(outcomes)
    return disagreement(entry, entry.record.results, outcomes, ["last"])


def test_the_same_outcomes_are_identical(entry):
    assert seen_again(entry) == (True, (0, 500 + 500 + 250 + 300 + 300), 0.0)


def test_flags_are_counted_over_all_attacks_and_splits_of_the_checkpoint(entry):
    def flip(outcomes):
        outcomes["last/test/clean/error"][:3] ^= True
        outcomes["best/test/clean/error"][:9] ^= True

    found = seen_again(entry, flip)
    assert (found.identical, found.flags[0]) == (False, 3)


def test_a_rate_is_apart_by_standard_errors_of_the_difference(entry):
    """25 of 500 more: sqrt(p (1 - p) / n) of each, in quadrature."""
    errors = entry.outcomes["last/test/clean/error"]
    right = np.flatnonzero(~errors)[:25]

    def worse(outcomes):
        outcomes["last/test/clean/error"][right] = True

    p, q = errors.mean(), errors.mean() + 25 / 500
    expected = (25 / 500) / np.sqrt(p * (1 - p) / 500 + q * (1 - q) / 500)
    assert seen_again(entry, worse).deviation == pytest.approx(expected)


def test_a_measure_counts_in_its_own_standard_errors(entry):
    results = dict(entry.record.results)
    name, found = next(iter(results["last"].measures.items()))
    moved = found.model_copy(update={"value": found.value + 2 * found.standard_error})
    results["last"] = results["last"].model_copy(update={"measures": {**results["last"].measures, name: moved}})
    seen = disagreement(entry, results, entry.outcomes, ["last"])
    assert seen.deviation == pytest.approx(2 / np.sqrt(2))
    assert BOUNDS["re-evaluated"].deviation < seen.deviation < BOUNDS["reproduced"].deviation


def test_a_loss_counts_in_standard_errors_of_the_difference(entry):
    """A robust loss that was made smaller, with totals to match, is far from what the weights give."""
    losses = entry.outcomes["last/test/clean/loss"]
    offset = 3 * losses.std(ddof=1) / np.sqrt(len(losses))

    def easier(outcomes):
        outcomes["last/test/clean/loss"] -= offset

    assert seen_again(entry, easier).deviation == pytest.approx(3 / np.sqrt(2))


def test_a_measure_without_a_standard_error_may_differ_by_rounding(entry):
    def with_value(value):
        results = dict(entry.record.results)
        name, found = next(iter(results["last"].measures.items()))
        exact = found.model_copy(update={"value": value, "standard_error": None})
        results["last"] = results["last"].model_copy(update={"measures": {**results["last"].measures, name: exact}})
        return results

    exact = dataclasses.replace(entry, record=entry.record.model_copy(update={"results": with_value(2.0)}))
    for value, agrees in ((2.00001, True), (2.001, False)):
        found = disagreement(exact, with_value(value), entry.outcomes, ["last"])
        assert (found.deviation <= BOUNDS["re-evaluated"].deviation) == agrees


def test_other_examples_are_refused(entry):
    def fewer(outcomes):
        outcomes["last/test/clean/error"] = outcomes["last/test/clean/error"][:400]

    with pytest.raises(CheckFailed, match="other outcomes"):
        seen_again(entry, fewer)


def test_weights_of_something_else_are_refused_before_anything_is_evaluated(entry, tmp_path):
    import torch

    from robflat_bench.numerics.weights import write_weights

    write_weights(tmp_path / "last.safetensors", {"w": torch.zeros(3)})
    with pytest.raises(CheckFailed, match="not the weights of this entry"):
        reevaluate(entry, tmp_path / "last.safetensors", [], "2026-01-01")
