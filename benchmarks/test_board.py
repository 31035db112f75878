"""What a board's statistics cost: places of 20 methods x 3 seeds x 10,000 examples from 1,000 resamples.

Seconds, and MB of numpy's arrays at their peak (tracemalloc, in a call of its own, for it slows things down).
"""

from __future__ import annotations

import statistics
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
from race import Board, clock, race, replay
from subject import Settings

from robflat_bench.analysis.statistics import places


@pytest.mark.benchmark(timer=clock, group="board")
def test_places_of_a_board(pytestconfig: pytest.Config, settings: Settings, board: Board, benchmark: Any) -> None:
    examples = 100 if pytestconfig.getoption("quick") else 10_000
    source = np.random.default_rng(0)
    difficulty = source.standard_normal(examples)
    tables = [difficulty + source.standard_normal((3, examples)) > 0.5 - 0.02 * m for m in range(20)]
    work = partial(places, tables)
    times = race({"places": work}, settings.rounds)["places"]
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    row = {"methods": 20, "seeds": 3, "examples": examples, "seconds": statistics.median(times), "MB": peak}
    board.table("places", [row])
    benchmark.extra_info.update(row)
    replay(benchmark, times)
