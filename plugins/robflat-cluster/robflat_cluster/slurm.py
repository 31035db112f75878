"""Runs as jobs of a SLURM cluster, driven by SLURM's own commands.

Each run is a batch job: the setup's lines, then one `exec`, so that SLURM's signals reach the run itself. One `squeue`
shows all jobs, however many there are. SLURM forgets a job some minutes after its end, and reports exit code 0 for jobs
that did nothing. So a job that is missing from its table has ended, and the run's folder says how.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator

from robflat_bench.api import Job, LauncherInfo, Params, Resources
from robflat_cluster import commands, needs
from robflat_cluster.commands import Row
from robflat_cluster.scheduler import Scheduled

WARNING = 60
"""Seconds before the time limit when SIGUSR1 asks a run to save its state; SLURM sends it up to 60 s earlier."""

SHORTEST = 5
"""Minutes of the shortest time limit: less would be used up by the warning."""

TIME_MARGIN, LEAST_MINUTES = 2.0, 15
"""A job's time limit where `time` is not given: so many times the expected time, and at least so many minutes."""

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
    gpus: int | None = Field(default=None, ge=0, le=64, description=needs.GPUS_TEXT)
    memory: str | None = Field(
        default=None, pattern=needs.MEMORY, description=needs.MEMORY_TEXT.format(else_="the site's")
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


class Slurm(Scheduled[Row]):
    """A queue of batch jobs."""

    scheduler: ClassVar[str] = "SLURM"

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._signalled: set[str] = set()

    def table(self) -> list[Row]:
        return commands.table()

    def submit(self, job: Job) -> str:
        return commands.submit(self._options(job), self._script(job))

    def found(self, job: Job) -> str:
        return next((row.id for row in self.rows.values() if row.name == _name(job) and not row.ended), "")

    def end(self, rows: Sequence[Row], again: bool) -> None:
        if again:
            self._signalled.clear()
        commands.withdraw(row.id for row in rows if row.queued)
        running = {row.id for row in rows if row.state == "RUNNING"}
        self._signalled |= commands.interrupt(sorted(running - self._signalled))

    def _options(self, job: Job) -> list[str]:
        """The options of `sbatch`; values that are None are left to the site."""
        params, gpus = self.params, needs.gpus(self.params.gpus, self.resources)
        mebibytes = needs.mebibytes(job)
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
            "mem": params.memory or (mebibytes and f"{mebibytes}M"),
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
