"""The time left of an evaluation."""

from __future__ import annotations

from robflat_bench.core import Spent
from robflat_bench.front.remaining import Remaining


def test_time_left_follows_passes_and_speed_of_all_processes():
    spent = [Spent()]
    remaining = Remaining([0, 1000, None, 400], 2, lambda: spent[0])
    assert str(remaining) == "", "nothing tells the speed"
    remaining.stage_ends()
    spent[0] = Spent(10.0, 60, 40)  # ten passes a second
    assert str(remaining) == "about 65 s left, and 1 stage of unknown length"  # (900 + 400) / 10 / 2
    remaining.work_ends_elsewhere(3, 100, False)
    assert str(remaining) == "about 60 s left, and 1 stage of unknown length"
    remaining.work_ends_elsewhere(2, 10_000, True)
    assert str(remaining) == "about 60 s left"


def test_what_a_stage_does_not_use_of_its_passes_is_not_left():
    spent = [Spent(1.0, 10, 0)]
    remaining = Remaining([100, 100], 1, lambda: spent[0])
    assert str(remaining) == "about 19 s left"
    remaining.stage_ends()
    assert str(remaining) == "about 10 s left"
    spent[0] = Spent(15.0, 150, 0)  # more than declared
    assert str(remaining) == "about 0 s left"
