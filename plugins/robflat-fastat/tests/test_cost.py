"""The column of what training costs: on a board by hand and on the committed ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import robflat_bench
from robflat_fastat import robflat_bench_leaderboard_columns

COMMITTED = Path(robflat_bench.__file__).parent.parent / "leaderboard" / "board.json"


def row(name: str, method: str, forward: float, backward: float, **changes: object) -> dict[str, Any]:
    return {"id": name, "method": method, "changes": changes, "forward": forward, "backward": backward}


ROWS = [
    row("fast", "zerograd(alpha=2.0, q=0.35)", 200.0, 200.0),
    row("at-14", "at", 1600.0, 1500.0, attack_steps=14),
    row("at", "at", 900.0, 700.0),
    row("at+awp", "at+awp(gamma=0.01)", 1000.0, 800.0),
]


def test_passes_are_relative_to_adversarial_training_by_the_protocols_own_recipe(registry):
    """Asked for as the board's page does."""
    ((column,),) = registry.plugins.manager.hook.robflat_bench_leaderboard_columns(board={"rows": ROWS})
    assert format(column.values["at-14"], column.form) == "1.94"
    assert column.values == {"fast": 0.25, "at-14": 1.9375, "at": 1.0, "at+awp": 1.125}


@pytest.mark.parametrize("rows", [[], ROWS[:2], [ROWS[0], ROWS[3]]])
def test_a_board_without_that_row_has_no_column(rows):
    assert robflat_bench_leaderboard_columns({"rows": rows}) == []


@pytest.mark.skipif(not COMMITTED.is_file(), reason="no repository around the installed package")
def test_committed_boards_have_a_cost_for_every_row():
    """TRADES by digits' seven steps: 11 forward and 9 backward passes against 9 and 8."""
    boards = {board["id"]: board for board in json.loads(COMMITTED.read_text())["boards"]}
    before = copy.deepcopy(boards)
    costs = {name: robflat_bench_leaderboard_columns(board) for name, board in boards.items()}
    assert boards == before
    assert costs["cifar10-linf"] == [], "a board without rows"
    (digits,) = costs["digits-linf"]
    assert {*digits.values} == {one["id"] for one in boards["digits-linf"]["rows"]}
    assert digits.values["at"] == 1
    assert digits.values["trades"] == pytest.approx(20 / 17)
    assert digits.values["standard"] == pytest.approx(2 / 17)
