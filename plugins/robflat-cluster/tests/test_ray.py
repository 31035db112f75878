"""The launcher on a real Ray of two nodes: how jobs end, lost nodes, drivers that come and go, whole sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from one_machine import ends as ends_within
from one_machine import until
from sweep_bench import Bench
from two_nodes import SECOND, TwoNodes

from robflat_bench.api import Exit, Resources
from robflat_cluster.ray import Ray, RayParams

pytestmark = pytest.mark.slow
"""Ray starts in 20 to 60 seconds, and each job costs about 5."""

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(5)
    pathlib.Path(sys.argv[2]).touch()
    sys.exit(7)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
"""Needs 5 seconds to save when it is asked to end: more than Ray grants by default."""


def ray(jobs: int = 2, **params: object) -> Ray:
    return Ray(RayParams(**params), Resources(jobs))


ends = partial(ends_within, seconds=300)


def runs(launcher: Ray, on: str = "") -> list[str]:
    """The jobs that run, on a node if one is given."""
    launcher.wait(0)
    return [name for name, words in launcher.standings().items() if words.startswith("running") and on in words]


def test_eight_jobs_on_two_slots_run_once_under_changing_drivers_and_end_with_their_codes(nodes, job, tmp_path):
    lines = {str(number): f"exit {number}" for number in range(6)} | {"killed": "kill -9 $$", "saved": "exit 143"}
    jobs = [job(name, f"echo {name} >> {tmp_path}/starts; {line}") for name, line in lines.items()]
    launcher, known = ray(jobs=8), {one.name: f"robflat-{one.name}-1" for one in jobs}
    for one in jobs:
        assert launcher.start(one) in (known[one.name], "")  # Ray's first answers may come late
    found = ends(launcher, 1)
    while len(found) < 8:
        launcher, seen = ray(jobs=8), {*found}
        left = [one for one in jobs if one.name.rpartition("-")[2] not in seen]
        adopted = [one for one in left if launcher.adopt(one, known[one.name] if len(found) % 2 else "")]
        found |= {one.name.rpartition("-")[2]: Exit(None) for one in {*left} - {*adopted}}  # ended unseen
        found |= ends(launcher, 1) if adopted else {}
    expected = {str(number): Exit(number) for number in range(6)} | {"killed": Exit(-9), "saved": Exit(143)}
    assert {name: how for name, how in found.items() if how.code is not None}.items() <= expected.items()
    codes = {known[one.name]: expected[one.name.rpartition("-")[2]].code for one in jobs}
    assert {id: nodes.job(id)["driver_exit_code"] for id in codes} == codes
    assert sorted((tmp_path / "starts").read_text().split()) == sorted(lines)


def test_interrupted_jobs_have_time_to_save_and_waiting_ones_do_no_work(nodes, job, tmp_path):
    launcher = ray(jobs=3)
    saving = [f"exec {sys.executable} -c '{SAVES}' {tmp_path}/ready-{name} {tmp_path}/saved-{name}" for name in "ab"]
    for one in (job("a", saving[0]), job("b", saving[1])):
        launcher.start(one)
    until(lambda: len([*tmp_path.glob("ready-*")]) == 2, 300)
    launcher.start(job("waits", f"sleep 3; touch {tmp_path}/worked"))
    launcher.interrupt()
    assert ends(launcher, 3) == dict.fromkeys(("a", "b", "waits"), Exit(None, "stopped"))
    assert sorted(file.name for file in tmp_path.glob("saved-*")) == ["saved-a", "saved-b"]
    assert not (tmp_path / "worked").exists()


def test_variables_threads_and_the_folder_reach_the_job(nodes, job, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBFLAT_BENCH_DATA", "/data 'here'")
    monkeypatch.chdir(tmp_path)
    launcher = ray()
    one = job("one", 'echo "$ROBFLAT_BENCH_DATA $OMP_NUM_THREADS $PWD" >&2')
    launcher.start(one)
    assert ends(launcher, 1) == {"one": Exit(0)}
    assert one.log.read_text() == f"/data 'here' 1 {tmp_path}\n"


@pytest.mark.parametrize("with_jobs", [True, False], ids=["killed", "lost"])
def test_a_lost_node_is_the_cause(nodes, job, tmp_path, with_jobs):
    """If only the network failed, the job's program goes on."""
    launcher = ray()
    for name in ("a", "b"):  # one on each node
        launcher.start(job(name, f"echo $$ > {tmp_path}/{name}; exec sleep 300"))
    until(lambda: len(runs(launcher)) == 2 and len([*tmp_path.glob("?")]) == 2, 300)
    (lost,) = runs(launcher, on=SECOND)
    pid = int((tmp_path / lost.rpartition("-")[2]).read_text())
    nodes.kill_second(with_jobs)
    ((name, how),) = ends(launcher, 1).items()
    assert name == lost.rpartition("-")[2]
    assert how.code is None
    assert how.cause.startswith("node lost: ")
    assert Path(f"/proc/{pid}").exists() != with_jobs
    if not with_jobs:
        os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------------
# Sweeps
# ---------------------------------------------------------------------------------------------------------


class OnRay(Bench):
    """A bench beside a Ray."""

    def __init__(self, folder: Path, nodes: TwoNodes) -> None:
        super().__init__(folder)
        self.nodes = nodes

    def on_ray(self, seeds: int) -> subprocess.Popen[bytes]:
        return self.sweep("ray", seeds, "--launcher", "ray", "--jobs", "2", "--plugin", "holds.py")

    def ours(self) -> list[dict[str, Any]]:
        """Ray's rows of this bench's jobs."""
        return [job for job in self.nodes.jobs() if str(self.folder) in job["entrypoint"]]

    def held(self, seed: int) -> tuple[int, str, bool]:
        """Wait until a run is held; returns its process, its job, and whether it is on the second node."""
        pid = self.reached(seed)[0]
        environment = Path(f"/proc/{pid}/environ").read_text()
        job = next(job for job in self.ours() if f'"{job["submission_id"]}"' in environment)
        return int(pid), job["submission_id"], SECOND in job["driver_agent_http_address"]

    def starts(self) -> Counter[int]:
        """Seed -> how many jobs were submitted for it."""
        keys = {record["key"]: seed for seed, record in self.records("ray").items()}
        return Counter(keys[job["submission_id"].split("-")[1]] for job in self.ours())


@pytest.fixture
def bench(tmp_path, nodes):
    made = OnRay(tmp_path, nodes)
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of a sweep of two seeds on this machine, which nothing disturbs."""
    made = Bench(tmp_path_factory.mktemp("undisturbed"))
    made.finish(made.sweep("local", 2, "--jobs", "2"), "local", 1200)
    return made.records("local")


def test_a_killed_sweep_a_killed_run_and_a_stopped_job_leave_the_records_of_an_undisturbed_sweep(bench, undisturbed):
    bench.hold(1, 2)
    driver = bench.on_ray(2)
    pid, _, _ = bench.held(1)
    _, stopped, _ = bench.held(2)
    driver.kill()
    driver.wait()
    os.kill(pid, signal.SIGKILL)
    driver = bench.on_ray(2)
    bench.free(1)
    until(lambda: "seed 2: its job was there already" in (bench.folder / "ray.log").read_text(), 300)
    bench.nodes.stop(stopped)
    bench.free(2)
    bench.finish(driver, "ray", 1200)
    assert bench.starts() == {1: 2, 2: 2}
    assert bench.records("ray") == undisturbed


@pytest.mark.parametrize("with_jobs", [True, False], ids=["killed", "lost"])
def test_a_lost_node_leaves_the_records_of_an_undisturbed_sweep(bench, nodes, undisturbed, with_jobs):
    """The run of a killed node goes on elsewhere. A run behind a lost network goes on where it is, and there alone."""
    bench.hold(1, 2)
    driver = bench.on_ray(2)
    places = {seed: bench.held(seed) for seed in (1, 2)}
    ((lost, job),) = [(seed, job) for seed, (_, job, second) in places.items() if second]
    nodes.kill_second(with_jobs)
    until(lambda: nodes.job(job)["status"] == "FAILED", 300)
    if not with_jobs:
        until(lambda: "is working on this run" in (bench.folder / "ray.log").read_text(), 300)
    bench.free(1)
    bench.free(2)
    bench.finish(driver, "ray", 1200)
    assert bench.starts() == {1: 1, 2: 1} | ({lost: 2} if with_jobs else {})
    assert bench.records("ray") == undisturbed


def test_the_doctor_tries_a_job(bench):
    words = [sys.executable, "-m", "robflat_bench", "doctor", "--launcher", "ray", "--store", "store", "--json"]
    done = subprocess.run(words, cwd=bench.folder, capture_output=True, check=False)
    found = json.loads(done.stdout)["launcher"]
    assert found["name"] == "ray"
    assert found["locks"] is True
    assert found["clock"][0] <= 0 <= found["clock"][1]
