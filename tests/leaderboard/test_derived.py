"""What `check` computes again: the numbers that follow from the arrays of measures, from the spec and the protocol."""

import re

import numpy as np
import pytest
from helpers.fake_records import REGISTRY, fake_run, submitted
from helpers.forgery import FORGERIES, rewrite

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import Measured, load
from robflat_bench.core import CheckFailed
from robflat_bench.core.estimates import ESTIMATES, contradictions, counted_examples, miscounted
from robflat_bench.leaderboard.derived import estimate_problems, example_problems, training_problems
from robflat_bench.leaderboard.entries import read_entry
from robflat_bench.records.record import MeasureResult
from robflat_bench.registry.components import compose, resolve

PROTOCOL = load(REGISTRY, "digits-linf")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs"), "trades", 1).evidence()


def with_budget(record, **passes):
    return record.model_copy(update={"budget": record.budget.model_copy(update=passes)})


def problems(record, registry=REGISTRY):
    return [*training_problems(registry, PROTOCOL, record)]


def test_a_whole_record_has_no_problem(evidence):
    record, outcomes = evidence
    assert problems(record) == [*estimate_problems(REGISTRY, record.results, outcomes)] == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_budget_one_pass_below_the_declared_passes_is_refused(evidence, direction):
    """TRADES on 700 images in 30 epochs: ten steps and a clean pass, by its formula."""
    record, _ = evidence
    exact = getattr(record.budget, direction)
    assert problems(with_budget(record, **{direction: exact + 1})) == []
    (said,) = problems(with_budget(record, **{direction: exact - 1}))
    assert f"{exact - 1} {direction} passes" in said


@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [
        ("at+awp(warmup=0.5)", 11 + 1, 10 + 1),  # from the middle on, a second evaluation of the loss
        ("rebat", 11 + 1, 10 + 1),  # from `start` on, a pass of the average
        ("te", 11 + 1, 10 + 1),  # from `start` on, a clean prediction
        ("trades+awp(warmup=0.1)", 12 + 2, 10 + 2),
        ("at+awp(steps=2)", 11 + 3, 10 + 3),  # from the beginning
        ("rebat(start=0)", 11 + 2, 10 + 1),
        ("te(start=0)", 12 + 1, 10 + 1),
    ],
)
def test_passes_that_some_updates_alone_make_are_not_asked_of_all(evidence, method, forward, backward):
    """An honest run of such a method makes fewer passes than the formula's bound; below the least it is refused."""
    record, _ = evidence
    text = compose(REGISTRY, method).canonical
    recipe = record.spec.recipe.model_copy(update={"attack_steps": 10})
    record = record.model_copy(update={"spec": record.spec.model_copy(update={"method": text, "recipe": recipe})})
    least = {"forward": 700 * 30 * forward, "backward": 700 * 30 * backward}
    assert problems(with_budget(record, **least)) == []
    assert len(problems(with_budget(record, **{name: passes - 1 for name, passes in least.items()}))) == 2


def test_a_run_of_another_version_passes_each_image_in_each_epoch(evidence):
    """The formulas of another version are unknown."""
    record, _ = evidence
    older = record.model_copy(update={"spec": record.spec.model_copy(update={"numerics": NUMERICS - 1})})
    assert problems(with_budget(older, forward=700 * 30, backward=700 * 30)) == []
    assert len(problems(with_budget(older, forward=700 * 30 - 1, backward=700 * 30 - 1))) == 2


def test_a_method_that_is_not_installed_makes_a_pass_in_each_update(evidence):
    record, _ = evidence
    foreign = record.model_copy(update={"spec": record.spec.model_copy(update={"method": "not-installed"})})
    updates = 30 * 700 // 50
    assert problems(with_budget(foreign, forward=updates, backward=updates)) == []
    assert problems(with_budget(foreign, forward=1, backward=updates))


def test_a_check_on_held_out_images_that_the_protocol_asks_for_must_be_there(evidence):
    record, _ = evidence
    rows = list(record.history)
    unchecked = dict.fromkeys(("heldout_clean_error", "heldout_robust_error", "heldout_robust_loss"))
    rows[3] = rows[3].model_copy(update=unchecked)
    assert problems(record.model_copy(update={"history": tuple(rows)})) == [
        "its history has no check on held-out images after epoch 3"
    ]


def test_two_checkpoints_of_one_epoch_have_the_same_weights(evidence):
    record, _ = evidence
    best = record.results["best"].model_copy(update={"epoch": record.results["last"].epoch})
    twice = record.model_copy(update={"results": {**record.results, "best": best}})
    assert problems(twice) == ["its best and its last checkpoint are of one epoch, with other weights"]


@pytest.mark.parametrize("field", ["value", "standard_error", "n"])
def test_a_number_of_a_measure_that_its_arrays_do_not_give_is_named(evidence, field):
    record, outcomes = evidence
    last = record.results["last"]
    name, found = next(iter(last.measures.items()))
    forged = found.model_copy(update={field: 2 * getattr(found, field)})
    results = {"last": last.model_copy(update={"measures": {**last.measures, name: forged}})}
    (said,) = estimate_problems(REGISTRY, results, outcomes)
    assert said.startswith(f"last: {name} on test: its {field} is {getattr(forged, field)!r}, its arrays give")


@pytest.mark.parametrize("detail", ["loss", "loss_moved", "relative", "standard_error_draws"])
def test_a_detail_that_the_arrays_do_not_give_is_named(evidence, detail):
    record, outcomes = evidence
    last = record.results["last"]
    name, found = next(iter(last.measures.items()))
    forged = found.model_copy(update={"details": {**found.details, detail: 0.123}})
    results = {"last": last.model_copy(update={"measures": {**last.measures, name: forged}})}
    (said,) = estimate_problems(REGISTRY, results, outcomes)
    assert f"its {detail} is 0.123" in said


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("losses"),
        lambda arrays: arrays.update(losses=np.zeros(())),
        lambda arrays: arrays.update(losses=np.zeros((3, 7))),
        lambda arrays: arrays.update(losses=np.full((10, 250), np.nan)),
        lambda arrays: arrays.update(reference=np.zeros(0)),
        lambda arrays: arrays.update(losses=np.zeros((2, 250), bool), reference=np.zeros(250, bool)),
    ],
)
def test_arrays_of_any_shape_are_answered_in_a_sentence(change):
    rng = np.random.default_rng(0)
    arrays = {"losses": rng.gamma(1.0, size=(10, 250)), "reference": np.zeros(250)}
    stated = ESTIMATES["draws and examples"](arrays)
    stated |= stated.pop("details")
    assert contradictions("draws and examples", arrays, stated) == []
    change(arrays)
    assert contradictions("draws and examples", arrays, stated)


def test_a_measure_without_a_value_says_why(evidence):
    record, outcomes = evidence
    last = record.results["last"]
    name, found = next(iter(last.measures.items()))
    silent = found.model_copy(update={"value": None, "standard_error": None})
    said = silent.model_copy(update={"reason": "it is nan here"})
    for one, count in ((silent, 1), (said, 0)):
        results = {"last": last.model_copy(update={"measures": {**last.measures, name: one}})}
        assert len([*estimate_problems(REGISTRY, results, outcomes)]) == count


def test_an_array_that_is_not_finite_needs_a_reason(evidence):
    record, outcomes = evidence
    name = next(name for name in outcomes if name.startswith("last/measure/worst") and name.endswith("losses"))
    changed = {**outcomes, name: np.full_like(outcomes[name], np.nan)}
    (said,) = estimate_problems(REGISTRY, record.results, changed)
    assert "its array losses has numbers that are not finite" in said


def test_a_measure_that_is_not_installed_is_believed(evidence):
    record, outcomes = evidence
    last = record.results["last"]
    found = next(iter(last.measures.values()))
    results = {"last": last.model_copy(update={"measures": {"not-installed": found}})}
    assert [*estimate_problems(REGISTRY, results, outcomes)] == []


@pytest.mark.parametrize("name", [name for name in FORGERIES if name.startswith(("standard", "budget", "history-e"))])
def test_check_refuses_what_does_not_follow(tmp_path, name):
    (folder,) = submitted(tmp_path / "leaderboard", [fake_run(tmp_path / "runs", "at", 1)])
    FORGERIES[name](folder, np.random.default_rng(0))
    with pytest.raises(CheckFailed, match=r"record\.json|seed-1"):
        read_entry(tmp_path / "leaderboard", folder, REGISTRY)


def _cut(kind, images=None, draws=None):
    """The measure of the last checkpoint whose name starts so, of fewer images or draws, and all that follows."""

    def change(found):
        name = next(name for name in found.last["measures"] if name.startswith(kind))
        for each in ("losses", "reference", "per_example", "strong"):
            if (array := found.outcomes.get(f"last/measure/{name}/{each}")) is not None:
                array = array[:draws] if array.ndim > 1 else array
                found.outcomes[f"last/measure/{name}/{each}"] = array[..., :images]
        mean = found.outcomes[f"last/measure/{name}/losses"] - found.outcomes[f"last/measure/{name}/reference"]
        if kind == "average-case":
            found.outcomes[f"last/measure/{name}/per_example"] = mean.mean(0)

    return change


def _stray(place, array):
    return lambda found: found.outcomes.update({place: array})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut("average-case", images=3), "its array losses is of 3 examples, not of 250"),
        (_cut("average-case", draws=2), "its array losses is of 2 draws, not of 10"),
        (_cut("worst-case", images=3), "its array per_example is of 3 examples, not of 250"),
        (_stray("last/test/junk/error", np.ones(5, bool)), "'last/test/junk/error' belongs to nothing"),
        (_stray("last/test/clean/junk", np.ones(5)), "'last/test/clean/junk' belongs to nothing"),
        (_stray("middle/test/clean/error", np.ones(5, bool)), "'middle/test/clean/error' belongs to nothing"),
        (_stray("last/measure/mine/per_example", np.ones(5)), "'last/measure/mine/per_example' belongs to nothing"),
    ],
)
def test_arrays_that_the_protocol_does_not_ask_for_are_refused(tmp_path, change, said):
    """Each agrees with the record's numbers: they were computed again from the arrays."""
    (folder,) = submitted(tmp_path / "leaderboard", [fake_run(tmp_path / "runs", "at", 1)])
    rewrite(folder, lambda found: None)
    read_entry(tmp_path / "leaderboard", folder, REGISTRY)
    rewrite(folder, change)
    with pytest.raises(CheckFailed, match=re.escape(said)):
        read_entry(tmp_path / "leaderboard", folder, REGISTRY)


def test_a_measure_that_reads_examples_reads_all_that_the_protocol_asks_for(evidence):
    """A measure whose arrays do not give its n: the trace of the Hessian, from 50 probes."""
    text = resolve(REGISTRY, "measure", "hessian-trace").canonical
    asked, probes = Measured(measure=text, test=250), {f"last/measure/{text}/probes": np.ones(50)}
    for n, count in ((250, 0), (3, 1), (251, 1)):
        found = MeasureResult(value=1.0, standard_error=0.0, n=n, seconds=1.0)
        result = evidence[0].results["last"].model_copy(update={"measures": {text: found}})
        assert len([*example_problems(REGISTRY, "last", result, probes, [asked])]) == count


def test_a_measure_on_training_examples_that_the_protocol_does_not_ask_for_is_refused(tmp_path):
    (folder,) = submitted(tmp_path / "leaderboard", [fake_run(tmp_path / "runs", "at", 1)])
    rewrite(folder, lambda found: found.last.update(measures_train=dict([found.measure()])), recompute=False)
    with pytest.raises(CheckFailed, match="last: its measures on training examples are not the protocol's"):
        read_entry(tmp_path / "leaderboard", folder, REGISTRY)


@pytest.mark.parametrize("m", [None, 0, -3, 1.5, "x"])
def test_a_parameter_m_that_is_no_size_of_a_batch_cuts_nothing_off(m):
    assert counted_examples(250, {"m": m}) == counted_examples(250, {})


def test_whole_batches_may_leave_examples_out():
    """m-sharpness with m = 100 reads 200 of 250 examples, and with m = 300 all of them."""
    for m, n in ((100, 200), (300, 250)):
        counts = counted_examples(250, {"m": m})
        assert [*miscounted("batches", {"per_example": np.ones(n)}, counts)] == []
        assert [*miscounted("batches", {"per_example": np.ones(n - 1)}, counts)]


def test_small_arrays_whose_sum_would_fill_the_memory_are_refused():
    arrays = {"losses": np.zeros((10_000_000, 1), bool), "reference": np.zeros(10_000_000, bool)}
    assert contradictions("draws and examples", arrays, {}) == ["its arrays have shapes that do not belong together"]


def test_arrays_without_a_dimension_are_refused():
    arrays = {"losses": np.zeros((3, 1)), "reference": np.array(7.0)}
    (said,) = contradictions("draws and examples", arrays, {})
    assert "its arrays give no value" in said


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (3, 0)])
def test_arrays_that_are_too_small_for_an_estimate_contradict_every_number_without_a_warning(shape):
    arrays = {"losses": np.ones(shape), "reference": np.zeros(shape[1])}
    stated = {"value": 1.0, "standard_error": 0.1, "n": shape[1]}
    assert contradictions("draws and examples", arrays, stated)
