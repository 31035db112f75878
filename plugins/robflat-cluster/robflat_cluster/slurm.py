"""Runs as jobs of a SLURM cluster, driven by SLURM's own commands.

Each run is a batch job: the setup's lines, then one `exec`, so that SLURM's signals reach the run itself. One `squeue`
shows all jobs, however many there are. SLURM forgets a job some minutes after its end, and reports exit code 0 for jobs
that did nothing. So a job that is missing from its table has ended, and the run's folder says how.
"""

from __future__ import annotations

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
        description="Time limit of each job, '4:00:00' or '2-00:00:00', at least 5 minutes; longer runs go on in"
        " another job. By default twice the expected time, at least 15 minutes; the site's if nothing is known.",
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
    """A queue of batch jobs, found again by their names.

    A job that SLURM cannot take yet, because it does not answer or a limit of queued jobs is reached, is held back, and
    submitted at a later look unless it is in the queue by then.
    """

    outlives: ClassVar[bool] = True
    detached: ClassVar[bool] = True
    pace: ClassVar[float] = 5.0

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._ids: dict[str, str] = {}
        self._held_back: dict[str, Job] = {}
        self._never_begun: dict[str, Exit] = {}
        self._rows: dict[str, Row] = {}
        self._looked = -math.inf
        self._problem = ""
        self._stopping = False
        self._signalled: set[str] = set()

    def start(self, job: Job) -> str:
        try:
            self._ids[job.name] = self._submit(job)
        except Unanswered as problem:
            self._held_back[job.name] = job
            self._problem = str(problem)
        return self._ids.get(job.name, "")

    def adopt(self, job: Job, known: str) -> bool:
        answered = time.monotonic() < self._looked + FRESH or self._look()
        if found := self._found(job) or ("" if answered else known):
            self._ids[job.name] = found
        elif not answered:
            self._held_back[job.name] = job
        return bool(found) or not answered

    def wait(self, seconds: float) -> Mapping[str, Exit]:
        until = time.monotonic() + seconds
        while True:
            expected = self._ids or self._held_back or self._never_begun
            due = self._looked + self.pace if expected else math.inf
            if time.monotonic() >= due and self._look() and (ended := self._take_ended()):
                return ended
            left = min(until, due) - time.monotonic()
            if time.monotonic() >= until:
                return {}
            time.sleep(max(0.0, left))

    def standings(self) -> Mapping[str, str]:
        rows = {name: self._rows.get(id) for name, id in self._ids.items()}
        doubt = f"; SLURM does not answer: {self._problem}" if self._problem else ""
        placed = {name: f"{row.standing if row else 'queued'}{doubt}" for name, row in rows.items()}
        return placed | dict.fromkeys(self._held_back, f"queued (SLURM has not taken it: {self._problem})")

    def interrupt(self) -> None:
        self._stopping = True
        self._signalled.clear()
        if self._look():
            self._stop()

    def _look(self) -> bool:
        """Read SLURM's table; False if SLURM does not answer."""
        self._looked = time.monotonic()
        try:
            self._rows = {row.id: row for row in commands.table()}
            self._problem = ""
        except Unanswered as problem:
            self._problem = str(problem)
        return not self._problem

    def _take_ended(self) -> dict[str, Exit]:
        """Take the jobs off the list that have ended as of the last look, and act on the others."""
        rows = {name: self._rows.get(id) for name, id in self._ids.items()}
        ended = {name: row.exit if row else Exit(None) for name, row in rows.items() if row is None or row.ended}
        self._ids = {name: id for name, id in self._ids.items() if name not in ended}
        if self._stopping:
            self._stop()
        else:
            self._submit_held_back()
        never_begun, self._never_begun = self._never_begun, {}
        return ended | never_begun

    def _submit_held_back(self) -> None:
        """Submit the jobs that SLURM has not taken; a submission without an answer may have succeeded."""
        for name, job in list(self._held_back.items()):
            try:
                self._ids[name] = self._found(job) or self._submit(job)
            except Unanswered as problem:
                self._problem = str(problem)
                break
            except UsageError as refused:
                self._never_begun[name] = Exit(None, str(refused))
            del self._held_back[name]

    def _stop(self) -> None:
        """Interrupt each running job once, also those that have begun since; take the others off the queue."""
        for name, job in self._held_back.items():
            if found := self._found(job):
                self._ids[name] = found
            else:
                self._never_begun[name] = Exit(None, "cancelled")
        self._held_back.clear()
        rows = [self._rows[id] for id in self._ids.values() if id in self._rows]
        commands.withdraw(row.id for row in rows if row.queued)
        running = {row.id for row in rows if row.state == "RUNNING"}
        self._signalled |= commands.interrupt(sorted(running - self._signalled))

    def _found(self, job: Job) -> str:
        """The id of the unended job with this job's name; "" if there is none."""
        return next((row.id for row in self._rows.values() if row.name == _name(job) and not row.ended), "")

    def _submit(self, job: Job) -> str:
        return commands.submit(self._options(job), self._script(job))

    def _options(self, job: Job) -> list[str]:
        """The options of `sbatch`; values that are None are left to the site."""
        params, gpus = self.params, self.params.gpus
        if gpus is None:
            gpus = int(self.resources.device == "cuda")
        values = {
            "job-name": _name(job),
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
        """The batch script. `exec` replaces the shell by the run, so that the run receives the signals."""
        threads = f"export OMP_NUM_THREADS={self.resources.threads}"
        return "\n".join(["#!/bin/bash", threads, self.params.setup, f"exec {shlex.join(job.command)}", ""])


def _name(job: Job) -> str:
    return f"robflat-{job.name}"


def _minutes(seconds: float | None) -> str | None:
    return None if seconds is None else str(max(LEAST_MINUTES, math.ceil(TIME_MARGIN * seconds / 60)))


def _mebibytes(memory: int | None) -> str | None:
    return None if memory is None else f"{max(LEAST_MEBIBYTES, math.ceil(MEMORY_MARGIN * memory / 2**20))}M"
