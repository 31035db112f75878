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

import pytest
from one_machine import OneMachine, until
from sweep_bench import Bench

SETUP = 'echo "$SLURM_JOB_NAME $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0}" >> "$HOLDS/starts"'


class OnSlurm(Bench):
    """A bench beside a SLURM."""

    def __init__(self, folder: Path, machine: OneMachine) -> None:
        super().__init__(folder)
        self.machine = machine

    def on_slurm(self, seeds: int) -> subprocess.Popen[bytes]:
        launcher = f"slurm(setup='{SETUP}')"
        return self.sweep("slurm", seeds, "--launcher", launcher, "--jobs", "30", "--plugin", "holds.py")

    def held(self, seed: int) -> tuple[int, str, str]:
        """Wait until a run is held; returns its process, its job and its node."""
        pid, job = self.reached(seed)
        return int(pid), job, self.machine.command("squeue", "--noheader", f"--jobs={job}", "--format=%N")

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
    made = OnSlurm(tmp_path, machine)
    yield made
    made.close()


def test_a_disturbed_sweep_ends_with_the_records_of_an_undisturbed_one(bench, machine):
    """SIGKILL, scancel, requeue, a killed node, a lost node, a time limit, and the sweep itself killed."""
    bench.hold(1, 2, 3, 4, 5, 6)
    driver = bench.on_slurm(8)

    pid, _, _ = bench.held(1)
    driver.kill()  # while two runs run, and six wait
    driver.wait()
    os.kill(pid, signal.SIGKILL)
    driver = bench.on_slurm(8)
    bench.free(1)

    _, limited, _ = bench.held(2)
    until(lambda: "seed 2: its job was there already" in (bench.folder / "slurm.log").read_text(), 240)
    machine.command("scontrol", "update", f"JobId={limited}", f"EndTime={datetime.now() + timedelta(seconds=2):%FT%T}")

    _, job, _ = bench.held(3)
    machine.command("scancel", job)
    bench.free(3)

    _, job, _ = bench.held(4)
    machine.command("scontrol", "requeue", job)
    bench.free(4)
    machine.start_requeued(job)

    _, job, node = bench.held(5)
    machine.kill_node(node)
    bench.free(5)
    machine.start_requeued(job)
    machine.start_node(node)

    _, job, node = bench.held(6)
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
