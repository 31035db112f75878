"""Runs as jobs of a SLURM cluster, driven by SLURM's own commands.

Each run is a batch job: the setup's lines, then one `exec`, so that SLURM's signals reach the run itself. One `squeue`
shows all jobs, however many there are. SLURM forgets a job some minutes after its end, and reports exit code 0 for jobs
that did nothing. So a job that is missing from its table has ended, and the run's folder says how.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from robflat_bench.api import Exit, Job, Launcher, LauncherInfo, Params, Resources, UsageError
from robflat_cluster import commands
from robflat_cluster.commands import Row, Unanswered

SOON = 2.0
"""Seconds until the next look after a change. While nothing changes, the interval grows to the launcher's pace."""

FRESH = 1.0
"""Seconds for which a look serves all jobs that are adopted at a time."""

WARNING = 60
"""Seconds before the time limit when SIGUSR1 asks a run to save its state; SLURM sends it up to 60 s earlier."""

SHORTEST = 5
"""Minutes of the shortest time limit: less would be used up by the warning."""

TIME_MARGIN, LEAST_MINUTES = 2.0, 15
"""A job's time limit where `time` is not given: so many times the expected time, and at least so many minutes."""

MEMORY_MARGIN, LEAST_MEBIBYTES = 1.5, 2048
"""A job's memory where `memory` is not given: so many times the expected peak, and at least so many MiB."""

_TIME = re.compile(r"(?:([0-9]{1,3})-)?([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])")
_NAMES = r"^[A-Za-z0-9_.,-]+$"


class SlurmParams(Params):
    partition: str | None = Field(
        default=None,
        pattern=_NAMES,
        description="Partition of the jobs, or several with commas; by default the site's.",
    )
    account: str | None = Field(
        default=None, pattern=_NAMES, description="Account that is charged; by default the user's."
    )
    time: str | None = Field(
        default=None,
        description="Time limit of each job, '4:00:00' or '2-00:00:00', at least 5 minutes; a run that needs longer goes"
        " on in another job. By default twice the expected time, at least 15 minutes; the site's if nothing is known.",
    )
    gpus: int | None = Field(
        default=None, ge=0, le=64, description="GPUs of each job; by default one if this machine's device is cuda."
    )
    memory: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]{0,6}[MGT]$",
        description="Memory of each job, '16G'. By default 1.5 times the expected peak, at least 2 GiB; the site's if"
        " nothing is known.",
    )
    setup: str = Field(
        default="", description="Lines of bash before each run, 'module load cuda'; the job executes them as they are."
    )

    @field_validator("time")
    @classmethod
    def _long_enough(cls, text: str | None) -> str | None:
        if text is None:
            return None
        found = _TIME.fullmatch(text)
        if found is None:
            raise ValueError("write hours:minutes:seconds in quotes, '4:00:00', or with days '2-00:00:00'")
        days, hours, minutes = (int(part or 0) for part in found.group(1, 2, 3))
        if (days * 24 + hours) * 60 + minutes < SHORTEST:
            raise ValueError(f"at least {SHORTEST} minutes: the last two are for saving")
        return text


INFO = LauncherInfo(
    "slurm", "each run as a job of a SLURM cluster, --jobs in its queue at a time", f"{__name__}:Slurm", SlurmParams
)


class Slurm(Launcher):
    """A queue of batch jobs.

    Jobs are found again by their id, or by their name, which the run's key and its folder determine. A job that SLURM
    cannot take yet (no answer, or the limit of jobs in the queue) is submitted at a later look.
    """

    outlives: ClassVar[bool] = True
    pace: ClassVar[float] = 15.0

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        commands.require_commands()
        self._ids: dict[str, str] = {}
        self._held_back: dict[str, Job] = {}
        self._rows: dict[str, Row] = {}
        self._looked, self._interval = -math.inf, SOON
        self._problem = ""
        self._stopping = False
        self._signalled: set[str] = set()
        self._never_begun: dict[str, Exit] = {}

    def start(self, job: Job) -> str:
        self._interval = SOON
        try:
            self._ids[job.name] = commands.submit(self._options(job), self._script(job))
        except Unanswered as problem:
            self._held_back[job.name] = job
            self._problem = str(problem)
        return self._ids.get(job.name, "")

    def adopt(self, job: Job, known: str) -> bool:
        answered = time.monotonic() < self._looked + FRESH or self._look()
        if found := self._found(job, known):
            self._ids[job.name] = found
        elif not answered and known:
            self._ids[job.name] = known
        elif not answered:
            self._held_back[job.name] = job
        return bool(found) or not answered

    def wait(self, seconds: float) -> Mapping[str, Exit]:
        until = time.monotonic() + seconds
        while True:
            busy = self._ids or self._held_back
            if busy and time.monotonic() >= self._looked + self._interval and (ended := self._ended()):
                return ended
            left = until - time.monotonic()
            if left <= 0:
                return {}
            time.sleep(max(0.0, min(left, self._looked + self._interval - time.monotonic())) if busy else left)

    def standings(self) -> Mapping[str, str]:
        doubt = f", SLURM does not answer ({self._problem})" if self._problem else ""
        found = {name: self._rows.get(id) for name, id in self._ids.items()}
        placed = {name: f"{row.standing if row else 'submitted'}{doubt}" for name, row in found.items()}
        return placed | dict.fromkeys(self._held_back, f"not accepted yet ({self._problem})")

    def interrupt(self) -> None:
        self._stopping = True
        self._signalled.clear()
        self._look()
        self._looked, self._interval = -math.inf, SOON

    def _ended(self) -> dict[str, Exit]:
        """Look, and take the ended jobs off the list."""
        before = self._rows
        if not self._look():
            return {}
        rows = {name: self._rows.get(id) for name, id in self._ids.items()}
        ended = {name: row.exit if row else Exit(None) for name, row in rows.items() if row is None or row.ended}
        self._ids = {name: id for name, id in self._ids.items() if name not in ended}
        ended |= self._never_begun
        self._never_begun = {}
        changed = any(row and row.id in before and row.state != before[row.id].state for row in rows.values())
        self._interval = SOON if ended or changed else min(self._interval * 1.5, self.pace)
        return ended

    def _look(self) -> bool:
        """Read SLURM's table, and do what waited for it. Returns whether SLURM answers."""
        self._looked = time.monotonic()
        try:
            self._rows = {row.id: row for row in commands.table()}
        except Unanswered as problem:
            self._problem = str(problem)
            return False
        self._problem = ""
        if self._stopping:
            self._stop()
        else:
            self._submit_held_back()
        return True

    def _submit_held_back(self) -> None:
        """Submit the jobs that SLURM did not take; a submission without an answer may have succeeded."""
        for name, job in list(self._held_back.items()):
            try:
                self._ids[name] = self._found(job, "") or commands.submit(self._options(job), self._script(job))
            except Unanswered as problem:
                self._problem = str(problem)
                break
            except UsageError as refused:
                self._never_begun[name] = Exit(None, str(refused))
            del self._held_back[name]

    def _stop(self) -> None:
        """Interrupt each running job once, also those that have begun since; take the others off the queue."""
        self._never_begun |= dict.fromkeys(self._held_back, Exit(None, "cancelled"))
        self._held_back.clear()
        rows = [self._rows[id] for id in self._ids.values() if id in self._rows]
        commands.withdraw(row.id for row in rows if row.state == "PENDING")
        running = {row.id for row in rows if row.state == "RUNNING"}
        self._signalled |= commands.interrupt(sorted(running - self._signalled))

    def _found(self, job: Job, known: str) -> str:
        """The id of an unended job, by its id or its name; "" if there is none.

        An id alone is no proof: on another cluster it is another job.
        """
        full, short = job_name(job), job_name(job).rpartition("-")[0]
        for row in self._rows.values():
            if not row.ended and (row.name == full or (row.id == known and row.name.rpartition("-")[0] == short)):
                return row.id
        return ""

    def _options(self, job: Job) -> list[str]:
        """The options of `sbatch`; values that are None are left to the site."""
        params, gpus = self.params, self.params.gpus
        if gpus is None:
            gpus = int(self.resources.device == "cuda")
        values = {
            "job-name": job_name(job),
            "output": "/dev/null",
            "error": str(job.log.resolve()).replace("%", "%%"),  # % begins a placeholder
            "open-mode": "append",
            "signal": f"B:USR1@{WARNING}",
            "nodes": 1,
            "ntasks": 1,
            "cpus-per-task": self.resources.threads,
            "gres": f"gpu:{gpus}" if gpus else None,
            "partition": params.partition,
            "account": params.account,
            "time": params.time or _minutes(job.seconds),
            "mem": params.memory or _mebibytes(job.memory),
        }
        return ["--requeue", *(f"--{name}={value}" for name, value in values.items() if value is not None)]

    def _script(self, job: Job) -> str:
        """The batch script. Its last line replaces the shell by the run, which so receives the signals."""
        threads = f"export OMP_NUM_THREADS={self.resources.threads}"
        return "\n".join(["#!/bin/bash", threads, self.params.setup, f"exec {shlex.join(job.command)}", ""])


def job_name(job: Job) -> str:
    """The name of a job in SLURM: the run's key, and a digest of its log's path, since stores share keys."""
    digest = hashlib.sha256(f"{job.name}\n{job.log.resolve()}".encode()).hexdigest()
    return f"robflat-{re.sub('[^A-Za-z0-9_.]', '_', job.name)[:40]}-{digest[:8]}"


def _minutes(seconds: float | None) -> str | None:
    return None if seconds is None else str(max(LEAST_MINUTES, math.ceil(TIME_MARGIN * seconds / 60)))


def _mebibytes(memory: int | None) -> str | None:
    return None if memory is None else f"{max(LEAST_MEBIBYTES, math.ceil(MEMORY_MARGIN * memory / 2**20))}M"
