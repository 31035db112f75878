"""Published numbers as reference rows and as a check of records; the commands and the protocol, as they are typed."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tomllib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robflat_bench.api import UsageError
from robflat_bench.cli import main
from robflat_bench.config.protocol import load
from robflat_bench.leaderboard.entries import references
from robflat_robustbench import MODELS
from robflat_robustbench.published import merged, problems, published
from robflat_robustbench.zoo import zoo


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def typed(monkeypatch):
    """`robflat-bench ARGUMENTS`, in this process: importing RobustBench takes longer than all else here."""
    threads = torch.get_num_threads()

    def run(*arguments, models=None):
        if models is not None:
            monkeypatch.setenv(MODELS, str(models))
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["robflat-bench", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        monkeypatch.delenv(MODELS, raising=False)
        return Done(ended.value.code, out.getvalue(), err.getvalue())

    yield run
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------------------
# The table and the commands
# ---------------------------------------------------------------------------------------------------------


def test_every_published_model_can_be_built_and_says_where_its_numbers_are_from():
    assert set(published()) <= set(zoo()["cifar10", "Linf"])
    for known in published().values():
        assert 0 < known.clean_error < known.robust_error <= 1
        assert len(known.commit) == 40
        assert known.paper


def test_a_few_numbers_as_robustbench_prints_them():
    """Accuracies in percent, from the table in RobustBench's README."""
    printed = {
        "Carmon2019Unlabeled": (89.69, 59.53),
        "Wu2020Adversarial": (85.36, 56.17),
        "Engstrom2019Robustness": (87.03, 49.25),
        "Wong2020Fast": (83.34, 43.21),
        "Standard": (94.78, 0.00),
    }
    for name, accuracies in printed.items():
        errors = published()[name].clean_error, published()[name].robust_error
        assert [100 * (1 - error) for error in errors] == pytest.approx(accuracies)


OTHERS = """# Numbers of others: their comment stays.

[[rows]]
label = "AT, best"
robust_error = 0.5133
attack = "AutoAttack"
source = "elsewhere"  # so does this
"""


def test_references_join_a_board_and_leave_its_other_rows(typed, tmp_path):
    file = tmp_path / "references" / "cifar10-linf.toml"
    file.parent.mkdir()
    file.write_text(OTHERS)
    command = ("robustbench", "references", "--leaderboard", tmp_path, "--protocol", "cifar10-linf")
    done = typed(*command)
    assert done.code == 0, done.err
    assert done.out == f"{len(published())} rows: {file}\n"
    first = file.read_text()
    assert first.startswith(OTHERS)
    rows = references(tmp_path, "cifar10-linf")
    assert [row.label for row in rows[:2]] == ["AT, best", "RobustBench Rade2021Helper_R18_extra, PreActResNet-18"]
    (fast,) = [row for row in rows if "Wong2020Fast" in row.label]
    assert (fast.clean_error, fast.robust_error, fast.attack) == (0.1666, 0.5679, "AutoAttack")
    assert "model_info/cifar10/Linf/Wong2020Fast.json at 2b95e7eba2d4" in fast.source
    assert typed(*command).code == 0
    assert file.read_text() == first, "written twice it is the same file"


def test_rows_of_the_same_label_are_replaced_and_quotes_survive():
    row = {"label": 'a "b"', "robust_error": 0.5, "attack": "AutoAttack", "source": "ü"}
    once = merged(OTHERS, [row])
    again = merged(once, [{**row, "robust_error": 0.4}])
    assert [one["robust_error"] for one in tomllib.loads(again)["rows"]] == [0.5133, 0.4]
    assert tomllib.loads(merged("", [row]))["rows"] == [row]


@pytest.mark.parametrize("text", ["rows = 3", "not toml", "[[rows]]\nattack = 'x'\n", "rows = [{label = 'a'}]\n"])
def test_references_that_are_not_understood_stay_as_they_are(text):
    with pytest.raises(UsageError, match="the references there"):
        merged(text, [])


def test_models_are_listed_with_their_weights_and_numbers(typed, tmp_path):
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Wong2020Fast.pt").write_bytes(b"")
    (folder / "Chen2020Adversarial_m0.pt").write_bytes(b"")
    done = typed("robustbench", "models", "*2020*", "--json", models=tmp_path)
    assert done.code == 0, done.err
    rows = {(row["name"], row["dataset"], row["threat"]): row for row in json.loads(done.out)}
    fast = rows["Wong2020Fast", "cifar10", "Linf"]
    assert (fast["here"], fast["clean_error"], fast["robust_error"]) == (True, 0.1666, 0.5679)
    members = rows["Chen2020Adversarial", "cifar10", "Linf"]
    assert not members["here"], "one of its three files is"
    assert len(members["files"]) == 3
    assert rows["Ding2020MMA", "cifar10", "L2"]["clean_error"] is None, "published numbers are those under linf"
    table = typed("robustbench", "models", "Wong*", "--models", tmp_path).out.splitlines()
    assert table[1].split() == ["Wong2020Fast", "cifar10", "Linf", "here", "16.66%", "56.79%"]


# ---------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------


def record(error, model='robustbench(name="Wong2020Fast")', dataset="cifar10"):
    return {"model": model, "dataset": {"name": dataset}, "results": {model: {"clean_error": error}}}


@pytest.mark.parametrize(
    ("error", "good"),
    [
        (0.1666, True),
        (0.1666 + 0.0200, True),
        (0.1666 + 0.0300, False),
        (0.1666 - 0.0300, False),
        (5 / 16, True),  # so few images tell nothing
        (14 / 16, False),
        (0.9001, False),
    ],
)
def test_a_clean_error_that_is_not_the_published_one_is_a_problem(error, good):
    found = problems(record(error))
    assert (found == []) is good
    assert all("weights, data or preprocessing" in problem for problem in found)


@pytest.mark.parametrize(
    "other",
    [
        record(0.9, 'robustbench(name="Wong2020Fast", weights="random")'),
        record(0.9, 'robustbench(name="Wong2020Fast", weights="mine.pt")'),
        record(0.9, 'robustbench(name="Wong2020Fast", threat="L2")'),
        record(0.9, 'robustbench(name="Unpublished2030")'),
        record(0.9, "resnet18(width=64)"),
        record(0.9, dataset="digits"),
        {"method": "at", "dataset": {"name": "cifar10"}, "results": {"best": {"clean_error": 0.9}}},
    ],
)
def test_what_claims_no_published_weights_is_not_compared(other):
    assert problems(other) == []


# ---------------------------------------------------------------------------------------------------------
# The whole way
# ---------------------------------------------------------------------------------------------------------


def test_the_protocol_is_robustbenchs(registry):
    fixed = load(registry, "robustbench-linf").fixed
    (attacked,) = fixed.attacks
    assert (fixed.data.test.count, attacked.test) == (10_000, 10_000)
    assert fixed.threat.epsilon == 8 / 255
    assert attacked.attack == 'autoattack(batch=250, fast=false, seed=0, version="standard")'
    assert fixed.measures == ()


def cifar_copy(folder):
    """A few noise images as the hub lays CIFAR-10 out."""
    source = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 8)):
        rows = []
        for _ in range(count):
            file = io.BytesIO()
            Image.fromarray(source.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": pa.array(rows), "label": pa.array(range(count))})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


SMALL = """
name = "small"
version = "1.0"
summary = "Eight images."

[fixed]
backbone = "resnet8"
precision = "float32"
threads = 1
threat = { epsilon = "8/255" }
selection = { attack = "fgsm" }
attacks = [{ attack = "fgsm", test = 8 }]

[fixed.data]
dataset = "cifar10"
train = { pool = "train", start = 0, stop = 4, count = 4 }
heldout = { pool = "train", start = 4, stop = 8, count = 4 }
test = { pool = "test", start = 0, stop = 8, count = 8 }

[recipe]
epochs = 1
batch_size = 4
learning_rate = 0.05
epsilon = "8/255"
attack_steps = 1
attack_step = "8/255"
"""


def test_evaluate_takes_a_model_by_name_and_doubts_weights_that_are_not_published(typed, tmp_path, trained, place):
    torch.save({"state_dict": trained}, place)
    cifar_copy(tmp_path)
    protocol = tmp_path / "small.toml"
    protocol.write_text(SMALL)
    common = ("--protocol", protocol, "--data", tmp_path, "--store", tmp_path / "runs", "--device", "cpu", "--json")
    done = typed("evaluate", "robustbench(name=Wong2020Fast)", *common, models=tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["model"] == 'robustbench(name="Wong2020Fast")'
    assert set(found["environment"]["plugins"]["robflat-robustbench"]) == {"robustbench"}
    assert "weights, data or preprocessing are not those published" in done.err
    missing = typed("evaluate", "robustbench(name=Wong2020Fast)", *common)
    assert missing.code == 2
    assert "looked for models/cifar10/Linf/Wong2020Fast.pt" in missing.err
    untrained = typed("evaluate", "robustbench(name=Wong2020Fast, weights=random)", *common)
    assert untrained.code == 0, untrained.err
    assert "not those published" not in untrained.err
    weights = [next(iter(json.loads(one.out)["results"].values()))["weights"] for one in (done, untrained)]
    assert weights[0] != weights[1]
