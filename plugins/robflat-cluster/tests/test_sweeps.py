"""Whole sweeps on a real SLURM, disturbed in every way: the records are those of an undisturbed sweep, and no run is
made twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from one_machine import OneMachine, until

from robflat_bench.testing.tiny import tiny_protocol

STUDY = """
name = "cluster"
version = "1.0"
summary = "One method."
protocol = "tiny.toml"

[[groups]]
title = "all"
methods = ["standard"]
"""

HOLDS = """
import os, pathlib, signal, time
from robflat_bench.api import hookimpl
from robflat_cluster.slurm import Slurm

Slurm.pace = 1.0
FOLDER = pathlib.Path(os.environ["HOLDS"])

@hookimpl
def robflat_bench_epoch_ends(run, epoch):
    held, warned = FOLDER / f"hold-{run.seed}", FOLDER / f"warned-{run.seed}"
    before = signal.getsignal(signal.SIGUSR1)
    if epoch["epoch"] == 1 and held.exists():
        if callable(before):
            signal.signal(signal.SIGUSR1, lambda *call: (warned.touch(), before(*call)))
        (FOLDER / f"reached-{run.seed}").write_text(f"{os.getpid()} {os.environ['SLURM_JOB_ID']}")
        while held.exists() and not warned.exists():
            time.sleep(0.1)
"""
"""A plugin that stops a run after its second epoch while a file is there, and lets the sweep look every second."""

SETUP = 'echo "$SLURM_JOB_NAME $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0}" >> "$HOLDS/starts"'


TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes", "provenance", "environment")


def timeless(part: Any) -> Any:
    if isinstance(part, list):
        return [timeless(one) for one in part]
    if isinstance(part, dict):
        return {name: timeless(one) for name, one in part.items() if name not in TIMES}
    return part


class Bench:
    """A folder with a study, its stores, and the files that hold runs."""

    def __init__(self, folder: Path, machine: OneMachine) -> None:
        self.folder, self.machine = folder, machine
        self.drivers: list[subprocess.Popen[bytes]] = []
        (folder / "tiny.toml").write_text(tiny_protocol("tiny", epochs=3))
        (folder / "study.toml").write_text(STUDY)
        (folder / "holds.py").write_text(HOLDS)

    def sweep(self, store: str, seeds: int, *options: str) -> subprocess.Popen[bytes]:
        """Type a sweep in another process."""
        words = ["sweep", "study.toml", "--seeds", str(seeds), "--store", store, *options]
        with (self.folder / f"{store}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "robflat_bench", *words],
                cwd=self.folder,
                env={**os.environ, "HOLDS": str(self.folder), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.drivers.append(started)
        return started

    def on_slurm(self, seeds: int) -> subprocess.Popen[bytes]:
        launcher = f"slurm(setup='{SETUP}')"
        return self.sweep("slurm", seeds, "--launcher", launcher, "--jobs", "30", "--plugin", "holds.py")

    def hold(self, *seeds: int) -> None:
        for seed in seeds:
            (self.folder / f"hold-{seed}").touch()

    def free(self, seed: int) -> None:
        (self.folder / f"hold-{seed}").unlink()

    def reached(self, seed: int) -> tuple[int, str, str]:
        """Wait until a run is held; returns its process, its job and its node."""
        file = self.folder / f"reached-{seed}"
        until(lambda: file.exists() and file.read_text(), 240)
        pid, job = file.read_text().split()
        return int(pid), job, self.machine.command("squeue", "--noheader", f"--jobs={job}", "--format=%N")

    def finish(self, driver: subprocess.Popen[bytes], store: str, seconds: float = 600) -> None:
        code = driver.wait(seconds)
        assert code == 0, (self.folder / f"{store}.log").read_text()[-4000:]

    def records(self, store: str) -> dict[int, Any]:
        """Seed -> the run's record without times, memory and where it was made."""
        files = (self.folder / store).glob("*/*/seed-*/record.json")
        found = [timeless(json.loads(file.read_text())) for file in files]
        return {record["seed"]: record for record in found}

    def started(self) -> list[str]:
        """The job and the restart of each process that SLURM has started."""
        file = self.folder / "starts"
        return [line.split(" ", 1)[1] for line in file.read_text().splitlines()] if file.exists() else []

    def starts(self) -> Counter[int]:
        """Seed -> how often its process was started."""
        keys = {record["key"]: seed for seed, record in self.records("slurm").items()}
        lines = (self.folder / "starts").read_text().splitlines()
        return Counter(keys[line.split("-")[1]] for line in lines)


@pytest.fixture
def bench(tmp_path, machine):
    made = Bench(tmp_path, machine)
    yield made
    for driver in made.drivers:
        driver.kill()
        driver.wait()


def test_a_disturbed_sweep_ends_with_the_records_of_an_undisturbed_one(bench, machine):
    """SIGKILL, scancel, requeue, a killed node, a lost node, a time limit, and the sweep itself killed."""
    bench.hold(1, 2, 3, 4, 5, 6)
    driver = bench.on_slurm(8)

    pid, _, _ = bench.reached(1)
    driver.kill()  # while two runs run, and six wait
    driver.wait()
    os.kill(pid, signal.SIGKILL)
    driver = bench.on_slurm(8)
    bench.free(1)

    _, limited, _ = bench.reached(2)
    until(lambda: "seed 2: its job was there already" in (bench.folder / "slurm.log").read_text(), 240)
    machine.command("scontrol", "update", f"JobId={limited}", f"EndTime={datetime.now() + timedelta(seconds=2):%FT%T}")

    _, job, _ = bench.reached(3)
    machine.command("scancel", job)
    bench.free(3)

    _, job, _ = bench.reached(4)
    machine.command("scontrol", "requeue", job)
    bench.free(4)
    machine.start_requeued(job)

    _, job, node = bench.reached(5)
    machine.kill_node(node)
    bench.free(5)
    machine.start_requeued(job)
    machine.start_node(node)

    _, job, node = bench.reached(6)
    machine.kill_node(node, with_jobs=False)
    machine.start_requeued(job)
    until(lambda: f"{job} 1" in bench.started())  # beside the first copy, which holds the run's folder
    until(lambda: len(machine.job_processes(SLURM_JOB_ID=job)) == 1)
    bench.free(6)
    until(lambda: not machine.job_processes(SLURM_JOB_ID=job))
    machine.start_node(node)

    until(
        lambda: machine.command("squeue", "--noheader", f"--jobs={limited}", "--states=all", "--format=%T") != "RUNNING"
    )
    bench.free(2)
    bench.finish(driver, "slurm")
    assert bench.starts() == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1}
    bench.finish(bench.sweep("local", 8, "--jobs", "2"), "local")
    assert bench.records("slurm") == bench.records("local")


@pytest.mark.slow
def test_thirty_runs_on_two_slots_are_each_started_once_however_often_the_sweep_is_killed(bench):
    driver = bench.on_slurm(30)
    for count in (1, 8, 16):
        until(lambda count=count: len(bench.started()) >= count, 600)
        driver.kill()
        driver.wait()
        driver = bench.on_slurm(30)
    bench.finish(driver, "slurm", 1800)
    assert bench.starts() == dict.fromkeys(range(1, 31), 1)
    bench.finish(bench.sweep("local", 4, "--jobs", "2"), "local")
    assert {seed: record for seed, record in bench.records("slurm").items() if seed <= 4} == bench.records("local")


def test_the_doctor_tries_a_job(bench):
    words = [sys.executable, "-m", "robflat_bench", "doctor", "--launcher", "slurm", "--store", "store", "--json"]
    done = subprocess.run(words, cwd=bench.folder, capture_output=True, check=False)
    found = json.loads(done.stdout)["launcher"]
    assert found["name"].startswith("slurm(")
    assert found["locks"] is True
    assert found["clock"][0] <= 0 <= found["clock"][1]
