"""The table of a run begins with the number that boards rank, and ends with lines to type."""

import json
import re
import shlex

import numpy as np
import pytest
from helpers.commands import REPOSITORY, run_here

import robflat_bench as rb
from robflat_bench.records.store import Store

RECORDS = REPOSITORY / "leaderboard" / "records"
KEY = "349043bd"


@pytest.fixture(scope="module")
def shown():
    return run_here("results", "show", KEY, "--store", RECORDS).out


def test_the_first_row_is_the_worst_case_over_all_attacks_of_each_checkpoint(shown):
    record, outcomes = Store(RECORDS).find(KEY).evidence()
    cells = []
    for checkpoint, result in record.results.items():
        errors = [outcomes[f"{checkpoint}/test/{attack}/error"] for attack in ("clean", *result.robust_error)]
        n = min(map(len, errors))
        wrong = sum(any(error[image] for error in errors) for image in range(n)) / n
        cells.append(f"{100 * wrong:.1f} ± {100 * np.sqrt(wrong * (1 - wrong) / (n - 1)):.1f} %")
    first = next(line for line in shown.splitlines() if "%" in line)
    assert re.split(r"\s{2,}", first.strip()) == ["worst case of 2 attacks, test, n=250 (boards rank it)", *cells]


def test_its_mean_over_seeds_is_the_number_on_the_committed_board():
    wanted = {
        "protocol": "digits-linf",
        "run": "trades",
        "quantity": "worst_case",
        "checkpoint": "last",
        "added": False,
    }
    rows = run_here("results", "export", "--store", RECORDS, "--json").document
    values = [row["value"] for row in rows if wanted.items() <= row.items()]
    boards = json.loads((RECORDS.parent / "board.json").read_text("utf-8"))["boards"]
    ranked = next(board for board in boards if board["id"] == "digits-linf")["rows"]
    row = next(row for row in ranked if row["label"] == "trades")["values"]["last"]["robust_error"]
    assert len(values) == row["seeds"]
    assert np.mean(values) == pytest.approx(row["mean"], abs=5e-7), "the board's file has six digits"


def test_the_last_lines_are_commands_with_the_runs_own_key(shown):
    lines = [shlex.split(line)[1:] for line in shown.split("added:")[0].splitlines() if "    robflat-bench " in line]
    assert [line[0] for line in lines] == ["evaluate", "results", "leaderboard"]
    assert lines[0][1] == KEY
    assert run_here(*lines[1]).code == 0
    assert run_here(*lines[0], "--checkpoint", "none").code == 2, "the run is found, and has no such checkpoint"


def test_an_object_is_plain_text_where_colours_are_forced_as_a_notebook_forces_them(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in repr(rb.list("attacks"))
