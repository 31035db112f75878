"""What a board costs: places of 20 methods x 3 seeds x 10,000 examples from 1,000 resamples, and everything, from
reading to the pages, of 1,000 records (333 methods of three seeds and one more).

Seconds; MB of numpy's arrays at their peak (tracemalloc, in a call of its own, for it slows things down), and of the
whole process that builds the large board (VmHWM: what its parent took does not count).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
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


BUILD = """
import json, sys, time
from pathlib import Path
began = time.perf_counter()
from robflat_bench.leaderboard.entries import read_entries
from robflat_bench.leaderboard.publish import pages
from robflat_bench.registry.registry import discover
registry, root = discover(), Path(sys.argv[1])
found, problems = read_entries(root, registry)
assert not problems
made = pages(found, root, registry)
seconds = time.perf_counter() - began
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
print(json.dumps({"records": len(found), "files": len(made), "seconds": seconds, "peak MB": peak}))
"""


def test_a_board_of_1000_records(tmp_path: Path, pytestconfig: pytest.Config, board: Board) -> None:
    from helpers.fake_records import fake_run, submitted

    count = 30 if pytestconfig.getoption("quick") else 1000
    runs = [
        fake_run(
            tmp_path / "runs", "at", 1 + k % 3, skill=k / 1000, settings=(f"recipe.weight_decay={1e-5 * (1 + k // 3)}",)
        )
        for k in range(count)
    ]
    submitted(tmp_path / "leaderboard", runs)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "leaderboard")], capture_output=True, text=True, check=True
    )
    board.table("a board, from reading to the pages", [json.loads(done.stdout)])
