"""The launcher on a real SLURM: how jobs end, requeues, lost nodes, drivers that come and go."""

from __future__ import annotations

import signal
import sys
from datetime import datetime, timedelta

import pytest
from one_machine import OneMachine, ends, until

from robflat_bench.api import Exit, Job, Launcher, Resources, UsageError
from robflat_cluster.slurm import Slurm, SlurmParams

CANCELLED_WHILE_IT_RAN = Exit(-signal.SIGTERM, "cancelled")

STOPPABLE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
"""Creates a file when it is ready for SIGINT, and answers it with the exit code 7."""

WAITS = ("queued", "queued (Resources)", "queued (Priority)")
"""What a job stands at while every node is taken: its reason follows the scheduler's turns."""

COUNTED = 'echo "$SLURM_JOB_ID $SLURM_RESTART_COUNT $SLURMD_NODENAME" >> {starts}'
"""A setup that notes each start of a job."""


def slurm(jobs: int = 2, device: str = "cpu", **params: object) -> Slurm:
    return Slurm(SlurmParams(**params), Resources(jobs, 1, device))


def begun(launcher: Launcher, job: Job, machine: OneMachine) -> int:
    """Wait until a job runs; returns its process."""

    def process() -> list[int]:
        launcher.wait(0)
        return machine.job_processes(SLURM_JOB_NAME=f"robflat-{job.name}")

    until(process)
    return process()[0]


# ---------------------------------------------------------------------------------------------------------
# How jobs end
# ---------------------------------------------------------------------------------------------------------


def test_jobs_end_with_their_exit_code_or_signal(machine, job):
    launcher = slurm(jobs=4)
    for name, line in (("good", "true"), ("bad", "exit 3"), ("killed", "kill -9 $$"), ("saved", "exit 143")):
        launcher.start(job(name, line))
    assert ends(launcher, 4) == {"good": Exit(0), "bad": Exit(3), "killed": Exit(-9), "saved": Exit(143)}


def test_cancelled_jobs_name_the_cause(machine, job):
    launcher = slurm(jobs=3)
    running, queued = [job(name, "exec sleep 60") for name in ("a", "b")], job("queued", "true")
    ids = [launcher.start(one) for one in (*running, queued)]
    for one in running:
        begun(launcher, one, machine)
    assert launcher.look()
    assert launcher.standings()[queued.name] in WAITS
    assert launcher.standings()[running[0].name].startswith("running (on n")
    machine.command("scancel", ids[0], ids[2])
    assert ends(launcher, 2) == {"a": CANCELLED_WHILE_IT_RAN, "queued": Exit(None, "cancelled")}
    machine.command("scancel", ids[1])
    assert ends(launcher, 1) == {"b": CANCELLED_WHILE_IT_RAN}


def test_a_run_is_warned_before_its_time_limit_which_is_then_the_cause(machine, job):
    launcher = slurm(time="0:05:00")
    saves, stays = job("saves", "trap 'exit 5' USR1; sleep 120 & wait"), job("stays", "trap '' USR1; exec sleep 120")
    for one in (saves, stays):
        id = launcher.start(one)
        begun(launcher, one, machine)
        machine.command("scontrol", "update", f"JobId={id}", f"EndTime={datetime.now() + timedelta(seconds=2):%FT%T}")
    found = ends(launcher, 2, seconds=90)
    assert found.pop("saves").code == 5
    assert found == {"stays": Exit(-signal.SIGTERM, "time limit")}


# ---------------------------------------------------------------------------------------------------------
# Jobs that SLURM starts again
# ---------------------------------------------------------------------------------------------------------


def requeue(machine: OneMachine, id: str) -> None:
    machine.command("scontrol", "requeue", id)


def preempt(machine: OneMachine, id: str) -> None:
    for _ in range(2):
        machine.command("sbatch", "--partition=urgent", "--output=/dev/null", "--wrap=sleep 3")


@pytest.mark.parametrize("disturb", [requeue, preempt])
def test_a_job_that_slurm_puts_back_is_unended_and_appends_to_its_log(machine, job, tmp_path, disturb):
    launcher = slurm(setup=COUNTED.format(starts=tmp_path / "starts"))
    again = job("again", 'echo "start ${SLURM_RESTART_COUNT:-0}" >&2; [ "$SLURM_RESTART_COUNT" ] || exec sleep 60')
    id = launcher.start(again)
    begun(launcher, again, machine)
    disturb(machine, id)
    machine.start_requeued(id)
    assert launcher.wait(0.5) == {}
    assert ends(launcher, 1) == {"again": Exit(0)}
    assert [line for line in again.log.read_text().splitlines() if line.startswith("start")] == ["start 0", "start 1"]
    assert len((tmp_path / "starts").read_text().splitlines()) == 2


@pytest.mark.parametrize("with_jobs", [True, False], ids=["killed", "lost"])
def test_a_node_that_fails_ends_no_job(machine, job, tmp_path, with_jobs):
    """SLURM starts the job again. If only the network failed, the first copy runs beside the second for a while."""
    launcher = slurm(setup=COUNTED.format(starts=tmp_path / "starts"))
    on_node = job("on-node", '[ "$SLURM_RESTART_COUNT" ] || exec sleep 60')
    id = launcher.start(on_node)
    begun(launcher, on_node, machine)
    node = machine.command("squeue", "--noheader", f"--jobs={id}", "--format=%N")
    machine.kill_node(node, with_jobs)
    machine.start_requeued(id)
    assert ends(launcher, 1) == {"node": Exit(0)}
    assert bool(machine.job_processes(SLURM_JOB_ID=id)) != with_jobs
    machine.start_node(node)
    until(lambda: not machine.job_processes(SLURM_JOB_ID=id))
    assert [line.split()[0] for line in (tmp_path / "starts").read_text().splitlines()] == [id, id]


# ---------------------------------------------------------------------------------------------------------
# Drivers
# ---------------------------------------------------------------------------------------------------------


def test_a_later_driver_finds_queued_and_running_jobs_by_id_and_by_name(machine, job):
    first, second = slurm(), slurm()
    jobs = {name: job(name, "exec sleep 60") for name in ("a", "b", "c")}
    ids = {name: first.start(one) for name, one in jobs.items()}
    begun(first, jobs["a"], machine)
    assert second.adopt(jobs["a"], ids["a"])
    assert second.adopt(jobs["b"], "")
    assert second.adopt(jobs["c"], ids["c"])
    assert not second.adopt(job("never", "true"), "")
    assert not second.adopt(job("never", "true"), ids["a"])  # another cluster, or ids that began anew
    assert second.standings()[jobs["a"].name].startswith("running")
    assert second.standings()[jobs["c"].name] in WAITS
    machine.command("scancel", *ids.values())
    assert {*ends(second, 3)} == {"a", "b", "c"}
    assert not slurm().adopt(jobs["a"], ids["a"])


def test_thirty_jobs_on_two_slots_start_once_under_changing_drivers(machine, job, tmp_path):
    setup = COUNTED.format(starts=tmp_path / "starts")
    jobs = [job(str(number), f"exit {number}") for number in range(30)]
    launcher = slurm(jobs=30, setup=setup)
    known = {one.name: launcher.start(one) for one in jobs}
    found: dict[str, Exit] = {}
    while len(found) < len(jobs):
        launcher = slurm(jobs=30, setup=setup)
        left = [one for one in jobs if one.name.rpartition("-")[2] not in found]
        adopted = [one for one in left if launcher.adopt(one, known[one.name] if len(found) % 2 else "")]
        for one in {*left} - {*adopted}:  # it ended while no driver looked
            found[one.name.rpartition("-")[2]] = Exit(None)
        if adopted:
            found |= ends(launcher, 1)
    seen = {name: how for name, how in found.items() if how.code is not None}
    assert seen == {name: Exit(int(name)) for name in seen}
    ids = [line.split()[0] for line in (tmp_path / "starts").read_text().splitlines()]
    assert sorted(ids) == sorted(known.values())


def test_interrupt_reaches_running_jobs_and_those_that_begin_meanwhile_and_empties_the_queue(machine, job, tmp_path):
    launcher = slurm(jobs=4)
    stoppable = f"exec {sys.executable} -c '{STOPPABLE}' {tmp_path}/ready-"
    jobs = [job(str(number), f"{stoppable}{number}") for number in range(4)]
    for one in jobs:
        launcher.start(one)
    until(lambda: len([*tmp_path.glob("ready-*")]) == 2)
    launcher.interrupt()
    found = ends(launcher, 4)
    assert sorted(how.code == 7 and not how.cause for how in found.values()) == [False, False, True, True]
    assert sorted(how == Exit(None, "cancelled") for how in found.values()) == [False, False, True, True]


def test_a_job_that_begins_while_it_is_interrupted_ends(machine, job):
    launcher = slurm()
    launcher.start(job("new", f"exec {sys.executable} -c 'import time; time.sleep(60)'"))
    launcher.interrupt()
    assert {*ends(launcher, 1, seconds=20)} == {"new"}


# ---------------------------------------------------------------------------------------------------------
# What SLURM is asked for
# ---------------------------------------------------------------------------------------------------------


def test_arguments_paths_and_setup_reach_the_job_as_they_are(machine, tmp_path):
    folder = tmp_path / "50%j of 'a b' $HOME"
    folder.mkdir()
    odd = ["$HOME `id` \"x\" 'y'", "two\nlines", "; exit 9", "%j"]
    program = (
        "import os, sys; sys.stderr.write(repr([sys.argv[1:], os.environ['SAID'], os.environ['OMP_NUM_THREADS']]))"
    )
    launcher = slurm(setup="export SAID='a b'\n#SBATCH --hold")
    odd_job = Job(f"{tmp_path.name}-odd", (sys.executable, "-c", program, *odd), folder / "log.txt")
    launcher.start(odd_job)
    assert ends(launcher, 1) == {"odd": Exit(0)}
    assert odd_job.log.read_text() == repr([odd, "a b", "1"])


def test_limits_are_the_users_or_follow_from_the_expected_need(machine, job):
    launcher = slurm(jobs=4)
    machine.command("scontrol", "update", "NodeName=n1,n2", "State=drain", "Reason=test")
    try:
        given = slurm(time="1-02:03:00", memory="3G", partition="main").start(job("given", "true", seconds=9.0))
        small = launcher.start(job("small", "true", seconds=10.0, memory=2**20))
        large = launcher.start(job("large", "true", seconds=36000.0, memory=2 * 2**30))
        unknown = launcher.start(job("unknown", "true"))
        shown = [
            machine.command("squeue", "--noheader", f"--jobs={id}", "--format=%l %m %P")
            for id in (given, small, large, unknown)
        ]
        machine.command("scancel", given, small, large, unknown)
    finally:
        machine.command("scontrol", "update", "NodeName=n1,n2", "State=resume")
    assert shown == ["1-02:03:00 3G main", "15:00 2G main", "20:00:00 3G main", "UNLIMITED 0 main"]


def test_what_slurm_never_accepts_is_one_line(machine, job):
    with pytest.raises(UsageError, match=r"SLURM refuses the job: .*invalid partition.*; change slurm\(partition="):
        slurm(partition="nowhere").start(job("a", "true"))
