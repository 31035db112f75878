"""`doctor --launcher`: a job that answers through the store, and launchers whose sites have a fault each."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from robflat_bench.core import Exit, Launcher, Params, Resources, UsageError
from robflat_bench.runs import site


class Site(Launcher):
    """A node whose answer is given: seconds that its clock is ahead, whether locks hold, whether it takes the job."""

    def __init__(self, ahead: float = 0.0, locks: bool = True, ends: bool = True) -> None:
        super().__init__(Params(), Resources())
        self.ahead, self.locks, self.ends = ahead, locks, ends
        self.interrupted = False

    def start(self, job):
        self.job, folder = job, Path(job.command[-1])
        (folder / site.ARRIVED).touch()
        self.answer = folder / site.ANSWER
        return "1"

    def wait(self, seconds):
        time.sleep(0.02)
        if not self.ends:
            return {}
        answer = {"node": "n7", "time": time.time() + self.ahead, "locks": self.locks}
        self.answer.write_text(json.dumps(answer))
        return {self.job.name: Exit(0)}

    def standings(self):
        return {} if self.ends else {self.job.name: "queued (Priority)"}

    def interrupt(self):
        self.interrupted = True


class Elsewhere(Site):
    """Its node does not see the store."""

    def wait(self, seconds):
        self.job.log.write_text("No such file or directory\n")
        return {self.job.name: Exit(2)}


class Earlier(Site):
    """A launcher of API 1.3, whose node does not see the store."""

    def start(self, job):
        self.job = job

    def wait(self, seconds):
        return {self.job.name: 2}


class Missing(Site):
    def start(self, job):
        raise UsageError("sbatch is not there: type `module load slurm`")


def check(launcher: Launcher, store: Path) -> tuple[dict, list[str], list[str]]:
    notes: list[str] = []
    found, problems = site.check_site(launcher, store, notes.append)
    assert not list(store.iterdir()), "nothing is left behind"
    return found, problems, notes


def test_a_good_site_has_no_problems_and_says_what_was_found(tmp_path):
    found, problems, _ = check(Site(), tmp_path)
    assert (found["node"], found["locks"], problems) == ("n7", True, [])
    least, most = found["clock"]
    assert -1.0 < least <= 0.0 <= most < 1.0


@pytest.mark.parametrize(
    ("launcher", "problem"),
    [
        (Site(ahead=3600.0), "the clock of n7 differs by +3600 s"),
        (Site(ahead=-60.0), "the clock of n7 differs by -60 s"),
        (Site(locks=False), "n7 takes a lock in"),
        (Elsewhere(), "which its node may not see: exit code 2: No such file or directory"),
        (Earlier(), "which its node may not see: exit code 2"),
        (Missing(), "sbatch is not there: type `module load slurm`"),
    ],
)
def test_a_fault_of_a_site_is_one_line(tmp_path, launcher, problem):
    _, (found,), _ = check(launcher, tmp_path)
    assert problem in found
    assert "\n" not in found


def test_a_job_that_stays_in_the_queue_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "PATIENCE", 0.2)
    launcher = Site(ends=False)
    _, (problem,), notes = check(launcher, tmp_path)
    assert problem.endswith("has not ended after 0.2 s: queued (Priority)")
    assert notes == ["the job is queued (Priority)"]
    assert launcher.interrupted


def test_a_job_whose_doctor_is_interrupted_leaves_the_queue(tmp_path, monkeypatch):
    launcher = Site(ends=False)
    monkeypatch.setattr(launcher, "standings", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        check(launcher, tmp_path)
    assert launcher.interrupted


def test_doctor_tries_a_launcher_with_a_real_job(command, tmp_path):
    done = command("doctor", "--launcher", "local", "--store", tmp_path / "runs", "--json")
    found = done.document["launcher"]
    assert (found["name"], found["locks"]) == ("local", True)
    assert not [problem for problem in done.document["problems"] if "job" in problem or "clock" in problem]
    assert not list((tmp_path / "runs").iterdir())
    assert "unknown launcher 'locl'" in command("doctor", "--launcher", "locl").complaint
