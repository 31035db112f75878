"""Processes that share an evaluation: who computes what, and what is left when one of them is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

SLEEPY = '''
"""Twelve independent units, then one that needs them all; each says which process computes it. The first ends when it
may."""
import os
import time
from pathlib import Path

import numpy as np

from robflat_bench.api import Measure, MeasureInfo, Measurement, hookimpl


class Sleepy(Measure):
    def measure(self, model, examples, workspace):
        def unit(number):
            def compute():
                with open(os.environ["SLEEPY_LOG"], "a") as log:
                    log.write(f"{number} {os.getpid()}\\n")
                print("a print of a measure")
                while number == 0 and not Path(os.environ["SLEEPY_LOG"] + ".go").exists():
                    time.sleep(0.02)
                time.sleep(0.2)
                return {"value": np.array(float(number))}

            return workspace.journal.unit(f"unit-{number}", compute)["value"]

        values = workspace.journal.each(12, unit)
        return Measurement(float(sum(values) + unit(12)), None, len(examples))


@hookimpl
def robflat_bench_measures():
    return [MeasureInfo("sleepy", "sleeps", "sleepy:Sleepy")]
'''
UNITS = set(range(13))


class Sleeping:
    """`evaluate --measure sleepy` in a process of its own, on a copy of a finished run."""

    def __init__(self, finished, folder: Path, environment) -> None:
        self.finished, self.log, self.plugin = finished, folder / "log.txt", folder / "sleepy.py"
        self.plugin.write_text(SLEEPY)
        self.environment = {**environment(), "SLEEPY_LOG": str(self.log)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, jobs: int) -> subprocess.Popen[str]:
        store = ("--store", str(self.finished.store), "--protocol", str(self.finished.store / "tiny.toml"))
        line = ("evaluate", str(self.finished.folder), "--measure", "sleepy", "--plugin", str(self.plugin), *store)
        arguments = [sys.executable, "-m", "robflat_bench", *line, "--jobs", str(jobs), "--json"]
        pipe = subprocess.PIPE
        self.started.append(subprocess.Popen(arguments, env=self.environment, stdout=pipe, stderr=pipe, text=True))
        return self.started[-1]

    def computed(self) -> list[tuple[int, int]]:
        """(unit, process) in the order in which they began."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [tuple(map(int, line.split())) for line in lines if len(line.split()) == 2]

    def shared(self, process: subprocess.Popen[str]) -> set[int]:
        """The workers, once one has computed a unit. The process that reads then waits in the first one for `go`."""
        for _ in range(12_000):
            if workers := {pid for _, pid in self.computed()} - {process.pid}:
                return workers
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        raise AssertionError(f"waited in vain: {self.computed()}")

    def go(self) -> None:
        Path(f"{self.log}.go").touch()

    def value(self, process: subprocess.Popen[str]) -> float:
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert "a print of a measure" not in out
        self.errors = errors
        return next(iter(next(iter(json.loads(out)["results"].values()))["measures"].values()))["value"]


@pytest.fixture
def sleeping(finished_copy, tiny, tmp_path, child_environment) -> Iterator[Sleeping]:
    shutil.copy(tiny, finished_copy.store / "tiny.toml")
    made = Sleeping(finished_copy, tmp_path, child_environment)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_processes_share_independent_units_of_a_one_file_plugin(sleeping):
    """No unit is computed twice, and what a worker prints is not seen."""
    process = sleeping.start(jobs=3)
    workers = sleeping.shared(process)
    sleeping.go()
    assert sleeping.value(process) == sum(UNITS)
    assert sorted(unit for unit, _ in sleeping.computed()) == sorted(UNITS)
    assert not any(map(alive, workers))
    assert sleeping.errors.count("a print of a measure") == len(
        [1 for _, pid in sleeping.computed() if pid == process.pid]
    )


def test_a_killed_worker_loses_one_unit(sleeping):
    process = sleeping.start(jobs=2)
    (worker,) = sleeping.shared(process)
    os.kill(worker, signal.SIGKILL)
    sleeping.go()
    assert sleeping.value(process) == sum(UNITS)
    again = Counter(unit for unit, _ in sleeping.computed())
    assert set(again) == UNITS
    assert sum(again.values()) <= len(UNITS) + 1
    assert "fewer processes than --jobs 2 made this evaluation: one ended with code -9" in sleeping.errors


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_no_worker_outlives_its_evaluation_which_resumes_with_other_jobs(sleeping, number, code):
    process = sleeping.start(jobs=3)
    workers = sleeping.shared(process)
    os.kill(process.pid, number)
    process.communicate(timeout=600)
    assert process.returncode == code
    for _ in range(100):
        if not any(map(alive, workers)):
            break
        time.sleep(0.05)
    assert not [worker for worker in workers if alive(worker)]
    began = sleeping.computed()
    sleeping.go()
    assert sleeping.value(sleeping.start(jobs=1)) == sum(UNITS)
    after = Counter(unit for unit, _ in sleeping.computed())
    assert set(after) == UNITS
    assert sum(after.values()) <= len(UNITS) + 3
    assert sleeping.computed()[: len(began)] == began
