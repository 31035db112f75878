"""What it costs to look around: `list methods` without plugins, with eleven installed ones that misbehave (one of them
wants torch), and the bare interpreter, each a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import misbehaving
from race import Board, clock, race, replay
from subject import Settings


@pytest.mark.benchmark(timer=clock, group="startup")
def test_list_with_misbehaving_plugins(tmp_path: Path, settings: Settings, board: Board, benchmark: Any) -> None:
    misbehaving.install(tmp_path)
    repository = Path(__file__).parent.parent

    def process(*arguments: str, plugins: str = "") -> None:
        path = os.pathsep.join(map(str, (tmp_path, repository)))
        environment = {**os.environ, "PYTHONPATH": path, "ROBFLAT_BENCH_PLUGINS": plugins}
        subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)

    look = ("-m", "robflat_bench", "list", "methods", "--json")
    contestants = {
        "bare interpreter": partial(process, "-c", "pass"),
        "list methods": partial(process, *look),
        "list methods, misbehaving plugins": partial(process, *look, plugins=",".join(misbehaving.SOURCES)),
        "import torch": partial(process, "-c", "import torch"),
    }
    times = race(contestants, settings.rounds)
    base = times["list methods"]
    board.table(
        "start-up",
        [
            {
                "process": name,
                "seconds": statistics.median(taken),
                "over list methods": statistics.median(a / b for a, b in zip(taken, base, strict=True)),
            }
            for name, taken in times.items()
        ],
    )
    worst = statistics.median(a / b for a, b in zip(times["list methods, misbehaving plugins"], base, strict=True))
    board.check("start-up", "list methods with misbehaving plugins, over without", worst, 1.25)
    replay(benchmark, base)
