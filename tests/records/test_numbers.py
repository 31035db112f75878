"""Numbers of a record: their ranges, the history of its spec, and counts that follow from outcomes."""

import copy

import numpy as np
import pytest
from helpers.fake_records import fake_run
from helpers.small_result import OUTCOMES, small_result
from pydantic import ValidationError

from robflat_bench.records.record import RunRecord, check, malformed, totals


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs"), "at", 1).record().model_dump(mode="json")


def put(document, path, value):
    """A copy of a document with the value at this path."""
    made = copy.deepcopy(document)
    *way, last = path
    place = made
    for step in way:
        place = place[next(iter(place)) if step == "*" else step]
    place[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", "last", "measures", "*", "standard_error"), -1.0),
        (("results", "last", "measures", "*", "standard_error"), 1e101),
        (("results", "last", "measures", "*", "n"), -1),
        (("results", "last", "measures", "*", "seconds"), -1.0),
        (("results", "last", "measures", "*", "value"), -1e300),
        (("results", "last", "clean_error"), 1.5),
        (("results", "last", "flags", "zero_gradients"), -0.1),
        (("results", "last", "flags", "square_beats_white_box"), -1),
        (("results", "last", "epoch"), -1),
        (("budget", "forward"), 10**400),
        (("budget", "seconds"), -1.0),
        (("budget", "peak_memory_bytes"), 2**64),
        (("history", 0, "heldout_robust_error"), 1.5),
        (("history", 0, "heldout_robust_loss"), -0.5),
        (("history", 0, "learning_rate"), -0.1),
        (("history", 0, "train_loss"), 1e200),
    ],
)
def test_a_number_out_of_its_range_is_refused(record, path, value):
    RunRecord.model_validate(record)
    with pytest.raises(ValidationError, match=str(path[-1])):
        RunRecord.model_validate(put(record, path, value))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: put(record, ("history",), []), "one line for each of the 30 epochs"),
        (lambda record: put(record, ("history",), record["history"][:-1]), "one line for each"),
        (lambda record: put(record, ("history",), record["history"][::-1]), "in order"),
        (lambda record: put(record, ("history", 3, "heldout_robust_error"), 0.1), "its history says 3"),
        (lambda record: put(record, ("history", 3, "heldout_robust_loss"), 0.1), "its history says 3"),
        (lambda record: put(record, ("results", "last", "epoch"), 28), "its last is of epoch 28"),
    ],
)
def test_the_history_has_every_epoch_and_selects_the_best(record, change, says):
    """The lowest robust error on held-out images, then the lowest loss, then the first epoch."""
    with pytest.raises(ValidationError, match=says):
        RunRecord.model_validate(change(record))


def test_negative_losses_and_huge_values_are_no_outcomes():
    values = ("best/measure/flat/per_example", -1e101)
    for name, value in (("best/test/pgd/loss", -0.1), ("best/test/pgd/loss", 1e101), values):
        array = OUTCOMES[name].copy()
        array[0] = value
        (said,) = malformed({**OUTCOMES, name: array}, ["best"])
        assert name in said
        assert "out of range" in said


def test_the_number_of_images_that_autoattack_missed_follows_from_the_outcomes():
    """PGD breaks images 1 and 2, AutoAttack image 2; image 0 is wrong anyway, image 3 was not attacked."""
    attacks = ["pgd", "autoattack(fast=true)"]
    outcomes = {
        "best/test/clean/error": np.array([True, False, False, False]),
        "best/test/pgd/error": np.array([True, True, True, True]),
        "best/test/autoattack(fast=true)/error": np.array([False, False, True]),
    }
    made = small_result(**totals(outcomes, "best", attacks))
    flags = made.flags.model_copy(update={"pgd_beats_autoattack": 1})
    assert check({"best": made.model_copy(update={"flags": flags, "measures": {}})}, outcomes) == []
    (said,) = check({"best": made.model_copy(update={"measures": {}})}, outcomes)
    assert said == "best: pgd_beats_autoattack is None, its outcomes give 1"


def test_square_cannot_break_more_images_than_there_are():
    made = small_result()
    flags = made.flags.model_copy(update={"square_beats_white_box": 5})
    assert check({"best": made.model_copy(update={"flags": flags})}, OUTCOMES) == [
        "best: square_beats_white_box is 5 of 4 examples"
    ]
