"""Verification of an entry: honest second looks raise its tier; whoever lies in one number is refused in both tiers."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, fake_run, submitted
from helpers.forgery import FORGERIES, measure_lowered

from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.agreement import (
    RETRAINED,
    SAME_LOSS,
    SAME_WEIGHTS,
    agreement,
    training_agreement,
    training_spread,
)
from robflat_bench.leaderboard.entries import read_entry
from robflat_bench.leaderboard.verify import chance_of_training, reevaluate, second_look
from robflat_bench.records.record import EvaluationRecord

TIERS = ("re-evaluated", "reproduced")
SEEN_BY_TRAINING_ONLY = {"history-flattered", "train-loss-of-the-history-raised"}
"""Lies about the history that its weights at the end cannot show."""


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The folder of an honest entry; do not change it."""
    folder = tmp_path_factory.mktemp("truth")
    (entry,) = submitted(folder / "leaderboard", [fake_run(folder / "runs", "at", 1)])
    return entry


@pytest.fixture(scope="module")
def entry(truth):
    """The honest entry, read."""
    return entry_in(truth)


@pytest.fixture
def folder(truth, tmp_path):
    """A copy of the entry that a test may change."""
    root = truth.parents[3]
    shutil.copytree(root, tmp_path / "leaderboard")
    return tmp_path / "leaderboard" / truth.relative_to(root)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    """Another training of the entry's spec: record and outcomes of another network."""
    return fake_run(tmp_path_factory.mktemp("again"), "at", 1, training=1).evidence()


def entry_in(folder):
    return read_entry(folder.parents[3], folder, REGISTRY)


def evaluated(entry):
    """An evaluation of the last checkpoint that gives the entry's own numbers, and its outcomes."""
    record = entry.record
    made = EvaluationRecord(
        key="0" * 16,
        model="last",
        protocol=record.protocol,
        dataset=record.dataset,
        results={"last": record.results["last"]},
        outcomes="0" * 64,
        environment={},
        provenance={},
    )
    return made, {name: array.copy() for name, array in entry.outcomes.items() if name.startswith("last/")}


def look(tier, entry):
    """An honest second look of a tier at the true entry."""
    return evaluated(entry) if tier == "re-evaluated" else (entry.record, entry.outcomes)


@pytest.mark.parametrize("tier", TIERS)
def test_equal_outcomes_verify_as_identical(entry, tier):
    compared = 500 + 500 + 250 + 300 + 300
    count = compared if tier == "re-evaluated" else 2 * compared
    assert second_look(entry, *look(tier, entry), {}) == (
        ("last",) if tier == "re-evaluated" else ("best", "last"),
        True,
        (0, count),
        0.0,
    )


@pytest.mark.parametrize(
    ("name", "tier"),
    [(name, tier) for name in FORGERIES for tier in TIERS if tier == "reproduced" or name not in SEEN_BY_TRAINING_ONLY],
)
def test_a_forged_entry_is_refused(entry, folder, tier, name):
    FORGERIES[name](folder, np.random.default_rng(0))
    with pytest.raises(CheckFailed):
        second_look(entry_in(folder), *look(tier, entry), {})


def test_another_honest_training_reproduces_the_entry(entry, retrained):
    assert not second_look(entry, *retrained, {}).identical


@pytest.mark.parametrize("name", ["40-images-robust", "training-loss-raised", "measure-lowered", "flags-cleared"])
def test_a_forged_entry_is_refused_beside_another_honest_training(folder, retrained, name):
    """The measure is lowered to less than half here: it moves by chance as well."""
    forge = measure_lowered(20.0) if name == "measure-lowered" else FORGERIES[name]
    forge(folder, np.random.default_rng(0))
    with pytest.raises(CheckFailed):
        second_look(entry_in(folder), *retrained, {})


def with_best(record, **update):
    """The record with another result of its best checkpoint."""
    best = record.results["best"].model_copy(update=update)
    return record.model_copy(update={"results": {**record.results, "best": best}})


def test_a_training_that_found_another_epoch_best_reproduces_the_last_checkpoint_alone(entry, retrained):
    record, outcomes = retrained
    moved = with_best(record, epoch=record.results["best"].epoch + 1)
    broken = {name: ~array if name == "best/test/clean/error" else array for name, array in outcomes.items()}
    assert second_look(entry, moved, broken, {}).checkpoints == ("last",)
    with pytest.raises(CheckFailed, match="best/test/clean/error"):
        second_look(entry, record, broken, {})


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_training_may_be_as_far_away_as_two_seeds_of_the_board_s_other_rows(entry, retrained, checkpoint):
    """Of 500 clean test images, 50 more are wrong; both trainings found the same epoch best."""
    record, outcomes = retrained
    name = f"{checkpoint}/test/clean/error"
    right = np.flatnonzero(~entry.outcomes[name])[:50]
    worse = {**outcomes, name: entry.outcomes[name].copy()}
    worse[name][right] = True
    with pytest.raises(CheckFailed, match=r"paired over images .* differs by 7\.07"):
        second_look(entry, record, worse, {})
    with pytest.raises(CheckFailed, match=r"differs by 3\.16"):  # 50 / sqrt(50 + 2 (500 x 0.02)^2)
        second_look(entry, record, worse, {"test/clean/error": 0.02})
    second_look(entry, record, worse, {"test/clean/error": 0.03})


def test_errors_of_another_network_agree_beyond_chance(entry, retrained):
    """Of two unrelated networks with error rates of a half, errors differ on half of the images."""
    record, outcomes = retrained
    name, half = "last/test/clean/error", np.arange(500) % 2 == 0
    mine = submission_with(entry, name, half)
    for share, agrees in ((0.38, True), (0.42, False)):
        flipped = half.copy()
        flipped[: int(500 * share)] ^= True
        if agrees:
            second_look(mine, record, {**outcomes, name: flipped}, {})
        else:
            with pytest.raises(CheckFailed, match=f"the number of images in {name} differs by 210 .at most 200 may"):
                second_look(mine, record, {**outcomes, name: flipped}, {})


def test_an_entry_that_invents_errors_is_granted_no_more_of_them(entry, retrained):
    """Its own error rate says nothing of how many images may differ."""
    record, outcomes = retrained
    name, images = "last/test/clean/error", np.arange(500)
    mine = submission_with(entry, name, images < 180)
    with pytest.raises(CheckFailed, match=f"the number of images in {name} differs by 170 .at most 150 may"):
        second_look(mine, record, {**outcomes, name: images < 10}, {})


def submission_with(entry, name, array):
    return replace(entry, outcomes={**entry.outcomes, name: array})


def test_equal_weights_at_the_end_leave_no_chance_to_training(entry):
    """A forger who moves `best` to another epoch hides its numbers, if those of another network are expected there."""
    record = entry.record
    moved = replace(entry, record=with_best(record, epoch=record.results["best"].epoch + 1))
    with pytest.raises(CheckFailed, match="found another epoch best"):
        second_look(moved, record, entry.outcomes, {})
    rows = tuple(row.model_copy(update={"train_loss": row.train_loss * 1.3}) for row in record.history)
    forged = with_best(record, weights="0" * 64).model_copy(update={"history": rows})
    with pytest.raises(CheckFailed, match="train_loss of the history"):
        training_agreement(forged, record)


def test_one_noisy_row_does_not_widen_the_spread_of_training():
    """Of seven rows of three seeds, one has error rates of 0 and 1."""
    quiet = [[{"a": 0.5 + step * width} for step in (-1, 0, 1)] for width in (0.01, 0.011, 0.012, 0.013, 0.014, 0.015)]
    wild = [{"a": 0.0}, {"a": 1.0}, {"a": 0.0}]
    assert training_spread([*quiet, wild])["a"] == pytest.approx(0.013 / np.sqrt(np.log(2)))
    assert training_spread([[{"a": 0.1}], [{"a": 0.2}]]) == {}


def test_the_chance_of_training_is_that_of_the_other_rows_of_the_board(tmp_path):
    """The entry's row, withdrawn entries and other boards say nothing of it."""
    runs = [fake_run(tmp_path / "runs", method, seed) for method in ("at", "trades", "mart") for seed in (1, 2, 3)]
    entries = [entry_in(folder) for folder in submitted(tmp_path / "leaderboard", runs)]
    name = "last/test/clean/error"
    rates = {method: [] for method in ("at", "trades", "mart")}
    for one in entries:
        rates[one.record.spec.label].append(one.outcomes[name].mean())
    expected = np.sqrt(np.median([np.var(rates[method], ddof=1) for method in ("trades", "mart")]) / np.log(2))
    (mine, *_) = [one for one in entries if one.record.spec.label == "at"]
    assert chance_of_training(mine, entries)["test/clean/error"] == pytest.approx(expected)
    withdrawn = [
        replace(one, entry=one.entry.model_copy(update={"status": "retracted", "reason": "wrong"}))
        if one.record.spec.label == "mart"
        else one
        for one in entries
    ]
    alone = np.sqrt(np.var(rates["trades"], ddof=1) / np.log(2))
    assert chance_of_training(mine, withdrawn)["test/clean/error"] == pytest.approx(alone)
    elsewhere = mine.record.protocol.model_copy(update={"hash": "0" * 64})
    other = replace(mine, record=mine.record.model_copy(update={"protocol": elsewhere}))
    assert chance_of_training(other, entries) == {}


# ---------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------


def changed(entry, change=lambda result, outcomes: result):
    """The agreement of the true entry with an evaluation of which `change` alters the result or the outcomes."""
    record, outcomes = evaluated(entry)
    result = change(record.results["last"], outcomes) or record.results["last"]
    return agreement(entry.record, entry.outcomes, {"last": result}, outcomes, {})


def test_outcomes_are_counted_over_all_attacks_and_splits_of_the_checkpoint(entry):
    def flip(result, outcomes):
        outcomes["last/test/clean/error"][:2] ^= True

    found = changed(entry, flip)
    assert (found.identical, found.flags) == (False, (2, 1850))


def test_the_spread_is_the_second_look_s_alone(entry):
    """Of 500 errors, two more: sqrt(p (1 - p) / n) of the second look."""
    errors = entry.outcomes["last/test/clean/error"]
    right = np.flatnonzero(~errors)[:2]

    def worse(result, outcomes):
        outcomes["last/test/clean/error"][right] = True

    p = errors.mean() + 2 / 500
    assert changed(entry, worse).deviation == pytest.approx((2 / 500) / np.sqrt(p * (1 - p) / 500))


def test_a_spread_that_the_entry_inflates_hides_nothing(entry):
    """One loss of +10,000 makes the entry's own standard error larger than the difference that it causes."""
    outcomes = {name: array.copy() for name, array in entry.outcomes.items()}
    name = next(name for name in outcomes if name.startswith("last/train/pgd") and name.endswith("/loss"))
    outcomes[name][0] += 10_000
    with pytest.raises(CheckFailed, match=r"loss, in standard deviations, differs by"):
        agreement(entry.record, outcomes, *evaluated_results(entry), {})


def evaluated_results(entry):
    record, outcomes = evaluated(entry)
    return record.results, outcomes


@pytest.mark.parametrize("error", [1e9, 1e-9])
def test_a_standard_error_is_compared_where_no_array_gives_it(entry, error):
    """A measure of a plugin that is not installed: its standard error can only be compared with the second look's."""
    last = entry.record.results["last"]
    name, found = next(iter(last.measures.items()))
    forged = last.model_copy(
        update={"measures": {**last.measures, name: found.model_copy(update={"standard_error": error})}}
    )
    record = entry.record.model_copy(update={"results": {**entry.record.results, "last": forged}})
    with pytest.raises(CheckFailed, match="the standard error of"):
        agreement(record, entry.outcomes, *evaluated_results(entry), {})


def test_a_measure_without_a_standard_error_may_differ_by_rounding(entry):
    def with_value(value):
        def change(result, outcomes):
            name, found = next(iter(result.measures.items()))
            exact = found.model_copy(update={"value": value, "standard_error": None})
            return result.model_copy(update={"measures": {**result.measures, name: exact}})

        return change

    exact = with_value(2.0)(entry.record.results["last"], None)
    record = entry.record.model_copy(update={"results": {**entry.record.results, "last": exact}})
    for value, agrees in ((2.000001, True), (2.001, False)):
        again = {"last": with_value(value)(entry.record.results["last"], None)}
        if agrees:
            assert agreement(record, entry.outcomes, again, entry.outcomes, {}).deviation <= SAME_WEIGHTS.mean
        else:
            with pytest.raises(CheckFailed, match="the mean of"):
                agreement(record, entry.outcomes, again, entry.outcomes, {})


@pytest.mark.parametrize(
    "flags",
    [
        {"zero_gradients": 0.3},
        {"random_forward": True},
        {"pgd_beats_autoattack": 30},
        {"square_beats_white_box": 0},
    ],
)
def test_every_flag_is_compared(entry, flags):
    def raised(result, outcomes):
        return result.model_copy(update={"flags": result.flags.model_copy(update=flags)})

    with pytest.raises(CheckFailed, match=f"the flag {next(iter(flags))}"):
        changed(entry, raised)


def test_an_evaluation_on_other_examples_is_refused(entry):
    def fewer(result, outcomes):
        outcomes["last/test/clean/error"] = outcomes["last/test/clean/error"][:400]

    with pytest.raises(CheckFailed, match="other outcomes"):
        changed(entry, fewer)


def test_a_budget_that_differs_by_one_pass_is_not_reproduced(entry):
    record = entry.record
    more = record.model_copy(update={"budget": record.budget.model_copy(update={"forward": record.budget.forward + 1})})
    with pytest.raises(CheckFailed, match="forward passes differs by 1"):
        training_agreement(more, record)


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("learning_rate", lambda rate: rate * 1.01),
        ("train_loss", lambda loss: loss * 2),
        ("heldout_robust_error", lambda error: error / 2),
    ],
)
def test_a_changed_column_of_the_history_is_not_reproduced(entry, column, change):
    record = entry.record
    rows = tuple(row.model_copy(update={column: change(getattr(row, column))}) for row in record.history)
    with pytest.raises(CheckFailed, match=f"{column} of the history"):
        training_agreement(record.model_copy(update={"history": rows}), record)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda again: {"dataset": again.dataset.model_copy(update={"checksum": "0" * 64})}, "on other data"),
        (lambda again: {"protocol": again.protocol.model_copy(update={"hash": "0" * 64})}, "another protocol"),
        (lambda again: {"spec": again.spec.model_copy(update={"numerics": 1})}, "another spec"),
    ],
)
def test_a_second_look_at_another_run_is_refused(entry, change, says):
    with pytest.raises(CheckFailed, match=says):
        second_look(entry, entry.record.model_copy(update=change(entry.record)), entry.outcomes, {})


def test_an_evaluation_of_other_weights_grants_nothing(entry):
    record, outcomes = evaluated(entry)
    other = record.results["last"].model_copy(update={"weights": "0" * 64})
    with pytest.raises(CheckFailed, match="other weights"):
        second_look(entry, record.model_copy(update={"results": {"last": other}}), outcomes, {})


def test_other_weights_are_refused_before_the_evaluation(entry, tmp_path):
    import torch

    from robflat_bench.numerics.weights import write_weights

    write_weights(tmp_path / "last.safetensors", {"w": torch.zeros(3)})
    with pytest.raises(CheckFailed, match="not the weights of this entry"):
        reevaluate(entry, REGISTRY, tmp_path / "last.safetensors", [], "2026-01-01")


@pytest.mark.parametrize(("share", "agrees"), [(0.4, True), (0.6, False)])
def test_values_of_a_measure_may_differ_on_half_of_the_images(entry, share, agrees):
    """An ascent of the weights amplifies rounding."""

    def moved(result, outcomes):
        name = next(name for name in outcomes if name.endswith("/per_example"))
        some = slice(int(share * len(outcomes[name])))
        outcomes[name][some] += 0.002 * (1 + np.abs(outcomes[name][some]))

    if agrees:
        changed(entry, moved)
    else:
        with pytest.raises(CheckFailed, match="the number of images"):
            changed(entry, moved)


def test_the_rules_page_states_the_bounds():
    same, other = SAME_WEIGHTS, RETRAINED
    page = (Path(__file__).parents[2] / "leaderboard" / "pages" / "rules.md").read_text("utf-8")
    for stated in (
        f"or {same.images * 100:g} % of its images, differ | at most {other.images * 100:g} % differ",
        f"≤ {other.training:g} (McNemar), or ≤ {other.balance:g} without s",
        f"or, if that is more, {other.unrelated * 100:g} % of those on which two unrelated networks",
        f"at most {same.losses * 100:g} % of the losses, {same.measures * 100:g} % of the values of a measure differ",
        f"differ by more than {SAME_LOSS:g} (1 + loss)",
        f"differs by more than {other.image:g} standard deviations",
        f"within {same.mean:g} standard errors | within {other.mean:g} standard errors, or a factor of",
        f"or a factor of {other.factor:g} |",
        f"within {(same.spread - 1) * 100:.0f} % | within a factor of {other.spread:g}",
        f"fractions within {same.flags:g}, counts within {same.flags * 100:g} %",
        f"fractions within {other.flags:g}, counts within {other.flags * 100:g} %",
        f"means of a column within {same.history * 100:g} %, where it was trained again |",
        f"within {other.history * 100:g} %; the learning rate is equal",
    ):
        assert stated in page
