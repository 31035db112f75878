"""The launcher over stand-ins of SLURM's commands: what a real SLURM rarely says, and what it is asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from one_machine import until

from robflat_bench.api import Exit, Job, Resources, UsageError
from robflat_bench.registry.components import resolve
from robflat_bench.registry.registry import discover
from robflat_cluster.slurm import Slurm, SlurmParams

STAND_IN = """#!/bin/bash
echo "$0 $*" >> {folder}/asked
env | grep -E '^(SQUEUE|SCANCEL)_' >> {folder}/variables
[ -e {folder}/{name}.error ] && {{ cat {folder}/{name}.error >&2; exit 1; }}
cat {folder}/{name}.answer 2>/dev/null
exit 0
"""


class StandIns:
    """Commands that answer with the text of a file, or fail with it, and note what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sbatch", "squeue", "scancel"):
            script = folder / name
            script.write_text(STAND_IN.format(folder=folder, name=name))
            script.chmod(0o755)

    def answer(self, name: str, text: str) -> None:
        (self.folder / f"{name}.error").unlink(missing_ok=True)
        (self.folder / f"{name}.answer").write_text(text, "latin-1")  # names are any bytes

    def fail(self, name: str, text: str) -> None:
        (self.folder / f"{name}.error").write_text(text + "\n")

    def table(self, *rows: str) -> None:
        """Rows such as "7|RUNNING|0|1:00|n1|robflat-a|None"."""
        self.answer("squeue", "".join(f"{row}|\n" for row in rows))

    def asked(self, name: str) -> list[str]:
        """The arguments of each call of a command."""
        file = self.folder / "asked"
        calls = [line.split(" ", 1) for line in file.read_text().splitlines()] if file.exists() else []
        return [words for path, words in calls if path.endswith(f"/{name}")]


@pytest.fixture
def scheduler(tmp_path, monkeypatch) -> StandIns:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    stand_ins = StandIns(folder)
    stand_ins.answer("sbatch", "7\n")
    stand_ins.table()
    return stand_ins


def slurm(device: str = "cpu", **params: object) -> Slurm:
    return Slurm(SlurmParams(**params), Resources(1, 2, device))


JOB = Job("a", ("true",), Path("log.txt"))
NO_ANSWER = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


# ---------------------------------------------------------------------------------------------------------
# Answers that a job's end depends on
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [
        ("COMPLETED", 0, Exit(0)),
        ("FAILED", 3 << 8, Exit(3)),
        ("FAILED", 9, Exit(-9)),
        ("CANCELLED", 0, Exit(None, "cancelled")),
        ("TIMEOUT", 143 << 8, Exit(143, "time limit")),
        ("NODE_FAIL", 0, Exit(None, "node lost")),
        ("PREEMPTED", 15, Exit(-15, "preempted")),
        ("OUT_OF_MEMORY", 9, Exit(-9, "out of memory")),
        ("BOOT_FAIL", 0, Exit(None, "node did not boot")),
        ("DEADLINE", 0, Exit(None, "deadline")),
    ],
)
def test_every_end_has_its_code_and_cause(scheduler, state, status, expected):
    launcher = slurm()
    launcher.start(JOB)
    scheduler.table(f"7|{state}|{status}|INVALID|n1|robflat-a|None")
    assert launcher.wait(5) == {"a": expected}
    assert launcher.standings() == {}


@pytest.mark.parametrize(
    ("row", "standing"),
    [
        ("PENDING|0|1:00:00||robflat-a|Priority", "queued (Priority)"),
        ("PENDING|0|UNLIMITED||robflat-a|None", "queued"),
        (
            "PENDING|0|1:00||robflat-a|Nodes are DOWN | or",
            "queued (Nodes are DOWN | or)",
        ),
        ("REQUEUE_HOLD|0|1:00||robflat-a|launch failed requeued held", "queued (launch failed requeued held)"),
        ("RUNNING|0|3:59:20|n[1-2]|robflat-a|None", "running (on n[1-2], 3:59:20 left)"),
        ("RUNNING|0|UNLIMITED|n1|robflat-a|None", "running (on n1)"),
        ("COMPLETING|0|1:00|n1|robflat-a|None", "running (completing)"),
        ("SUSPENDED|0|1:00|n1|robflat-a|None", "running (suspended)"),
    ],
)
def test_every_other_state_is_unended(scheduler, row, standing):
    launcher = slurm()
    launcher.start(JOB)
    scheduler.table(f"7|{row}")
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": standing}


def test_a_job_that_slurm_has_forgotten_has_ended_and_nobody_saw_how(scheduler):
    launcher = slurm()
    launcher.start(JOB)
    scheduler.table("7|RUNNING|0|1:00|n1|robflat-a|None", "8|RUNNING|0|1:00|n1|a \xff|with a bar|None")
    assert launcher.wait(0.5) == {}
    scheduler.table("8|RUNNING|0|1:00|n1|a name|with a bar|None")
    assert launcher.wait(5) == {"a": Exit(None)}


def test_no_answer_ends_no_job(scheduler):
    launcher = slurm()
    launcher.start(JOB)
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    launcher.wait(0.5)
    scheduler.fail("squeue", NO_ANSWER)
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": f"running (on n1); SLURM does not answer: {NO_ANSWER}"}
    scheduler.table("7|COMPLETED|0|UNLIMITED|n1|robflat-a|None")
    assert launcher.wait(5) == {"a": Exit(0)}


# ---------------------------------------------------------------------------------------------------------
# Submissions
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"
        " accounting/QOS policy (job submit limit, user's size and/or time limits)",
    ],
)
def test_a_job_that_slurm_cannot_take_yet_is_submitted_later(scheduler, said):
    launcher = slurm()
    scheduler.fail("sbatch", said)
    assert launcher.start(JOB) == ""
    assert launcher.wait(0.5) == {}
    assert launcher.standings()["a"].startswith("queued (SLURM has not taken it: sbatch: error: ")
    scheduler.answer("sbatch", "7\n")
    tries = len(scheduler.asked("sbatch"))
    until(lambda: launcher.wait(0) or len(scheduler.asked("sbatch")) > tries)
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    assert launcher.wait(0.5) == {}
    assert launcher.standings() == {"a": "running (on n1)"}


def test_a_submission_without_an_answer_that_succeeded_is_not_repeated(scheduler):
    launcher = slurm()
    scheduler.fail("sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    launcher.start(JOB)
    scheduler.table("7|PENDING|0|UNLIMITED||robflat-a|Priority")
    assert launcher.wait(0.5) == {}
    assert len(scheduler.asked("sbatch")) == 1
    assert launcher.standings() == {"a": "queued (Priority)"}


def test_a_job_that_is_refused_later_ends_with_the_reason(scheduler):
    launcher = slurm()
    scheduler.fail("sbatch", NO_ANSWER)
    launcher.start(JOB)
    scheduler.fail("sbatch", "sbatch: error: Batch job submission failed: Invalid account")
    (ended,) = launcher.wait(5).values()
    assert ended.code is None
    assert "Invalid account; change slurm(partition=" in ended.cause


def test_without_its_commands_it_says_where_to_type(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no 'sbatch' here: type this on a machine where SLURM's commands"):
        slurm().start(JOB)


def test_an_interrupt_forgets_jobs_that_were_never_accepted(scheduler):
    launcher = slurm()
    scheduler.fail("sbatch", NO_ANSWER)
    launcher.start(JOB)
    launcher.interrupt()
    scheduler.answer("sbatch", "7\n")
    assert launcher.wait(5) == {"a": Exit(None, "cancelled")}
    assert len(scheduler.asked("sbatch")) == 1


def test_an_interrupt_finds_a_job_whose_submission_had_no_answer(scheduler):
    launcher = slurm()
    scheduler.fail("squeue", NO_ANSWER)
    launcher.adopt(JOB, "")
    launcher.interrupt()
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    assert launcher.wait(1) == {}
    assert scheduler.asked("scancel") == ["--batch --signal=INT 7"]


def test_a_job_is_interrupted_once_for_each_interrupt(scheduler):
    def interrupts() -> int:
        return scheduler.asked("scancel").count("--batch --signal=INT 7")

    launcher = slurm()
    launcher.start(JOB)
    scheduler.table("7|PENDING|0|UNLIMITED||robflat-a|Priority")
    launcher.interrupt()
    assert scheduler.asked("scancel") == ["--state=PENDING 7"]
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    scheduler.fail("scancel", "scancel: error: Kill job error on job id 7: Job/step already completing or completed")
    until(lambda: launcher.wait(0) or interrupts())
    scheduler.answer("scancel", "")
    launcher.wait(1.5)
    launcher.wait(1.5)
    assert interrupts() == 2  # the first did not reach it
    launcher.interrupt()
    launcher.wait(1.5)
    assert interrupts() == 3


# ---------------------------------------------------------------------------------------------------------
# Adoption
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["7", ""])
def test_without_an_answer_nothing_is_started_twice(scheduler, known):
    launcher = slurm()
    scheduler.fail("squeue", NO_ANSWER)
    assert launcher.adopt(JOB, known)
    assert launcher.wait(0.5) == {}
    assert NO_ANSWER in launcher.standings()["a"]
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    assert launcher.wait(0.5) == {}
    scheduler.table("7|COMPLETED|0|UNLIMITED|n1|robflat-a|None")
    assert launcher.wait(5) == {"a": Exit(0)}
    assert scheduler.asked("sbatch") == []


@pytest.mark.parametrize("known", ["7", ""])
def test_ended_jobs_and_jobs_of_others_are_not_adopted(scheduler, known):
    scheduler.table("7|COMPLETED|0|UNLIMITED|n1|robflat-a|None", "8|RUNNING|0|UNLIMITED|n1|robflat-ab|None")
    assert not slurm().adopt(JOB, known)
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-b|None")
    assert not slurm().adopt(JOB, known)


# ---------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------


def test_one_look_serves_all_jobs_and_comes_no_more_often_than_its_pace(scheduler, monkeypatch):
    monkeypatch.setattr(Slurm, "pace", 1.0)
    jobs = [Job(f"j{number}", ("true",), Path("log.txt")) for number in range(40)]
    scheduler.table(*(f"{number}|RUNNING|0|1:00|n1|robflat-j{number}|None" for number in range(40)))
    launcher = slurm()
    assert all(launcher.adopt(job, "") for job in jobs)
    began = time.monotonic()
    while time.monotonic() < began + 3.5:
        assert launcher.wait(0.05) == {}
    assert 3 <= len(scheduler.asked("squeue")) <= 5


def test_filters_of_the_shell_do_not_hide_jobs(scheduler, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "long")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "yes")
    launcher = slurm()
    launcher.start(JOB)
    scheduler.table("7|RUNNING|0|UNLIMITED|n1|robflat-a|None")
    launcher.interrupt()
    assert (scheduler.folder / "variables").read_text() == ""


@pytest.mark.parametrize(
    ("device", "params", "expected"),
    [
        ("cpu", {}, None),
        ("cuda", {}, "--gres=gpu:1"),
        ("cpu", {"gpus": 2}, "--gres=gpu:2"),
        ("cuda", {"gpus": 0}, None),
    ],
)
def test_gpus_are_asked_for_where_the_device_or_the_user_wants_them(scheduler, device, params, expected):
    slurm(device, **params).start(JOB)
    (words,) = scheduler.asked("sbatch")
    assert [word for word in words.split() if word.startswith("--gres")] == ([expected] if expected else [])
    assert "--cpus-per-task=2" in words.split()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slurm(time='4:00')", "'time' = '4:00': write hours:minutes:seconds in quotes, '4:00:00'"),
        ("slurm(time='0:04:59')", "at least 5 minutes"),
        ("slurm(partition='a b')", "'partition' = 'a b'"),
        (r'slurm(account="a\n")', "'account' = "),
        ("slurm(memory='16')", "'memory' = '16'"),
        ("slurm(gpus=-1)", "'gpus' = -1"),
    ],
)
def test_bad_parameters_are_one_line(text, problem):
    with pytest.raises(UsageError) as refused:
        resolve(discover(), "launcher", text)
    assert problem in str(refused.value)


def test_the_spec_of_a_user():
    text = (
        "slurm(partition=gpu, time='1-00:00:00', gpus=1, memory='16G', account=lab-7, setup='module load cuda; . env')"
    )
    params = resolve(discover(), "launcher", text).params
    assert params.setup == "module load cuda; . env"
    assert params.time == "1-00:00:00"
