"""SLURM's own commands: `sbatch`, `squeue` and `scancel`, and the table that `squeue` prints."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robflat_bench.api import Exit, UsageError
from robflat_cluster.scheduler import Unanswered

FIELDS = ("JobID", "State", "exit_code", "TimeLeft", "NodeList", "Name", "Reason")
"""Columns of the table. The reason is last: it is a sentence of any characters."""

ENDS = {
    "COMPLETED": "",
    "FAILED": "",
    "CANCELLED": "cancelled",
    "TIMEOUT": "time limit",
    "NODE_FAIL": "node lost",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out of memory",
    "BOOT_FAIL": "node did not boot",
    "DEADLINE": "deadline",
}
"""State of an ended job -> what ended it. A job in any other state is unended; so are those that SLURM requeues."""

QUEUED = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
"""States of a job that waits, or is held, in the queue."""

FILTERS = ("SQUEUE_", "SCANCEL_")
"""Beginnings of variables that filter or rearrange the jobs which a command sees."""

LATER = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Resource temporarily unavailable",
    "temporarily unable to accept job",
    "Job violates accounting/QOS policy",
    "Slurm backup controller in standby mode",
)
"""What sbatch says where the same submission can succeed later: no answer, or a limit of jobs in the queue."""


@dataclass(frozen=True)
class Row:
    """A job in SLURM's table.

    Parameters
    ----------
    id : str
        Its number.
    state : str
        SLURM's word, such as "RUNNING".
    status : int
        Status of the ended process, as `os.wait` gives it; 0 until then.
    left : str
        Time until its limit, "1:30:00"; a word where there is no limit.
    nodes : str
        The nodes that run it.
    name : str
        Its name.
    reason : str
        Why it waits or ended.
    """

    id: str
    state: str
    status: int
    left: str
    nodes: str
    name: str
    reason: str

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    @property
    def queued(self) -> bool:
        return self.state in QUEUED

    @property
    def exit(self) -> Exit:
        """How the job ended. SLURM notes the status 0 for jobs that never began or whose node was lost."""
        cause = ENDS[self.state]
        return Exit(os.waitstatus_to_exitcode(self.status) if self.status or not cause else None, cause)

    @property
    def standing(self) -> str:
        """Where an unended job stands: "queued (Priority)", "running (on node7, 1:30:00 left)"."""
        if self.queued:
            return "queued" if self.reason in ("", "None") else f"queued ({self.reason})"
        if self.state != "RUNNING":
            return f"running ({self.state.lower()})"
        left = f", {self.left} left" if self.left[:1].isdigit() else ""
        return f"running (on {self.nodes}{left})"


def submit(options: Sequence[str], script: str) -> str:
    """Submit a batch script; returns the job's id.

    Raises
    ------
    Unanswered
        SLURM may accept the same job later, or has accepted it without an answer.
    UsageError
        SLURM refuses the job.
    """
    done = _run(["sbatch", "--parsable", *options], script)
    if done.returncode == 0:
        return done.stdout.strip().partition(";")[0]
    said = _said(done)
    if any(text in said for text in LATER):
        raise Unanswered(said)
    raise UsageError(f"SLURM refuses the job: {said}; change slurm(partition=, account=, time=, memory=, gpus=)")


def table() -> list[Row]:
    """This user's jobs: those that wait or run, and those that ended within SLURM's MinJobAge (300 s by default).

    Raises
    ------
    Unanswered
        SLURM does not answer.
    """
    columns = ",".join(f"{name}:|" for name in FIELDS)
    done = _run(["squeue", "--me", "--states=all", "--noheader", f"--Format={columns}"])
    if done.returncode != 0:
        raise Unanswered(_said(done))
    rows = [line.split("|", len(FIELDS) - 1) for line in done.stdout.splitlines()]
    return [
        Row(id, state, int(status), left, nodes, name, reason.rstrip("|"))
        for id, state, status, left, nodes, name, reason in (row for row in rows if len(row) == len(FIELDS))
    ]


def interrupt(ids: Sequence[str]) -> set[str]:
    """Send SIGINT to the batch processes of running jobs; returns those that it reached."""
    if not ids:
        return set()
    return {*ids} - _refused(_run(["scancel", "--batch", "--signal=INT", *ids]).stderr)


def withdraw(ids: Iterable[str]) -> None:
    """Take jobs out of the queue, unless they have begun."""
    if found := list(ids):
        _run(["scancel", "--state=PENDING", *found])


def _run(words: Sequence[str], script: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command. A session of its own keeps the terminal's Ctrl-C from ending it halfway."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FILTERS)}
    try:
        return subprocess.run(
            words,
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError:
        raise UsageError(f"there is no '{words[0]}' here: type this on a machine where SLURM's commands work") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed command says, on one line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return "; ".join(lines) or f"exit code {done.returncode}"


def _refused(errors: str) -> set[str]:
    return {*re.findall(r"job id (\d+)", errors)}
