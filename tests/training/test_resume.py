"""A run ended at a random moment, by `kill -9` or by a signal that it answers, and started again equals an undisturbed
run, bit for bit. `pytest -m slow -k signal -rP` prints what each signal found."""

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

# It counts the steps that it begins and the units of evaluation that it begins, one byte each, in the file SEEN.
PROGRAM = """
import os, sys
from pathlib import Path
from robflat_bench.records.journal import StoredJournal
from robflat_bench.training import loop

def counted(function, mark):
    def call(*arguments):
        with Path(os.environ["SEEN"]).open("ab") as seen:
            seen.write(mark)
        return function(*arguments)
    return call

loop.Trainer.step = counted(loop.Trainer.step, b"s")
StoredJournal.unit = counted(StoredJournal.unit, b"u")
loop.SAVE_EVERY_SECONDS = float(os.environ["SAVE"])
sys.argv[0] = "robflat-bench"
from robflat_bench.cli import main
main()
"""


def start(folder: Path, store: str, *options: str, save: float = 0.05) -> subprocess.Popen:
    """Starts the run in a process of its own, which writes its record to a file. Saving after every step, as it does by
    default, lets a kill land between any two of them."""
    command = ["run", "--method", "trades", "--protocol", "resume.toml", "--store", store, "--json", *options]
    counts = {"SEEN": f"{store}.seen", "SAVE": str(save)}
    with (folder / f"{store}.json").open("wb") as out, (folder / f"{store}.txt").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            cwd=folder,
            env={**os.environ, "ROBFLAT_BENCH_PLUGINS": "", **counts},
            stdout=out,
            stderr=err,
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


@pytest.mark.parametrize("number", range(2))
def test_killed_run_ends_with_the_same_record(undisturbed, number):
    kill_and_compare(undisturbed, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2, 20))
def test_run_killed_at_many_moments_ends_with_the_same_record(undisturbed, number):
    kill_and_compare(undisturbed, number)


# ---------------------------------------------------------------------------------------------------------
# Signals that a run answers
# ---------------------------------------------------------------------------------------------------------

ENDED = {
    signal.SIGTERM: (143, "interrupted by SIGTERM"),
    signal.SIGHUP: (129, "interrupted by SIGHUP"),
    signal.SIGUSR1: (0, "stopped by SIGUSR1"),
}
"""Signal -> exit code and the beginning of what the run says."""


def ended(folder: Path, store: str, process: subprocess.Popen, code: int, said: str) -> tuple[int, int]:
    """Check how a run ended; the steps that it had begun, and those that it saved."""
    assert process.wait(timeout=60) == code
    last = (folder / f"{store}.txt").read_text().splitlines()[-1]
    assert last == f"robflat-bench: {said}; run the same command again, it resumes"
    assert (folder / f"{store}.json").read_text() == ""
    saved = max(path.stem for path in (folder / store).rglob("state-*.safetensors"))
    return (folder / f"{store}.seen").read_bytes().count(b"s"), int(saved.removeprefix("state-"))


def signal_and_compare(undisturbed, number: signal.Signals, moment: int) -> None:
    """In every second moment training is ended, otherwise evaluation. It saves nothing before it is asked to end."""
    folder, expected, _ = undisturbed
    store = f"{number.name}-{moment}"
    moments = random.Random(store)
    phase = b"us"[moment % 2 :][:1]
    wanted = moments.randrange(1, (folder / "undisturbed.seen").read_bytes().count(phase))
    process, seen = start(folder, store, save=3600.0), folder / f"{store}.seen"
    while not (seen.is_file() and seen.read_bytes().count(phase) == wanted):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.1))
    process.send_signal(number)
    sent = time.monotonic()
    begun, saved = ended(folder, store, process, *ENDED[number])
    took = time.monotonic() - sent
    assert begun - saved <= 1
    assert promised(finished(folder, store)) == expected
    where = "step" if phase == b"s" else "unit"
    found = f"{number.name} after {where} {wanted}: {begun} steps begun, {saved} saved, left in {took:.2f} s, resumed"
    sys.stdout.write(f"{found}, record equal\n")


@pytest.mark.parametrize(("number", "moment"), [*zip(ENDED, (0, 2, 3), strict=True)])
def test_a_signal_saves_the_run(undisturbed, number, moment):
    signal_and_compare(undisturbed, number, moment)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [*((signal.SIGTERM, moment) for moment in range(10, 30)), *((n, m) for n in ENDED for m in range(30, 33))],
)
def test_a_signal_at_many_moments_saves_the_run(undisturbed, number, moment):
    signal_and_compare(undisturbed, number, moment)
