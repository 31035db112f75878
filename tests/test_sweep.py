"""Studies and sweeps: what a study may say, one run a process, failures that stop nothing, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robflat_bench.base import UsageError
from robflat_bench.components import compose
from robflat_bench.data.splits import load_splits
from robflat_bench.protocol import load
from robflat_bench.record import RunRecord
from robflat_bench.store import RunFolder, Store
from robflat_bench.study import load_study, studies
from robflat_bench.sweep import Sweep, tasks

STUDY = """
name = "mine"
version = "1.0"
summary = "A good one, one that diverges, one whose loss is not finite, and another good one."
protocol = "tiny.toml"

[[groups]]
title = "good"
methods = ["standard"]

[[groups]]
title = "diverging"
methods = ["standard"]
grid = { "recipe.learning_rate" = [1e30] }

[[groups]]
title = "not finite"
methods = ["nan"]

[[groups]]
title = "mistakes"
methods = ["trades(bta=1)", "at+awp+sam", "att"]

[[groups]]
title = "also good"
methods = ["standard"]
grid = { "recipe.epochs" = [1] }
"""

NAN = """
from robflat_bench.api import Method, MethodInfo, hookimpl

@hookimpl
def robflat_bench_methods():
    return [MethodInfo("nan", "a loss that is not finite", "nan:NaN", claims=("attack",))]

class NaN(Method):
    def attack(self, model, batch, inner):
        return batch.x

    def loss(self, model, batch, x_adv):
        return model(x_adv).sum(1) * float("nan")
"""


@pytest.fixture
def study(tmp_path, tiny) -> Path:
    (tmp_path / "tiny.toml").write_text(tiny.read_text())
    path = tmp_path / "mine.toml"
    path.write_text(STUDY)
    (tmp_path / "nan.py").write_text(NAN)
    return path


GOOD = STUDY.replace('["nan"]', '["at"]').replace('["trades(bta=1)", "at+awp+sam", "att"]', '["trades"]')


def listed(registry, path: Path, store: Path, seeds: int = 1):
    chosen = load_study(str(path))
    splits = load_splits(registry, load(registry, chosen.protocol), None)
    wanted, refused = tasks(registry, chosen, seeds, splits.ref, len(splits.pools["train"].y), Store(store))
    assert not refused
    return wanted


# ---------------------------------------------------------------------------------------------------------
# Studies
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", studies())
def test_shipped_studies_are_valid_and_name_each_run_once(registry, name):
    study = load_study(name)
    made = set()
    for variant in study.variants():
        protocol = load(registry, study.protocol, variant.settings)
        made.add((compose(registry, variant.method).canonical, protocol.recipe))
    assert len(made) == len(study.variants())


def test_the_digits_study_stays_small(registry):
    study = load_study("paper-digits")
    assert study.protocol == "digits-linf"
    assert 25 <= len(study.variants()) <= 30


def test_a_group_is_every_method_times_every_combination(study):
    grid = '{ "recipe.epochs" = [1, 2], "recipe.schedule" = ["cyclic(cycles=2)"] }'
    study.write_text(f'{STUDY}\n[[groups]]\ntitle="both"\nmethods=["at", "trades"]\ngrid = {grid}\n')
    variants = load_study(str(study)).variants()[-4:]
    assert [(variant.method, variant.settings) for variant in variants] == [
        (method, (f"recipe.epochs={epochs}", "recipe.schedule=cyclic(cycles=2)"))
        for method in ("at", "trades")
        for epochs in (1, 2)
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('["nan"]', "[]", "'groups.2.methods'"),
        ('"recipe.epochs" = [1]', '"fixed.seed" = [1]', "should match pattern"),
        ('"recipe.epochs" = [1]', f'"recipe.epochs" = {list(range(1, 1200))}', "1000 are enough"),
        ("protocol =", "protocl =", "did you mean 'protocol'?"),
        ("[[groups]]", "[[groups", "not valid TOML"),
        ('"recipe.epochs" = [1]', ", ".join(f'"recipe.x{i}" = [1, 2]' for i in range(64)), "1000 are enough"),
        ('"recipe.epochs" = [1]', '"recipe.epochs" = []', "at least 1 item"),
        ('title = "good"', 'title = "\\u001b[2J"', "should match pattern"),
    ],
)
def test_bad_studies_are_refused_before_anything_runs(study, old, new, says):
    study.write_text(STUDY.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_study(str(study))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_and_oversized_studies_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown study 'paper-digit'; did you mean 'paper-digits'"):
        load_study("paper-digit")
    (tmp_path / "big.toml").write_text("#" * 70_000)
    with pytest.raises(UsageError, match="larger than"):
        load_study(str(tmp_path / "big.toml"))


# ---------------------------------------------------------------------------------------------------------
# Sweeps
# ---------------------------------------------------------------------------------------------------------


def test_the_plan_lists_runs_with_what_they_will_cost(command, registry, study, tmp_path):
    study.write_text(GOOD.replace('["at"]', '["at+awp"]'))
    done = command("sweep", study, "--seeds", 2, "--plan", "--store", tmp_path / "runs", "--json")
    assert done.code == 0
    rows = done.document["runs"]
    groups = ["good", "diverging", "not finite", "mistakes", "also good"]
    assert [(row["group"], row["seed"]) for row in rows] == [(group, seed) for seed in (1, 2) for group in groups]
    assert {row["state"] for row in rows} == {"new"}
    # 60 images, 2 epochs, 2 attack steps: AT-AWP is T+1 and T for the attack and twice 1 and 1 for the loss
    assert (rows[2]["forward"], rows[2]["backward"]) == (60 * 2 * 5, 60 * 2 * 4)
    study.write_text(GOOD.replace('["at"]', '["free-at(repeats=4)", "hat"]'))
    rows = command("sweep", study, "--plan", "--store", tmp_path / "runs", "--json").document["runs"]
    assert (rows[2]["forward"], rows[2]["backward"]) == (60 * 2 * 4, 60 * 2 * 4)
    # HAT: T+2 and T, then 4 (one of them the helper's) and 3; and 1 and 1 to train the helper
    assert (rows[3]["forward"], rows[3]["backward"]) == (60 * 2 * (8 + 1), 60 * 2 * (5 + 1))
    assert not (tmp_path / "runs").exists()


def test_the_plan_names_what_cannot_be_run(command, study, tmp_path):
    study.write_text(STUDY.replace('"recipe.epochs" = [1]', '"recipe.epochs" = [0]'))
    done = command("sweep", study, "--plan", "--store", tmp_path / "runs")
    assert done.code == 1
    assert "cannot run standard recipe.epochs=0" in done.err
    assert "unknown method 'nan'" in done.err
    assert "learning_rate=1e+30" in done.out


def test_runs_that_fail_stop_nothing_and_are_listed(command, registry, study, tmp_path):
    """A diverging run, a loss that is not finite, an unknown parameter, a conflicting composition: one line each;
    the others complete; the exit code is 1."""
    store, plugin = tmp_path / "runs", tmp_path / "nan.py"
    done = command("sweep", study, "--store", store, "--plugin", plugin, "--jobs", 2, "--json")
    assert done.code == 1
    refused = {row["run"]: row["error"] for row in done.document["runs"] if row["state"] == "refused"}
    assert refused.keys() == {"trades(bta=1)", "at+awp+sam", "att"}
    assert "unknown key 'bta'; did you mean 'beta'?" in refused["trades(bta=1)"]
    assert "awp and sam each claim the backward of a step" in refused["at+awp+sam"]
    rows = {row["group"]: row for row in done.document["runs"] if row["state"] != "refused"}
    assert {group: row["state"] for group, row in rows.items()} == {
        "good": "done",
        "diverging": "failed",
        "not finite": "failed",
        "also good": "done",
    }
    assert "the loss is nan at epoch 0, step 0" in rows["not finite"]["error"]
    assert re.search(r"loss .*is (nan|inf) .*\(learning rate 1e\+30\)", rows["diverging"]["error"])
    for row in rows.values():
        assert ("results" in row) == (row["state"] == "done")
    lines = done.err.splitlines()
    assert sum(line.startswith("robflat-bench: failed: ") for line in lines) == 2
    assert sum(line.startswith("robflat-bench: cannot run ") for line in lines) == 3
    assert lines[-1] == "robflat-bench: 5 of 7 runs are not done, as listed; --retry-failed tries failed ones again"

    record = RunFolder(Path(rows["good"]["folder"])).record()
    assert isinstance(record, RunRecord)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("record.json")}
    again = command("sweep", study, "--store", store, "--plugin", plugin)
    assert again.code == 1, "what failed before is not forgotten"
    assert {path: path.stat().st_mtime_ns for path in store.rglob("record.json")} == before, "finished runs are skipped"
    assert "best checkpoint" in again.out
    assert "last checkpoint" in again.out


def test_retry_failed_runs_them_again(command, registry, study, tmp_path):
    study.write_text(GOOD.replace("1e30", "1e-3"))
    store = tmp_path / "runs"
    first, *_ = listed(registry, study, store)
    first.folder.path.mkdir(parents=True)
    first.folder.failed_file.write_text(json.dumps({"key": first.spec.key, "error": "the disk\nwas full"}))
    assert first.error() == "the disk"
    sweep = Sweep(lambda task: [])
    assert sweep.run([first]) == {first.spec.key: "failed"}
    done = command("sweep", study, "--store", store, "--retry-failed", "--json")
    assert done.code == 0, done.err
    assert {row["state"] for row in done.document["runs"]} == {"done"}


def test_a_run_that_cannot_even_begin_is_a_failure_with_its_last_words(registry, study, tmp_path):
    study.write_text(GOOD)
    task, *_ = listed(registry, study, tmp_path / "runs")
    outcomes = Sweep(lambda task: ["--method", "att"]).run([task])
    assert outcomes == {task.spec.key: "failed"}
    assert "exit code 2: robflat-bench: unknown method 'att'" in task.error()


def test_a_run_of_another_process_is_left_to_it(registry, study, tmp_path):
    study.write_text(GOOD)
    task, *_ = listed(registry, study, tmp_path / "runs")
    with task.folder.locked():
        assert Sweep(lambda task: []).run([task]) == {task.spec.key: "busy"}
    assert not task.folder.failed_file.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_saves_its_run_and_resumes(child_environment, study, tmp_path, number):
    """Told to stop in the middle of training, the run saves its state; typed again, the sweep completes."""
    study.write_text(STUDY[: STUDY.index('[[groups]]\ntitle = "diverging"')].replace("standard", "at"))
    protocol = tmp_path / "tiny.toml"
    protocol.write_text(protocol.read_text().replace("epochs = 2", "epochs = 100000"))
    store = tmp_path / "runs"
    arguments = [sys.executable, "-m", "robflat_bench", "sweep", str(study), "--store", str(store)]
    sweep = subprocess.Popen(arguments, env=child_environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("*/*/*/history.jsonl")):
        assert time.monotonic() < deadline, "training never began"
        assert sweep.poll() is None
        time.sleep(0.1)
    os.kill(sweep.pid, number)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert "interrupted" in err
    (folder,) = store.glob("*/*/*")
    assert list(folder.glob("checkpoints/state-*.safetensors"))
    assert not (folder / "failed.json").exists()
    with RunFolder(folder).locked():
        pass


def test_a_stopped_sweep_forgets_no_failure(registry, study, tmp_path):
    study.write_text(GOOD)
    task, *_ = listed(registry, study, tmp_path / "runs")
    task.folder.path.mkdir(parents=True)
    task.folder.failed_file.write_text(json.dumps({"key": task.spec.key, "error": "the disk was full"}))
    sweep = Sweep(lambda task: [], retry_failed=True)
    sweep._stop()
    with pytest.raises(KeyboardInterrupt):
        sweep.run([task])
    assert task.error() == "the disk was full"
    assert not (task.folder.path / "log.txt").exists()


def test_a_run_taken_by_another_process_meanwhile_is_no_failure(registry, study, tmp_path, monkeypatch):
    study.write_text(GOOD)
    task, *_ = listed(registry, study, tmp_path / "runs")
    sweep = Sweep(lambda task: [])
    with contextlib.ExitStack() as held:

        def taken(task) -> int:
            held.enter_context(task.folder.locked())
            return 1

        monkeypatch.setattr(sweep, "_process", taken)
        assert sweep.run([task]) == {task.spec.key: "busy"}
    assert not task.folder.failed_file.exists()


def test_what_was_busy_is_tried_again_at_the_end(registry, study, tmp_path):
    study.write_text(GOOD)
    one, two, *_ = listed(registry, study, tmp_path / "runs")
    with contextlib.ExitStack() as held:
        held.enter_context(one.folder.locked())
        sweep = Sweep(lambda task: ["--method", "att"])
        sweep.ended = lambda task, outcome: held.close() if task is two else None
        assert sweep.run([one, two]) == {one.spec.key: "failed", two.spec.key: "failed"}


def test_tasks_do_not_start_after_a_stop(registry, study, tmp_path):
    study.write_text(GOOD)
    wanted = listed(registry, study, tmp_path / "runs")
    sweep = Sweep(lambda task: ["--method", "att"])
    sweep.ended = lambda task, outcome: sweep._stop()
    result: list[BaseException] = []

    def run() -> None:
        try:
            sweep.run(wanted)
        except KeyboardInterrupt as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert len(result) == 1
    assert [task.folder.failed_file.is_file() for task in wanted] == [True, *[False] * 4]
