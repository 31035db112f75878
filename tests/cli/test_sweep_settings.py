"""`sweep --set`: every run of the study under further settings, as `run --set` would make it."""

import pytest
from helpers.commands import run_here

from robflat_bench.core import RunFailed
from robflat_bench.runs.sweep import Sweep

STUDY = """
name = "mine"
version = "1.0"
summary = "Two methods, and a grid."
protocol = "tiny.toml"

[[groups]]
title = "plain"
methods = ["at", "trades(beta=3)"]

[[groups]]
title = "weight decay"
methods = ["at"]
grid = { "recipe.weight_decay" = [0.001, 0.01] }
"""
SETTINGS = ("--set", "recipe.epochs=3", "--set", "recipe.learning_rate = 0.02")


@pytest.fixture
def study(tmp_path, tiny):
    (tmp_path / "tiny.toml").write_text(tiny.read_text())
    path = tmp_path / "mine.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def sweep(study, tmp_path):
    """`sweep(...)`: `robflat-bench sweep mine.toml --seeds 2 ...` in a store of the test's own."""
    return lambda *arguments: run_here("sweep", study, "--seeds", 2, "--store", tmp_path / "runs", *arguments)


def test_settings_are_part_of_every_key_and_name(sweep):
    rows = sweep(*SETTINGS, "--plan", "--json").document["runs"]
    before = sweep("--plan", "--json").document["runs"]
    assert len(rows) == len(before) == 8
    assert {row["key"] for row in rows}.isdisjoint(row["key"] for row in before)
    assert {row["run"] for row in rows} == {
        "at [epochs=3 learning_rate=0.02]",
        "trades(beta=3.0) [epochs=3 learning_rate=0.02]",
        "at [epochs=3 learning_rate=0.02 weight_decay=0.001]",
        "at [epochs=3 learning_rate=0.02 weight_decay=0.01]",
    }
    assert rows[0]["forward"] == before[0]["forward"] * 3 / 2, "three epochs cost more than two"


def test_each_run_is_the_run_of_the_line_that_it_starts(sweep, monkeypatch):
    typed = {}

    def run(self, wanted):
        typed.update({task.spec.key: self.command(task) for task in wanted})
        raise RunFailed("enough")

    monkeypatch.setattr(Sweep, "run", run)
    keys = [row["key"] for row in sweep(*SETTINGS, "--plan", "--json").document["runs"]]
    assert sweep(*SETTINGS).code == 1
    assert [*typed] == keys
    for key, line in typed.items():
        assert run_here("run", *line, "--plan", "--json").document["key"] == key


def test_a_setting_of_fixed_moves_all_runs_to_another_board(sweep, tmp_path):
    setting = ("--set", "fixed.threat.epsilon=0.05")
    (plan,) = {row["key"] for row in sweep(*setting, "--plan", "--json").document["runs"][:1]}
    line = ("run", "--method", "at", "--protocol", tmp_path / "tiny.toml", "--store", tmp_path / "runs", "--plan")
    assert run_here(*line, *setting, "--json").document["key"] == plan
    assert "mine 1.0 under tiny-" in sweep(*setting, "--plan").out


def test_status_and_cancel_are_about_the_runs_with_these_settings(sweep):
    shown = sweep(*SETTINGS, "--status", "--json").document["runs"]
    assert [row["key"] for row in shown] == [
        row["key"] for row in sweep(*SETTINGS, "--plan", "--json").document["runs"]
    ]
    ended = sweep(*SETTINGS, "--cancel")
    assert (ended.code, ended.out) == (0, "no job of this study waits or runs\n")


@pytest.mark.parametrize("option", [[], ["--plan"], ["--status"], ["--cancel"]])
@pytest.mark.parametrize("setting", ["recipe.weight_decay=0.1", " recipe.weight_decay = 0.1"])
def test_a_key_that_the_study_varies_is_refused_before_any_work(sweep, tmp_path, monkeypatch, option, setting):
    monkeypatch.setattr(Sweep, "run", lambda *_: pytest.fail("a run began"))
    done = sweep("--set", setting, *option)
    assert done.code == 2
    assert (
        f"--set {setting}: study mine varies recipe.weight_decay itself (0.001, 0.01 in its group 'weight decay'); "
        "leave out --set recipe.weight_decay, or give a study without recipe.weight_decay in its grid"
    ) in done.complaint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "setting", ["epochs=3", "recipe.epochs", "recipe.epoch=3", "recipe.epochs=0", "recipe.epochs=many", "recipe.a.b=1"]
)
def test_a_wrong_setting_is_answered_as_run_answers_it(sweep, tmp_path, setting):
    done = sweep("--set", setting, "--plan")
    line = ("run", "--method", "at", "--protocol", tmp_path / "tiny.toml", "--plan")
    alone = run_here(*line, "--set", setting)
    assert (done.code, done.complaint) == (alone.code, alone.complaint)
    assert done.code == 2
    assert not (tmp_path / "runs").exists()


def test_the_plan_ends_with_the_line_that_makes_the_runs(sweep, study, tmp_path):
    last = sweep(*SETTINGS, "--plan").out.splitlines()[-1]
    words = ["sweep", study, "--seeds", 2, "--store", tmp_path / "runs", *SETTINGS[:3]]
    assert last == f"next: `robflat-bench {' '.join(map(str, words))} 'recipe.learning_rate = 0.02'`"
