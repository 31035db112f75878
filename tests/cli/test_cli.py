"""The command line end to end on a tiny protocol: what scripts depend on, and the messages when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers.commands import promised

import robflat_bench
from robflat_bench.core import Interrupted
from robflat_bench.front import progress
from robflat_bench.front.catalogue import example_line
from robflat_bench.front.kinds import KINDS
from robflat_bench.numerics.weights import digest, read_weights

PGD = 'pgd(init="uniform", loss="ce", restarts=1, steps=2)'


@pytest.fixture
def run(command, tiny, tmp_path):
    """`run("--seed", 2)`: `robflat-bench run --method at` under the tiny protocol in a store of the test's own."""

    def here(*arguments, method="at"):
        return command("run", "--method", method, "--protocol", tiny, "--store", tmp_path / "store", *arguments)

    return here


# ---------------------------------------------------------------------------------------------------------
# Entrances
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", [[sys.executable, "-m", "robflat_bench"], [sys.executable, "-P", "-m", "robflat_bench"]]
)
def test_it_runs_as_a_module(program, child_environment, tmp_path):
    done = subprocess.run(
        [*program, "--version"], env=child_environment(), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"robflat-bench, version {robflat_bench.__version__}\n"


def test_help_shows_its_square_brackets(command):
    for name, words in (("evaluate", "[default: the data's classes]"), ("landscape", "[default: the store]")):
        assert words in " ".join(command(name, "--help").out.replace("│", " ").split())


def test_help_names_every_command(command):
    done = command("--help")
    assert done.code == 0
    for name in ("run", "sweep", "evaluate", "list", "info", "doctor", "results", "plugin", "completion"):
        assert f" {name} " in done.out
    for name in ("run", "sweep", "evaluate", "list", "info", "doctor", "results", "plugin"):
        assert command(name, "--help").code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion_script(command, shell):
    done = command("completion", shell)
    assert done.code == 0
    assert "_ROBFLAT_BENCH_COMPLETE" in done.out
    assert "robflat-bench" in done.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_reads_its_completion(command, tmp_path):
    script = tmp_path / "completion.sh"
    script.write_text(command("completion", "bash").out)
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["run"],
        ["run", "--method"],
        ["run", "--method", "at", "--seed", "one"],
        ["run", "--method", "at", "--seed", "-1"],
        ["run", "--method", "at", "--device", "tpu"],
        ["list", "things"],
        ["completion", "tcsh"],
        ["evaluate"],
        ["evaluate", "x", "--examples", "0"],
        ["sweep"],
        ["sweep", "paper-digits", "--seeds", "0"],
        ["sweep", "paper-digits", "--jobs", "0"],
        ["results", "show"],
        ["--frobnicate"],
    ],
    ids=" ".join,
)
def test_an_invalid_command_line_exits_with_2(command, arguments):
    done = command(*arguments)
    assert done.code == 2
    assert "`robflat-bench " in done.complaint, "in one line, as every other mistake, with the next line to type"


# ---------------------------------------------------------------------------------------------------------
# list and info
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_everything_listed_has_information(command, kind):
    rows = command("list", kind, "--json").document
    assert rows == sorted(rows, key=lambda row: row["name"])
    table = command("list", kind)
    assert table.code == 0
    for row in rows:
        assert set(row) >= {"name", "summary", "provider", "parameters"}
        assert row["summary"]
        assert row["provider"] == f"robflat-bench {robflat_bench.__version__}"
        for parameter in row["parameters"]:
            assert set(parameter) == {"name", "type", "default", "range", "description"}
        assert f" {row['name']} " in table.out
        told = command("info", row["name"], "--json").document
        assert {key: told[key] for key in row} == row
        assert told.keys() - row.keys() <= {"source"}
        shown = command("info", row["name"])
        assert (shown.code, shown.err) == (0, "")
        assert row["summary"] in shown.out
        assert all(parameter["name"] in shown.out for parameter in row["parameters"])


@pytest.mark.parametrize(
    ("kind", "defaults", "line"),
    [
        ("attack", {"steps": 10}, "evaluate RUN --attack x"),
        ("attack", {"name": "required", "steps": 10}, 'evaluate RUN --attack "x(name=NAME)"'),
        ("modifier", {"a": "required", "b": "required"}, 'run --method "at+x(a=A, b=B)"'),
        ("dataset", {"file": "required"}, 'evaluate RUN --dataset "x(file=FILE)" --data DIR'),
    ],
)
def test_the_next_line_names_what_a_component_cannot_do_without(kind, defaults, line):
    parameters = [{"name": name, "default": default} for name, default in defaults.items()]
    assert example_line({"kind": kind, "name": "x", "parameters": parameters}) == f"robflat-bench {line}"


def test_a_list_is_narrowed_by_a_glob(command):
    assert [row["name"] for row in command("list", "backbones", "wrn-*-10", "--json").document] == [
        "wrn-28-10",
        "wrn-34-10",
    ]
    assert [row["name"] for row in command("list", "protocols", "*mini", "--json").document] == ["cifar10-mini"]
    assert command("list", "methods", "x*", "--json").document == []


def test_info_on_an_unknown_name_suggests_the_nearest(command):
    done = command("info", "trade")
    assert done.code == 2
    assert "nothing is called 'trade'; did you mean 'trades'?" in done.complaint
    assert "not a kind" in command("info", "thing:trades").complaint
    assert command("info", "attack:trades").code == 2


# ---------------------------------------------------------------------------------------------------------
# run
# ---------------------------------------------------------------------------------------------------------


def test_a_run_shows_its_result_on_stdout_and_its_progress_on_stderr(finished):
    done = finished.done
    assert done.code == 0
    for text in (
        "at  |  tiny 1.0, seed 1",
        "best",
        "last",
        "clean error, test",
        "robust error, test: PGD-2 x 1",
        "robust error, train: PGD-2 x 1",
        "average-case flatness (reattack), xi=0.5, 2 draws",
        "worst-case flatness (joint), xi=0.03, 1 restarts",
        "gap in robust error",
        "worst case of 1 attack, test, n=30 (boards rank it)",
        "worst case of 2 attacks, test, n=20 (boards rank it)",
        "not ranked: tiny is no protocol of `robflat-bench list protocols`; next",
        f"    robflat-bench results show {finished.key[:8]} --store ",
        "±",
        f"record: {finished.folder / 'record.json'}",
    ):
        assert text in done.out, text
    for text in ("training: 2 epochs, 6 steps", "epoch 1/2: loss", "epoch 2/2: loss", "evaluation: ", "last: clean"):
        assert text in done.err, text
        assert text not in done.out
    assert "Traceback" not in done.err
    assert "\x1b" not in done.out + done.err


def test_a_run_writes_exactly_the_promised_files(finished):
    found = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    assert found == {
        "spec.json",
        "history.jsonl",
        "checkpoints/best.safetensors",
        "checkpoints/initial.safetensors",
        "checkpoints/last.safetensors",
        "record.json",
        "outcomes.npz",
    }
    history = [json.loads(line) for line in (finished.folder / "history.jsonl").read_text().splitlines()]
    assert history == finished.record["history"]
    assert [row["epoch"] for row in history] == [0, 1]
    assert json.loads((finished.folder / "spec.json").read_text()) == finished.record["spec"]


def test_the_record_has_the_fields_of_the_contract(finished):
    record = finished.record
    assert record["schema_version"] == 2
    assert record["key"] == finished.key
    assert set(record["protocol"]) == {"name", "version", "hash"}
    assert record["method"] == record["spec"]["method"] == "at"
    assert record["seed"] == 1
    assert record["dataset"]["name"] == "digits"
    assert record["dataset"]["canonical"] is True
    assert len(record["dataset"]["checksum"]) == 64
    assert record["extra_data"] is False
    assert set(record["results"]) == {"best", "last"}
    for name, result in record["results"].items():
        assert set(result["robust_error"][PGD]) == {"test", "train"}
        assert set(result["robust_loss"]) == {"test", "train"}
        assert set(result["gap"]) == {"robust_error", "robust_loss"}
        assert 0 <= result["clean_error"] <= result["robust_error"][PGD]["test"] <= 1
        gap = result["robust_error"][PGD]["test"] - result["robust_error"][PGD]["train"]
        assert result["gap"]["robust_error"] == gap
        assert ("fgsm" in result["robust_error"]) == (name == "last")
        assert len(result["measures"]) == (2 if name == "last" else 1)
        for measure in result["measures"].values():
            assert set(measure) >= {"value", "standard_error", "n", "seconds"}
            assert measure["n"] == 30
        assert set(result["flags"]) >= {"zero_gradients", "random_forward", "pgd_beats_autoattack"}
        assert digest(read_weights(finished.folder / "checkpoints" / f"{name}.safetensors")) == result["weights"]
    # AT with two attack steps and the best iterate kept: four forward and three backward passes of 2 x 60 images.
    budget = record["budget"]
    assert (budget["forward"], budget["backward"]) == (4 * 120, 3 * 120)
    assert budget["seconds"] >= budget["evaluation_seconds"] > 0
    assert budget["peak_memory_bytes"] > 0
    assert record["environment"]["threads"] == 1
    assert record["environment"]["device"] == "cpu"
    assert record["environment"]["packages"]["torch"]
    assert record["provenance"]["robflat_bench"] == robflat_bench.__version__
    assert len(record["provenance"]["source"]) == 64


def test_a_finished_run_is_shown_from_its_record_without_training(finished, command, tiny):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    began = time.perf_counter()
    arguments = ["run", "--method", "at()", "--protocol", tiny, "--store", finished.store, "--seed", "1"]
    done = command(*arguments, "--json")
    assert time.perf_counter() - began < 2
    assert done.code == 0
    assert done.document == finished.record
    assert "epoch" not in done.err
    assert command(*arguments).out == finished.done.out
    after = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    after.pop(finished.folder, None), before.pop(finished.folder, None)
    assert after == before


def test_the_same_run_anywhere_has_the_same_numbers(finished, run, tmp_path):
    done = run("--json")
    assert done.code == 0, done.err
    assert promised(done.document) == promised(finished.record)
    again = run("--fresh", "--json")
    assert "epoch 1/2" in again.err
    assert promised(again.document) == promised(finished.record)
    assert len(list(tmp_path.rglob("record.json"))) == 1


def test_other_seeds_and_recipes_have_folders_of_their_own(finished, run, tmp_path):
    other = run("--seed", "2", "--set", "recipe.epochs=1", "--json", method="trades(beta=3)")
    assert other.code == 0, other.err
    record = other.document
    assert record["results"]["last"]["weights"] != finished.record["results"]["last"]["weights"]
    assert record["protocol"] == finished.record["protocol"]
    (folder,) = (tmp_path / "store" / "tiny").glob("trades-beta=3.0-epochs=1/seed-2-*")
    assert folder.name.endswith(record["key"])
    assert record["spec"]["label"] == "trades(beta=3.0) [epochs=1]"


def test_a_plan_writes_no_file(finished, run, command, tiny, tmp_path):
    done = run("--plan", "--json")
    assert done.code == 0
    plan = done.document
    assert (plan["state"], plan["key"]) == ("new", finished.key)
    assert plan["spec"] == finished.record["spec"]
    assert not (tmp_path / "store").exists()
    table = run("--plan")
    for text in (finished.key, "seed 1", "scikit-learn digits", "2 epochs on 60 images", "average-case"):
        assert text in table.out
    arguments = ["run", "--method", "at", "--protocol", tiny, "--store", finished.store, "--plan", "--json"]
    assert command(*arguments).document["state"] == "done"
    assert command(*arguments, "--fresh").document["state"] == "new"


# ---------------------------------------------------------------------------------------------------------
# results
# ---------------------------------------------------------------------------------------------------------


def test_results_are_listed_and_shown(finished, command):
    (row,) = command("results", "ls", "--store", finished.store, "--json").document
    assert row["key"] == finished.key
    assert (row["run"], row["seed"], row["state"]) == ("at", 1, "done")
    assert row["robust_error"][PGD] == finished.record["results"]["last"]["robust_error"][PGD]["test"]
    assert finished.key[:8] in command("results", "ls", "--store", finished.store).out

    shown = command("results", "show", finished.key[:6], "--store", finished.store)
    assert shown.code == 0
    assert shown.out == finished.done.out
    document = command("results", "show", finished.folder, "--json").document
    assert document == {**finished.record, "evaluations": []}


def test_an_empty_store_lists_nothing_and_is_not_created(command, tmp_path):
    assert command("results", "ls", "--store", tmp_path / "none", "--json").document == []
    assert command("results", "ls", "--store", tmp_path / "none").code == 0
    assert not (tmp_path / "none").exists()
    done = command("results", "show", "abc", "--store", tmp_path)
    assert done.code == 2
    assert "'abc' is no run" in done.complaint


# ---------------------------------------------------------------------------------------------------------
# evaluate
# ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_is_added_beside_the_record(finished_copy, command, tiny):
    folder, store = finished_copy.folder, finished_copy.store
    before = (folder / "record.json").read_bytes()
    arguments = ["evaluate", finished_copy.key, "--protocol", tiny, "--store", store, "--json"]
    arguments += ["--attack", "pgd(steps=3)", "--measure", "average-case(draws=3, steps=1)", "--examples", "20"]
    done = command(*arguments)
    assert done.code == 0, done.err
    added = done.document
    (result,) = added["results"].values()
    attack = PGD.replace("steps=2", "steps=3")
    assert list(result["robust_error"]) == [attack]
    assert result["weights"] == finished_copy.record["results"]["last"]["weights"]
    ((name, measure),) = result["measures"].items()
    assert name.startswith("average-case(")
    assert "draws=3" in name
    assert measure["n"] == 20
    assert (folder / "record.json").read_bytes() == before
    (file,) = (folder / "evaluations").glob("*.json")
    assert file.stem == added["key"]
    assert json.loads(file.read_text()) == added
    assert sorted(path.suffix for path in (folder / "evaluations").iterdir()) == [".json", ".npz"]

    began = time.perf_counter()
    again = command(*arguments)
    assert again.document == added
    assert "done" not in again.err
    assert time.perf_counter() - began < 2

    document = command("results", "show", finished_copy.key, "--store", store, "--json").document
    assert document["evaluations"] == [added]
    shown = command("results", "show", finished_copy.key, "--store", store)
    assert f"added: {added['key']}" in shown.out
    assert "PGD-3 x 1" in shown.out

    other = command(*arguments, "--checkpoint", "best")
    assert other.code == 0
    (best,) = other.document["results"].values()
    assert best["weights"] == finished_copy.record["results"]["best"]["weights"]
    tampered = json.loads(file.read_text())
    next(iter(tampered["results"].values()))["clean_error"] = 0.0001
    file.write_text(json.dumps(tampered))
    refused = command("results", "show", finished_copy.key, "--store", store)
    assert refused.code == 3
    assert "its outcomes give" in refused.complaint


def test_an_evaluation_by_the_protocol_repeats_the_record(finished_copy, command, tiny):
    done = command("evaluate", finished_copy.folder, "--protocol", tiny, "--store", finished_copy.store, "--json")
    assert done.code == 0, done.err
    (result,) = done.document["results"].values()
    expected = finished_copy.record["results"]["last"]
    for part in ("clean_error", "robust_error", "robust_loss", "gap", "flags", "weights"):
        assert result[part] == expected[part]
    values = {name: measure["value"] for name, measure in result["measures"].items()}
    assert values == {name: measure["value"] for name, measure in expected["measures"].items()}


def test_measures_on_test_and_training_examples_each_with_its_value_or_the_reason(finished_copy, command, tiny):
    arguments = ["evaluate", finished_copy.key, "--protocol", tiny, "--store", finished_copy.store, "--examples", "20"]
    arguments += ["--train", "10", "--measure", "distance-from-i*", "--measure", "margin(coupling=clean)"]
    arguments += ["--measure", "local-entropy(coupling=clean, gamma=1e-4, draws=6)"]
    done = command(*arguments, "--json")
    assert done.code == 0, done.err
    (result,) = done.document["results"].values()
    distance, margin, entropy = result["measures"].values()
    assert distance["value"] > 0
    assert (margin["n"], margin["forward"], margin["backward"]) == (20, 20, 0)
    train = list(result["measures_train"].values())[1]
    assert (train["n"], train["forward"]) == (10, 10)
    assert train["value"] != margin["value"]
    assert entropy["value"] is entropy["standard_error"] is None
    assert "the effective sample size is" in entropy["reason"]
    table = command(*arguments)
    assert "none: local-entropy: the effective sample size is" in table.out
    assert f"{margin['value']:.3f} ± {margin['standard_error']:.3f}" in table.out

    begun = command(*arguments, "--checkpoint", "initial", "--json").document
    (result,) = begun["results"].values()
    assert next(iter(result["measures"].values()))["value"] == 0
    missing = command(*arguments, "--checkpoint", "epoch-0001")
    assert missing.code == 2
    assert "only best, last, initial; train it again with `robflat-bench run ... --keep-every N" in missing.complaint

    weights = finished_copy.folder / "checkpoints" / "last.safetensors"
    elsewhere = command("evaluate", weights, *arguments[2:], "--json")
    (result,) = elsewhere.document["results"].values()
    assert "the initial weights are not known" in next(iter(result["measures"].values()))["reason"]


SHIFT = """
from robflat_bench.api import Attack, AttackInfo, hookimpl

class Shift(Attack):
    def perturb(self, model, examples, seed):
        return (examples.x + {step} * self.threat.epsilon).clamp(0, 1)

@hookimpl
def robflat_bench_attacks():
    return [AttackInfo("shift", "-", "shifting:Shift")]
"""


def test_another_network_plugin_or_initial_weights_is_another_evaluation(finished_copy, command, tiny, tmp_path, site):
    """Weights fit other networks too; a plugin and the initial weights may change beneath an equal plan."""
    begun = finished_copy.folder / "checkpoints" / "initial.safetensors"
    weights = tmp_path / "mine.safetensors"
    shutil.copy(finished_copy.folder / "checkpoints" / "last.safetensors", weights)
    common = ["--protocol", tiny, "--store", finished_copy.store, "--json"]

    def evaluated(*arguments) -> dict:
        done = command("evaluate", *arguments, *common)
        assert done.code == 0, done.err
        (result,) = done.document["results"].values()
        return {"key": done.document["key"], **{name: result[name] for name in ("robust_loss", "measures")}}

    plain = evaluated(weights, "--attack", "fgsm")
    silu = evaluated(weights, "--attack", "fgsm", "--set", "recipe.activation=silu")
    strided = evaluated(weights, "--attack", "fgsm", "--backbone", "resnet8(width=4, strides=[1, 1, 1])")
    assert len({found["robust_loss"]["test"] for found in (plain, silu, strided)}) == 3
    assert evaluated(weights, "--attack", "fgsm") == plain

    site.install("shifting", {"shifting.py": SHIFT.format(step=1)})
    shifted = evaluated(weights, "--attack", "shift")
    site.install("shifting", {"shifting.py": SHIFT.format(step=-1)})
    assert evaluated(weights, "--attack", "shift")["robust_loss"] != shifted["robust_loss"]

    asked = [finished_copy.key, "--attack", "fgsm"]
    attack, distance = evaluated(*asked), evaluated(*asked, "--measure", "distance-from-init")
    shutil.copy(weights, begun)
    assert evaluated(*asked) == attack
    assert evaluated(*asked, "--measure", "distance-from-init")["measures"] != distance["measures"]


def test_a_weights_file_is_evaluated_without_a_run(finished, command, tiny, tmp_path):
    weights = tmp_path / "mine.safetensors"
    shutil.copy(finished.folder / "checkpoints" / "last.safetensors", weights)
    common = ["--protocol", tiny, "--store", tmp_path / "store", "--attack", PGD, "--json"]
    done = command("evaluate", weights, *common)
    assert done.code == 0, done.err
    (result,) = done.document["results"].values()
    assert result["robust_error"][PGD]["test"] == finished.record["results"]["last"]["robust_error"][PGD]["test"]
    (file,) = tmp_path.glob("store/tiny/external/*/evaluations/*.json")
    assert file.parents[1].name == result["weights"][:16]

    wrong = command("evaluate", weights, "--backbone", "resnet8(width=8)", *common)
    assert wrong.code == 2
    assert "'network.head.weight' is (10, 16) there and (10, 32) here" in wrong.complaint
    for damage, code in ((b"", 3), (weights.read_bytes()[:-1], 3), (weights.read_bytes()[:-1] + b"\x7f", 3)):
        bad = tmp_path / "bad.safetensors"
        bad.write_bytes(damage)
        refused = command("evaluate", bad, *common)
        assert refused.code == code
        assert "bad.safetensors" in refused.complaint


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("none.safetensors", "none.safetensors: no such file"),
        ("0123456789abcdef", "is no run"),
        ("resnet9(width=4)", "did you mean 'resnet8'?"),
        ("resnet8(width=0)", "'width' = 0"),
    ],
)
def test_unknown_models_exit_with_2(command, tiny, tmp_path, model, says):
    done = command("evaluate", model, "--protocol", tiny, "--store", tmp_path)
    assert done.code == 2
    assert says in done.complaint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--attack", "pdg"], "did you mean 'pgd'?"),
        (["--measure", "average-case(draws=0)"], "'draws' = 0"),
        (["--attack", "fgsm", "--examples", "31"], "there are 30 test examples"),
        (["--train", "9999"], "train examples; ask for fewer"),
        (["--protocol", "digits-linf"], "pass the original file: --protocol FILE.toml"),
    ],
)
def test_impossible_evaluations_exit_with_2_and_write_nothing(finished, command, tiny, options, says):
    done = command("evaluate", finished.key, "--protocol", tiny, "--store", finished.store, *options)
    assert done.code == 2
    assert says in done.complaint
    assert not (finished.folder / "evaluations").exists()


# ---------------------------------------------------------------------------------------------------------
# doctor
# ---------------------------------------------------------------------------------------------------------


def test_doctor_describes_this_machine(command, tmp_path):
    done = command("doctor", "--json", "--store", tmp_path / "store")
    assert done.code == 0
    document = done.document
    assert document["problems"] == []
    assert document["environment"]["packages"]["torch"]
    assert document["environment"]["threads"] >= 1
    assert document["data"]["digits"] == ["scikit-learn digits (1,797 images)"]
    assert document["plugins"]["robflat-bench:methods"]["version"] == robflat_bench.__version__
    assert "no problems" in command("doctor", "--store", tmp_path / "store").out


def test_doctor_finds_an_unwritable_store(command):
    done = command("doctor", "--json", "--store", "/dev/null/store")
    assert done.code == 3
    (problem,) = done.document["problems"]
    assert "/dev/null/store cannot be written" in problem
    assert "1 problem found" in done.err


# ---------------------------------------------------------------------------------------------------------
# Bad input: one line, the right code, nothing lost
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "trade"], "unknown method 'trade'; did you mean 'trades'?"),
        (["--method", "trades(bet=1)"], "unknown key 'bet'; did you mean 'beta'?"),
        (["--method", "trades(beta=-1)"], "'beta' = -1"),
        (["--method", "trades("], "brackets or quotes do not match"),
        (["--method", "at+aw"], "unknown modifier 'aw'; did you mean 'awp'?"),
        (["--method", "at+awp(gama=0.1)"], "modifier awp: unknown key 'gama'; did you mean 'gamma'?"),
        (["--method", "at+awp+sam"], "awp and sam both replace the backward of a training step"),
        (["--method", "at+ema+ema"], "ema is given twice"),
        (["--method", "ema+at"], "ema is a modifier; write METHOD+MODIFIER"),
        (["--method", "at+trades"], "trades is a method; write METHOD+MODIFIER"),
        (["--method", "standard+pgd-tau"], "standard has its own attack, which pgd-tau would change"),
        (["--method", "at+"], "is not a component"),
        (["--method", "at", "--protocol", "digits-inf"], "did you mean 'digits-linf'?"),
        (["--method", "at", "--protocol", "none.toml"], "cannot be read"),
        (["--method", "at", "--set", "recipe.epochs=0"], "'recipe.epochs' = 0"),
        (["--method", "at", "--set", "recipe.optimizer=adan"], "unknown optimizer 'adan'"),
        (["--method", "at", "--set", "fixed.data.train.count=61"], "holds 60 of the 61 'train' images"),
        (["--method", "at", "--set", "fixed.data.test.pool=validation"], "has no 'validation' images"),
        (["--method", "at", "--plugin", "none.py"], "no such file"),
        (["--method", "at", "--store", "/dev/null/store"], "cannot write /dev/null/store"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:4]),
)
def test_bad_input_is_one_line_on_stderr_and_exits_with_2(command, tiny, tmp_path, arguments, says):
    defaults = ["--protocol", tiny, "--store", tmp_path]
    done = command("run", *defaults, *arguments, "--json")
    assert done.code == 2
    assert says in done.complaint
    assert not list(tmp_path.iterdir())


def test_absent_cuda_exits_with_2(run, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = run("--device", "cuda")
    assert done.code == 2
    assert "--device cuda: torch finds no CUDA device" in done.complaint
    assert "--device cpu" in done.complaint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [None, "empty", "missing"])
def test_missing_data_names_every_place_and_option(command, tmp_path, monkeypatch, data):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "empty").mkdir()
    place = ["--data", tmp_path / data] if data else []
    done = command("run", "--method", "at", "--protocol", "cifar10-mini", "--store", tmp_path / "store", *place)
    assert done.code == 2
    for text in ("cifar-10-batches-py", "train-*.parquet", "--data DIR", "ROBFLAT_BENCH_DATA"):
        assert text in done.complaint
    assert data is None or str(tmp_path / data) in done.complaint
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "settings", [[], ["--set", "recipe.batch_size=60"]], ids=["in a step", "in the held-out check"]
)
def test_a_diverged_run_says_where_and_leaves_no_result(run, command, tmp_path, settings):
    done = run("--set", "recipe.learning_rate=1e30", *settings, "--json")
    assert done.code == 1
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "epoch 0" in done.err.splitlines()[-1]
    assert "learning_rate" in done.err.splitlines()[-1]
    (failed,) = tmp_path.rglob("failed.json")
    failure = json.loads(failed.read_text())
    assert failure["error"] in done.err
    assert "Traceback" in failure["trace"]
    assert not list(tmp_path.rglob("record.json"))
    (row,) = command("results", "ls", "--store", tmp_path / "store", "--json").document
    assert row["state"] == "failed"
    shown = command("results", "show", row["key"], "--store", tmp_path / "store")
    assert shown.code == 2
    assert "is not finished" in shown.complaint


def test_a_full_disk_fails_the_run_and_the_next_one_resumes(finished, run, monkeypatch, tmp_path):
    import errno

    from robflat_bench.records import store as stores

    real, left = os.fsync, 7

    def fsync(handle):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(stores.os, "fsync", fsync)
    done = run()
    assert done.code == 1
    assert done.out == ""
    assert "No space left on device" in done.err.splitlines()[-1]
    assert "it resumes" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("record.json"))
    assert not list(tmp_path.rglob(".tmp-*"))
    monkeypatch.setattr(stores.os, "fsync", real)
    again = run("--json")
    assert again.code == 0
    assert "epoch 1/2" not in again.err
    assert promised(again.document) == promised(finished.record)
    assert not list(tmp_path.rglob("failed.json"))


def test_after_a_damaged_checkpoint_a_run_ends_with_the_same_numbers(finished, run, monkeypatch, tmp_path):
    def interrupted(self, stages):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, "evaluation_starts", interrupted)
        assert run().code == 130
    for damaged in sorted(tmp_path.rglob("state-*.safetensors"))[-1:]:
        damaged.write_bytes(damaged.read_bytes()[:-5])
    done = run("--json")
    assert done.code == 0
    assert promised(done.document) == promised(finished.record)


# ---------------------------------------------------------------------------------------------------------
# Ctrl-C
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "number"),
    [("step_ends", 2), ("epoch_ends", 1), ("epoch_ends", 2), ("unit_ends", 2), ("stage_ends", 2)],
)
def test_after_ctrl_c_at_any_moment_a_run_ends_with_the_same_numbers(finished, run, monkeypatch, moment, number):
    real, calls = getattr(progress.Progress, moment), 0

    def signalled(self, *arguments):
        nonlocal calls
        calls += 1
        real(self, *arguments)
        if calls == number:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress.Progress, moment, signalled)
        done = run()
    assert done.code == 130
    assert done.out == ""
    assert done.err.splitlines()[-1] == "robflat-bench: interrupted; run the same command again, it resumes"
    again = run("--json")
    assert again.code == 0
    assert "epoch 1/2" not in again.err or (moment, number) == ("step_ends", 2)
    assert promised(again.document) == promised(finished.record)


def test_after_a_real_sigint_a_run_ends_with_the_same_weights(command, tiny, tmp_path, child_environment):
    """A real signal to a real process in the middle of training; meanwhile, its run is its own."""
    options = ["--method", "at", "--protocol", str(tiny), "--set", "recipe.epochs=12"]
    store = ["--store", str(tmp_path / "store")]
    process = subprocess.Popen(
        [sys.executable, "-m", "robflat_bench", "run", *options, *store],
        env=child_environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "epoch 2/12" in line:
                break
        assert process.poll() is None, said
        process.send_signal(signal.SIGSTOP)  # it trains no further while we look
        held = command("run", *options, *store)
        assert held.code == 1
        assert f"process {process.pid} on " in held.complaint
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "robflat-bench: interrupted; run the same command again, it resumes"
    assert "Traceback" not in err
    assert "epoch 12/12" not in err

    resumed = command("run", *options, *store, "--json")
    assert resumed.code == 0
    assert "resuming at" in resumed.err
    undisturbed = command("run", *options, "--store", tmp_path / "undisturbed", "--json")
    assert "resuming at" not in undisturbed.err
    assert promised(resumed.document) == promised(undisturbed.document)
    weights = [digest(read_weights(path)) for path in sorted(tmp_path.rglob("last.safetensors"))]
    assert len(weights) == 2
    assert weights[0] == weights[1] == resumed.document["results"]["last"]["weights"]


WITHOUT_TORCH = """
import sys
from robflat_bench.cli import main

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch is imported now")

sys.meta_path.insert(0, Refuses())
main()
"""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_run_says_what_it_is_before_torch_is_imported(child_environment, tmp_path, form):
    line = ["run", "--method", "trades(beta=3)", "--seed", "7", "--store", "here", "--device", "cpu", *form]
    program = [sys.executable, "-c", WITHOUT_TORCH, *line]
    done = subprocess.run(program, env=child_environment(), cwd=tmp_path, capture_output=True, text=True, check=False)
    first = done.stderr.splitlines()[0]
    assert first.endswith("s] trades(beta=3.0), seed 7, under digits-linf 1.0; device cpu, store here"), done.stderr
    assert "torch is imported now" in done.stderr
    assert done.stdout == ""
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("run", ["Ctrl-C, SIGTERM and SIGHUP", "docs/quickstart.md", "torchrun", "docs/methods.md"]),
        ("sweep", ["Ctrl-C, SIGTERM or SIGHUP", "docs/sweeps.md", "torchrun", "docs/methods.md"]),
    ],
)
def test_help_says_what_signals_and_torchrun_do(command, words, says):
    shown = " ".join(command(words, "--help").out.split())
    for text in says:
        assert text in shown
