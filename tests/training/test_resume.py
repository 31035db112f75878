"""A run killed by `kill -9` at a random moment and started again equals an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import promised

PROTOCOL = """
name = "resume"
version = "1.0"
summary = "A few seconds of everything that resumes."

[fixed]
backbone = "resnet8(width=8)"
precision = "float32"
threads = 1

[fixed.data]
dataset = "digits"
train = { pool = "train", start = 0, stop = 200, count = 200 }
heldout = { pool = "train", start = 200, stop = 250, count = 50 }
test = { pool = "train", start = 250, stop = 450, count = 200 }

[fixed.threat]
epsilon = 0.15

[fixed.selection]
attack = "pgd(steps=2)"

[[fixed.attacks]]
attack = "pgd(steps=5, restarts=2)"
test = 200
train = 100

[[fixed.attacks]]
attack = "autoattack(version=apgd, batch=4)"
test = 8
checkpoints = ["last"]

[[fixed.measures]]
measure = "average-case(draws=4, steps=4)"
test = 200

[[fixed.measures]]
measure = "worst-case(xi=0.02, restarts=3, steps=4)"
test = 200

[recipe]
epochs = 6
batch_size = 25
learning_rate = 0.1
schedule = "piecewise"
epsilon = 0.15
attack_steps = 3
attack_step = 0.05
"""

# Saving after every step lets a kill land between any two of them.
PROGRAM = """
import sys
from robflat_bench.training import loop
loop.SAVE_EVERY_SECONDS = 0.05
sys.argv[0] = "robflat-bench"
from robflat_bench.cli import main
main()
"""


def start(folder: Path, store: str) -> subprocess.Popen:
    """Starts the run in a process of its own, which writes its record to a file."""
    command = ["run", "--method", "trades", "--protocol", "resume.toml", "--store", store, "--json"]
    with (folder / f"{store}.json").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            cwd=folder,
            env={**os.environ, "ROBFLAT_BENCH_PLUGINS": ""},
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def finished(folder: Path, store: str) -> dict:
    """Runs to the end and returns the record."""
    assert start(folder, store).wait(timeout=300) == 0
    return json.loads((folder / f"{store}.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "resume.toml").write_text(PROTOCOL)
    began = time.monotonic()
    record = finished(folder, "undisturbed")
    return folder, promised(record), time.monotonic() - began


def kill_and_compare(undisturbed, number: int) -> None:
    folder, expected, duration = undisturbed
    store, moments = f"killed-{number}", random.Random(number)
    kills = 0
    while kills < 1 + number % 3:
        process = start(folder, store)
        try:
            process.wait(timeout=moments.uniform(0.25, 1.0) * duration)
            break  # the run ended before it was killed
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert promised(finished(folder, store)) == expected


@pytest.mark.parametrize("number", range(3))
def test_killed_run_ends_with_the_same_record(undisturbed, number):
    kill_and_compare(undisturbed, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3, 20))
def test_run_killed_at_many_moments_ends_with_the_same_record(undisturbed, number):
    kill_and_compare(undisturbed, number)
