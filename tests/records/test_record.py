"""Records are evidence: every total follows from the outcomes, and a record that says otherwise is refused."""

import hashlib
import json
import os

import numpy as np
import pytest
from helpers.small_result import OUTCOMES, small_result

from robflat_bench.core import CheckFailed
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.records import record as records
from robflat_bench.records.record import RunRecord, check, malformed, totals
from robflat_bench.records.store import RunFolder, outcomes_bytes, read_arrays, read_record
from robflat_bench.testing.tiny import tiny_protocol

# ---------------------------------------------------------------------------------------------------------
# Totals
# ---------------------------------------------------------------------------------------------------------


def test_totals_are_means_over_examples_and_gaps_are_test_minus_train():
    made = small_result()
    assert made.clean_error == 0.25
    assert made.clean_error_train == 0.5
    assert {name: (pair.test, pair.train) for name, pair in made.robust_error.items()} == {
        "pgd": (0.5, 0.5),
        "fgsm": (2 / 3, None),
    }
    assert (made.robust_loss.test, made.robust_loss.train) == (1.0, 0.375)
    assert (made.gap.robust_error, made.gap.robust_loss) == (0.0, 0.625)


def test_without_training_examples_there_is_no_gap():
    few = {name: array for name, array in OUTCOMES.items() if "/train/" not in name}
    made = totals(few, "best", ["pgd"])
    assert made["clean_error_train"] is None
    assert (made["gap"].robust_error, made["gap"].robust_loss) == (None, None)


def test_a_result_agrees_with_its_outcomes():
    assert check({"best": small_result()}, OUTCOMES) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clean_error": 0.0}, "clean_error is 0.0, its outcomes give 0.25"),
        ({"clean_error_train": None}, "clean_error_train is None"),
        ({"robust_error": {"pgd": {"test": 0.25, "train": 0.5}}}, "robust_error"),
        ({"robust_error": {"pgd": {"test": 0.5, "train": None}}}, "robust_error"),
        ({"robust_loss": {"test": 0.9, "train": 0.375}}, "robust_loss"),
        ({"robust_loss": None}, "robust_loss is None"),
        ({"gap": {"robust_error": 0.5, "robust_loss": 0.625}}, "gap"),
        ({"robust_error": {"apgd": {"test": 0.5}}}, "robust_error"),
    ],
)
def test_a_result_that_disagrees_is_named(changes, says):
    (first, *_) = check({"best": small_result(**changes)}, OUTCOMES)
    assert first.startswith("best: ")
    assert says in first


def test_a_measure_that_disagrees_with_its_examples_is_named():
    made = small_result()
    wrong = made.measures["flat"].model_copy(update={"value": 1.0 + 1e-6})
    changed = made.model_copy(update={"measures": made.measures | {"flat": wrong}})
    (problem,) = check({"best": changed}, OUTCOMES)
    assert "flat is 1.000001 on test, its outcomes give 1.0" in problem


def test_missing_outcomes_are_named():
    assert "outcomes lack 'last/test/clean/error'" in check({"last": small_result()}, OUTCOMES)[0]


# ---------------------------------------------------------------------------------------------------------
# A record on disk
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tamper(finished_copy, command):
    """`tamper(change)` -> the complaint of `results show` after `change(record document)`."""

    def show(change=None, raw=None) -> str:
        path = finished_copy.folder / "record.json"
        document = json.loads(path.read_text())
        if change is not None:
            change(document)
        path.write_text(json.dumps(document) if raw is None else raw(json.dumps(document)))
        done = command("results", "show", finished_copy.key, "--store", finished_copy.store, "--json")
        assert done.code == 3, done
        listed = command("results", "ls", "--store", finished_copy.store, "--json")
        assert listed.code == 3
        assert listed.document == []
        return done.complaint

    return show


def test_an_unchanged_record_is_shown(finished_copy, command):
    done = command("results", "show", finished_copy.key, "--store", finished_copy.store, "--json")
    assert done.code == 0
    assert RunFolder(finished_copy.folder).record().model_dump(mode="json") == finished_copy.record


def change_at(*path, to):
    def change(document):
        node = document
        for step in path[:-1]:
            node = node[step]
        assert node[path[-1]] != to
        node[path[-1]] = to

    return change


PGD = 'pgd(init="uniform", loss="ce", restarts=1, steps=2)'


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (change_at("results", "last", "clean_error", to=0.0001), "clean_error is 0.0001, its outcomes give"),
        (change_at("results", "best", "robust_error", PGD, "test", to=0.0001), "best: robust_error"),
        (change_at("results", "best", "robust_error", PGD, "train", to=None), "best: robust_error"),
        (change_at("results", "last", "robust_loss", "test", to=0.0), "last: robust_loss"),
        (change_at("results", "last", "gap", "robust_error", to=0.0001), "last: gap"),
        (change_at("outcomes", to="0" * 64), "is not the file its record was made with"),
        (change_at("outcomes", to="zero"), "'outcomes' = 'zero'"),
        (lambda document: document.update(rank=1), "unknown key 'rank'"),
        (lambda document: document["results"]["best"].update(rank=1), "rank"),
        (lambda document: document["results"].update(first=document["results"]["best"]), "first"),
        (lambda document: document.pop("budget"), "'budget' is missing"),
        (change_at("schema_version", to=99), "'schema_version' = 99"),
        (change_at("results", "last", "clean_error", to=float("nan")), "'results.last.clean_error' = nan"),
        (change_at("budget", "seconds", to=float("inf")), "'budget.seconds' = inf"),
        (change_at("budget", "forward", to="many"), "'budget.forward' = 'many'"),
        (change_at("results", "last", "robust_loss", "test", to=True), "Input should be a valid number"),
        (lambda document: document.update(seed=True), "Input should be a valid integer"),
        (lambda document: document["results"].pop("last"), "its results lack the checkpoint last"),
        (lambda document: document["results"].pop("best"), "its results lack the checkpoint best"),
        (lambda document: document.update(results={}), "its results lack the checkpoint best"),
        (change_at("key", to="0" * 16), "its key differs from the key in its spec"),
        (change_at("method", to="trades(beta=6.0)"), "its method differs"),
        (change_at("seed", to=2), "its seed differs"),
        (change_at("spec", "recipe", "epochs", to=300), "its key differs"),
        (change_at("spec", "seed", to=2), "its key differs"),
        (change_at("protocol", "hash", to="0" * 64), "its protocol differs"),
    ],
)
def test_a_record_that_was_changed_is_refused(tamper, change, says):
    assert says in tamper(change)


def test_a_flatness_value_follows_from_its_examples(tamper, finished):
    names = [name for name in finished.record["results"]["last"]["measures"] if name.startswith("worst-case")]
    outcomes = read_arrays(finished.folder / "outcomes.npz")
    assert f"last/measure/{names[0]}/per_example" in outcomes
    assert names[0] in tamper(change_at("results", "last", "measures", names[0], "value", to=0.0))


@pytest.mark.parametrize(
    "raw",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text + "{}",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"seed": 1', '"seed": 1e400', 1),
    ],
    ids=range(6),
)
def test_a_file_that_is_not_a_record_is_refused(tamper, raw):
    assert "record.json" in tamper(raw=raw)


def test_a_record_too_large_is_refused(tamper):
    assert f"larger than {records.MAX_BYTES} bytes" in tamper(raw=lambda text: text + " " * records.MAX_BYTES)


def test_a_record_that_is_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(CheckFailed, match=r"record\.json cannot be read: it is not a regular file"):
        read_record(tmp_path / "record.json", RunRecord)


def test_changed_outcomes_are_refused(finished_copy, tamper):
    path = finished_copy.folder / "outcomes.npz"
    whole = path.read_bytes()
    for position in (0, len(whole) // 2, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        assert "is not the file its record was made with" in tamper()
    path.unlink()
    assert "outcomes.npz" in tamper()


def test_outcomes_and_record_forged_together_must_still_agree(finished_copy, tamper):
    path = finished_copy.folder / "outcomes.npz"
    outcomes = read_arrays(path)
    name = "last/test/clean/error"
    outcomes[name] = ~outcomes[name]
    raw = arrays_bytes(outcomes)
    path.write_bytes(raw)
    assert "clean_error" in tamper(change_at("outcomes", to=hashlib.sha256(raw).hexdigest()))


def test_run_checks_a_finished_record_before_it_answers_from_it(finished_copy, command, tiny):
    """`run` answers from a record only after the same check."""
    path = finished_copy.folder / "record.json"
    document = finished_copy.record
    change_at("results", "last", "clean_error", to=0.0001)(document)
    path.write_text(json.dumps(document))
    done = command("run", "--method", "at", "--protocol", tiny, "--store", finished_copy.store)
    assert done.code == 3
    assert "its outcomes give" in done.complaint


def test_a_record_of_the_previous_schema_version_still_loads(finished_copy):
    """Version 1 had no measures on training examples, no passes of a measure and no reasons."""
    document = finished_copy.record
    document["schema_version"] = 1
    for result in document["results"].values():
        del result["measures_train"]
        for measure in result["measures"].values():
            for name in ("forward", "backward", "reason"):
                del measure[name]
    (finished_copy.folder / "record.json").write_text(json.dumps(document))
    record = RunFolder(finished_copy.folder).record()
    assert record.schema_version == 2
    assert all(result.measures_train == {} for result in record.results.values())
    assert {measure.forward for measure in record.results["last"].measures.values()} == {0}


def test_disagreeing_results_are_never_written(finished):
    record, outcomes = RunFolder(finished.folder).evidence()
    wrong = {**record.results, "last": record.results["last"].model_copy(update={"clean_error": 0.5e-3})}
    with pytest.raises(CheckFailed, match="clean_error"):
        outcomes_bytes(wrong, outcomes)
    assert hashlib.sha256(outcomes_bytes(record.results, outcomes)).hexdigest() == record.outcomes


BITS, LOSSES = np.ones(3, dtype=bool), np.ones(3)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("last/test/clean/error", LOSSES),
        ("last/test/clean/loss", BITS),
        ("last/train/pgd/loss", np.ones((3, 2))),
        ("last/train/pgd/loss", np.array([1.0, np.nan])),
        ("last/train/pgd/loss", np.ones(0)),
        ("last/train/pgd/error", BITS),
        ("last/measure/mine/per_example", np.array([1.0, np.inf])),
        ("last/measure/mine/per_example", np.ones(0)),
        ("last/measure-train/mine/per_example", np.ones((3, 2))),
        ("last/measure/mine/kept", np.array(["one"])),
        ("last/measure/mine/kept", np.array([None])),
    ],
)
def test_arrays_that_no_evaluation_writes_are_named(finished, name, array):
    results = RunFolder(finished.folder).record().results
    (problem,) = malformed({name: array}, results)
    assert name in problem


@pytest.mark.parametrize("split", ["measure", "measure-train"])
@pytest.mark.parametrize("name", ["error", "loss", "kept"])
@pytest.mark.parametrize("array", [np.ones((5, 3)), np.zeros(0), np.array(np.nan), BITS, np.zeros(3, dtype=np.uint8)])
def test_a_measure_may_keep_arrays_of_any_name_and_shape(finished, split, name, array):
    results = RunFolder(finished.folder).record().results
    assert malformed({f"last/{split}/mine(of=1)/{name}": array}, results) == []


KEEPING = """
import numpy as np
from robflat_bench.api import Measure, MeasureInfo, Measurement, Params, hookimpl

class Which(Params):
    what: str

class Keeping(Measure):
    def measure(self, model, examples, workspace):
        n = len(examples)
        return {
            "own": Measurement(1.0, None, n, arrays={"loss": np.zeros((5, n)), "error": np.zeros(0)}),
            "words": Measurement(1.0, None, n, arrays={"kept": np.array(["one"])}),
            "objects": Measurement(1.0, None, n, arrays={"kept": np.array([None])}),
            "infinite": Measurement(np.inf, None, n, arrays={"per_example": np.full(n, np.inf), "kept": np.ones(2)}),
            "unsure": Measurement(1.0, np.nan, n),
            "detailed": Measurement(1.0, 0.5, n, details={"slope": -np.inf}),
        }[self.params.what]

@hookimpl
def robflat_bench_measures():
    return [MeasureInfo("keeping", "-", "keeping:Keeping", Which)]
"""


def test_a_measures_arrays_and_values_are_written_only_if_they_can_be_read(command, tmp_path, site):
    """A run that ended well is one that can be shown; a fault is a failed run, and a line that names the measure."""
    site.install("keeping", {"keeping.py": KEEPING})

    def run(*kinds: str):
        path = tmp_path / "tiny.toml"
        tables = [f'\n[[fixed.measures]]\nmeasure = "keeping(what={kind})"\ntest = 9\n' for kind in kinds]
        path.write_text(tiny_protocol(more="".join(tables)))
        return command("run", "--method", "standard", "--protocol", path, "--store", tmp_path / "store", "--json")

    done = run("own", "infinite", "unsure", "detailed")
    assert done.code == 0, done.err
    shown = command("results", "show", done.document["key"], "--store", tmp_path / "store", "--json")
    assert shown.code == 0, shown.err
    own, *others = done.document["results"]["last"]["measures"].values()
    assert (own["value"], own["reason"]) == (1.0, "")
    assert [(found["value"], found["standard_error"], found["details"]) for found in others] == 3 * [(None, None, {})]
    reasons = [found["reason"] for found in others]
    assert reasons == ["it is inf here", "its standard error is nan here", "its detail slope is -inf here"]

    for kind in ("words", "objects"):
        failed = run(kind)
        assert failed.code == 3
        assert f"'best/measure/keeping(what=\"{kind}\")/kept' is " in failed.err.splitlines()[-1]
        weights = next(tmp_path.glob("store/*/*/*/checkpoints/last.safetensors"))
        model = ["evaluate", weights, "--protocol", tmp_path / "tiny.toml", "--store", tmp_path / "store"]
        assert command(*model, "--measure", f"keeping(what={kind})").code == 3
    assert len([*tmp_path.glob("store/*/*/*/failed.json")]) == 2
    assert len([*tmp_path.glob("store/*/*/*/record.json")]) == 1
    assert [*tmp_path.glob("store/*/external/*/evaluations/*.*")] == []


def test_a_record_has_the_promised_fields():
    assert set(RunRecord.model_fields) >= {
        "schema_version",
        "key",
        "spec",
        "protocol",
        "method",
        "seed",
        "dataset",
        "results",
        "budget",
        "extra_data",
        "history",
        "environment",
        "provenance",
    }


def test_arrays_of_half_precision_are_bounded_without_overflow():
    halves = {"last/measure/average-case/per_example": np.array([-1.0, 60_000.0], np.float16)}
    assert malformed(halves, ["last"]) == []
