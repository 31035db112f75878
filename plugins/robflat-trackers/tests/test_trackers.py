"""What both trackers hold after runs that finish, stop, go on and fail, read back with the trackers' own readers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from robflat_bench.api import RunView
from robflat_trackers.event_files import TensorBoard
from robflat_trackers.mlflow_runs import MLflow, MlflowClient
from robflat_trackers.scalars import LONGEST, legal, of_result

CURVES = ("train_loss", "learning_rate", "heldout_clean_error", "heldout_robust_error", "heldout_robust_loss")
PGD = 'pgd(init="uniform", loss="ce", restarts=1, steps=2)'
PGD_NAME = "robust_error/pgd init uniform loss ce restarts 1 steps 2"

STOPS = """
import os, signal
from robflat_bench.api import hookimpl

def stop(here):
    where, number = os.environ["STOP_AT"].split(":")
    if where == here:
        os.kill(os.getpid(), int(number))

@hookimpl
def robflat_bench_epoch_ends(epoch):
    stop(f"epoch {epoch['epoch']}")

@hookimpl
def robflat_bench_evaluation_ends(checkpoint):
    stop(checkpoint)
"""
"""A plugin that ends its process when the trackers have seen an epoch, or a checkpoint's results."""


# ---------------------------------------------------------------------------------------------------------
# Reading back
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The one run of a store, and what the trackers hold of it."""

    store: Path

    @property
    def folder(self) -> Path:
        (spec,) = self.store.glob("*/*/seed-*/spec.json")
        return spec.parent

    @property
    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "record.json").read_text())
        return document

    def reader(self, checkpoint: str = "") -> EventAccumulator:
        """As TensorBoard itself reads it."""
        return EventAccumulator(str(self.folder / "observers" / "tensorboard" / checkpoint)).Reload()

    def events(self, checkpoint: str = "") -> dict[str, list[tuple[int, float]]]:
        """Tag -> (step, value) of every scalar."""
        read = self.reader(checkpoint)
        return {
            tag: [(event.step, make_ndarray(event.tensor_proto).item()) for event in read.Tensors(tag)]
            for tag in read.PluginTagToContent("scalars")
        }

    @property
    def text(self) -> str:
        (event,) = self.reader().Tensors("run/text_summary")
        found: str = event.tensor_proto.string_val[0].decode()
        return found

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=(self.store / "mlflow").resolve().as_uri())

    @property
    def tracked(self) -> list[Any]:
        """All runs of MLflow, the newest first."""
        experiments = [found.experiment_id for found in self.client.search_experiments()]
        return list(self.client.search_runs(experiments))

    def points(self, metric: str) -> list[tuple[int, float]]:
        (run,) = self.tracked
        return sorted((found.step, found.value) for found in self.client.get_metric_history(run.info.run_id, metric))


def rounded(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As an event file holds them."""
    return [(step, float(np.float32(value))) for step, value in points]


def assert_each_number_once(run: Run) -> None:
    """Both trackers hold the history and the results of the record, once."""
    record, shown = run.record, run.events()
    assert set(shown) == set(CURVES)
    for name in CURVES:
        expected = [(row["epoch"], row[name]) for row in record["history"] if row[name] is not None]
        assert run.points(name) == expected
        assert shown[name] == rounded(expected)
    for checkpoint, result in record["results"].items():
        shown = run.events(checkpoint)
        assert set(shown) == set(of_result(result))
        for name, value in of_result(result).items():
            assert run.points(f"{checkpoint}/{name}") == [(result["epoch"], value)]
            assert shown[name] == rounded([(result["epoch"], value)])


def files(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(command, tiny, tmp_path_factory) -> Run:
    """Look, do not touch."""
    store = tmp_path_factory.mktemp("finished") / "a store"
    done = command("run", "--method", "at", "--protocol", tiny, "--store", store)
    assert done.code == 0, done.err
    return Run(store)


@pytest.fixture
def start(command, tiny, tmp_path):
    """`start(*options)`: the tiny run in a store of the test's own -> (Done, Run)."""

    def run(*options: object):
        store = tmp_path / "store"
        return command("run", "--method", "at", "--protocol", tiny, "--store", store, *options), Run(store)

    return run


# ---------------------------------------------------------------------------------------------------------
# A run that finishes
# ---------------------------------------------------------------------------------------------------------


def test_both_hold_the_numbers_of_the_record(finished):
    assert "error" not in finished.record["provenance"]["observers"]["robflat-trackers 0.1.0"]
    assert_each_number_once(finished)


def test_results_are_logged_by_these_names(finished):
    best = finished.record["results"]["best"]
    average_case, measured = next(iter(best["measures"].items()))
    assert of_result(best) == {
        "clean_error/test": best["clean_error"],
        "clean_error/train": best["clean_error_train"],
        "robust_loss/test": best["robust_loss"]["test"],
        "robust_loss/train": best["robust_loss"]["train"],
        "gap/robust_error": best["gap"]["robust_error"],
        "gap/robust_loss": best["gap"]["robust_loss"],
        "flags/zero_gradients": best["flags"]["zero_gradients"],
        "flags/nonfinite_gradients": 0.0,
        "flags/random_forward": 0.0,
        f"{PGD_NAME}/test": best["robust_error"][PGD]["test"],
        f"{PGD_NAME}/train": best["robust_error"][PGD]["train"],
        f"measure/{legal(average_case)}/test": measured["value"],
        f"standard_error/{legal(average_case)}/test": measured["standard_error"],
    }
    assert {"robust_error/fgsm/test"} == set(of_result(finished.record["results"]["last"])) - set(of_result(best))


def test_tensorboard_says_which_run_it_is(finished):
    spec = json.loads((finished.folder / "spec.json").read_text())
    assert finished.text.startswith("**at** under tiny-trackers, seed 1")
    assert json.loads(finished.text.partition("\n")[2]) == spec


def test_mlflow_says_which_run_it_is(finished):
    record, (run,) = finished.record, finished.tracked
    assert (run.info.run_name, run.info.status) == ("at seed 1", "FINISHED")
    assert finished.client.get_experiment(run.info.experiment_id).name == "tiny-trackers"
    assert run.data.params == {
        "method": record["method"],
        "seed": "1",
        "dataset": "digits",
        **{f"recipe.{name}": str(value) for name, value in record["spec"]["recipe"].items()},
    }
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("robflat.")}
    assert tags == {
        "robflat.key": record["key"],
        "robflat.protocol.version": "1.0",
        "robflat.protocol.hash": record["protocol"]["hash"],
        "robflat.version": record["provenance"]["robflat_bench"],
    }
    assert run.data.metrics["budget/forward"] == record["budget"]["forward"]


def test_mlflow_keeps_the_record(finished, tmp_path):
    (run,) = finished.tracked
    kept = json.loads(Path(finished.client.download_artifacts(run.info.run_id, "record.json", tmp_path)).read_text())
    record = finished.record
    del record["provenance"]["observers"]  # known only after the trackers have seen the record
    assert kept == record


def test_the_record_says_which_trackers(finished):
    versions = finished.record["environment"]["plugins"]["robflat-trackers"]
    assert set(versions) == {"tensorboard", "mlflow-skinny"}


def test_a_finished_run_adds_nothing(finished, command, tiny):
    watched = (finished.folder / "observers", finished.store / "mlflow")
    before = files(*watched)
    assert command("run", "--method", "at", "--protocol", tiny, "--store", finished.store).code == 0
    assert files(*watched) == before


def test_weights_and_numbers_are_those_of_a_run_without(finished, start, monkeypatch):
    monkeypatch.setenv("ROBFLAT_BENCH_PLUGINS", "")
    done, alone = start()
    assert done.code == 0, done.err
    assert not (alone.folder / "observers").exists()
    for name in ("best", "last", "initial"):
        weights = f"checkpoints/{name}.safetensors"
        assert (alone.folder / weights).read_bytes() == (finished.folder / weights).read_bytes()
    assert alone.record["outcomes"] == finished.record["outcomes"]
    assert alone.record["key"] == finished.record["key"]


def test_fresh_is_another_run_of_mlflow(start):
    start()
    done, run = start("--fresh")
    assert done.code == 0, done.err
    new, old = run.tracked
    assert (new.info.status, old.info.status) == ("FINISHED", "FINISHED")
    assert new.data.metrics["best/clean_error/test"] == old.data.metrics["best/clean_error/test"]
    assert len(run.events()["train_loss"]) == 4


# ---------------------------------------------------------------------------------------------------------
# A run that stops, and goes on
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(watched, tiny, tmp_path_factory) -> tuple[Run, Path]:
    """Killed in training and, by another process, in evaluation; and what the processes tried to reach."""
    place = tmp_path_factory.mktemp("interrupted")
    plugin, log = place / "stops.py", place / "log"
    plugin.write_text(STOPS)
    options = ("run", "--method", "at", "--protocol", tiny, "--store", place / "store", "--plugin", plugin)
    with pytest.MonkeyPatch.context() as patch:
        for where in ("epoch 2", "best"):
            patch.setenv("STOP_AT", f"{where}:{signal.SIGKILL}")
            assert watched(log, *options) == -signal.SIGKILL
    return Run(place / "store"), log


def test_after_a_kill_both_hold_everything_so_far(interrupted):
    run, _ = interrupted
    (tracked,) = run.tracked
    assert tracked.info.status == "RUNNING"
    assert [step for step, _ in run.events()["train_loss"]] == [0, 1, 2, 3]
    assert [step for step, _ in run.points("train_loss")] == [0, 1, 2, 3]
    assert len(run.points("best/clean_error/test")) == len(run.events("best")["clean_error/test"]) == 1


def test_nothing_reaches_for_the_network_or_for_tensorflow(interrupted):
    _, log = interrupted
    assert log.read_text() == ""


def test_a_killed_run_goes_on_without_doubled_points(interrupted, finished, command, tiny):
    run, _ = interrupted
    done = command("run", "--method", "at", "--protocol", tiny, "--store", run.store)
    assert done.code == 0, done.err
    assert_each_number_once(run)
    assert run.tracked[0].info.status == "FINISHED"
    assert run.text == finished.text


@pytest.mark.parametrize("tracker", [TensorBoard, MLflow])
def test_epochs_that_are_made_again_are_held_once(tracker, finished, tmp_path):
    """A killed process had saved its state some epochs ago: the next one begins there."""
    history, spec = finished.record["history"], json.loads((finished.folder / "spec.json").read_text())
    run = Run(tmp_path / "store")
    folder = run.store / "tiny" / "at" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(spec))
    view = RunView(finished.record["key"], "at", "at", "tiny", 1, folder, spec)
    for epochs in (history[:3], history[1:]):
        follower = tracker(view)
        for epoch in epochs:
            follower.epoch_ends(epoch)
        follower.close()
    held = run.events()["train_loss"] if tracker is TensorBoard else run.points("train_loss")
    expected = [(row["epoch"], row["train_loss"]) for row in history]
    assert rounded(held) == rounded(expected)


def test_ctrl_c_and_on_in_the_same_process(start, tmp_path, monkeypatch):
    plugin = tmp_path / "stops.py"
    plugin.write_text(STOPS)
    monkeypatch.setenv("STOP_AT", f"epoch 1:{int(signal.SIGINT)}")
    done, run = start("--plugin", plugin)
    assert done.code == 130, done.err
    done, _ = start()
    assert done.code == 0, done.err
    assert_each_number_once(run)


# ---------------------------------------------------------------------------------------------------------
# A run that fails
# ---------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_is_failed(start):
    done, run = start("--set", "recipe.learning_rate=1e9")
    assert done.code == 1
    (tracked,) = run.tracked
    assert tracked.info.status == "FAILED"
    assert tracked.data.tags["robflat.error"] == json.loads((run.folder / "failed.json").read_text())["error"]


def test_a_run_whose_record_cannot_be_written_fails_after_its_end(command, tiny, start, tmp_path):
    plan = command("run", "--method", "at", "--protocol", tiny, "--store", tmp_path / "store", "--plan", "--json")
    blocked = Path(json.loads(plan.out)["folder"]) / "record.json"
    blocked.mkdir(parents=True)
    done, run = start()
    assert done.code != 0
    assert [found.info.status for found in run.tracked] == ["FAILED"]

    blocked.rmdir()
    assert start()[0].code == 0
    assert_each_number_once(run)
    (tracked,) = run.tracked
    assert tracked.info.status == "FINISHED"
    assert "robflat.error" not in tracked.data.tags


# ---------------------------------------------------------------------------------------------------------
# Which tracker, and where
# ---------------------------------------------------------------------------------------------------------


def test_one_tracker_alone(start, monkeypatch):
    monkeypatch.setenv("ROBFLAT_TRACKERS", "tensorboard")
    done, run = start()
    assert done.code == 0, done.err
    assert len(run.events()["train_loss"]) == 4
    assert not (run.store / "mlflow").exists()


def test_mlflow_where_its_own_variable_says(start, monkeypatch, tmp_path):
    monkeypatch.setenv("ROBFLAT_TRACKERS", "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "elsewhere" / "mlflow"))
    done, run = start()
    assert done.code == 0, done.err
    assert [found.info.status for found in Run(tmp_path / "elsewhere").tracked] == ["FINISHED"]
    assert not (run.store / "mlflow").exists()
    assert not (run.folder / "observers" / "tensorboard").exists()


def test_an_unknown_tracker_is_one_line_and_the_run_goes_on(start, monkeypatch):
    monkeypatch.setenv("ROBFLAT_TRACKERS", "tensorboard, wandb")
    done, run = start()
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if "wandb" in line]
    assert "no tracker 'wandb'; there are tensorboard, mlflow" in line
    assert not (run.folder / "observers").exists()


def test_runs_that_start_together_share_one_experiment(tmp_path):
    spec = {
        "protocol": {"version": "1.0", "hash": "00"},
        "dataset": {"name": "digits"},
        "recipe": {"epochs": 1},
    }
    runs = [RunView(f"{n:016x}", "at", "at", "tiny", n, tmp_path / f"tiny/at/seed-{n}", spec) for n in range(8)]
    for run in runs:
        run.folder.mkdir(parents=True)
    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(MLflow, runs))
    tracked = Run(tmp_path).tracked
    assert len(tracked) == len(runs)
    assert len({found.info.experiment_id for found in tracked}) == 1


def test_registering_imports_no_tracker():
    heavy = "{'torch', 'tensorboard', 'mlflow', 'numpy'}"
    program = f"import sys, robflat_trackers; print({heavy} & {{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("fgsm", "fgsm"),
        ("pgd(restarts=3, steps=20)", "pgd restarts 3 steps 20"),
        ('resnet8(norm="batch", strides=[1, 1, 2], width=0.5)', "resnet8 norm batch strides 1 1 2 width 0.5"),
        ("a(x=-1e-05)", "a x -1e-05"),
    ],
)
def test_names_read_like_the_component(component, name):
    assert legal(component) == name


@settings(deadline=None)
@given(st.text())
@example("x" * 300)
def test_every_name_is_legal(text):
    name = legal(f'measure(a="{text}")')
    _validate_metric_name(f"best/standard_error/{name}/train")
    assert len(name) <= LONGEST


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a(x=1e+20)", "a(x=1e-20)"),
        ('a(x="8/255")', 'a(x="8 255")'),
        (f"a(x={'1' * 300})", f"a(x={'1' * 301})"),
    ],
)
def test_what_differs_keeps_different_names(one, other):
    assert legal(one) != legal(other)
