"""Runs as jobs of a Ray cluster, for clouds and Kubernetes, driven by the HTTP interface of its dashboard.

Each run is a Ray job, whose id is the run's name and a number: the first job of a run ends in 1, the next one in 2.
Ray accepts each id once. So two sweeps that start the same run at the same time start one job, and so does a sweep that
got no answer and asks again.

The entrypoint ends in one `exec`, so that Ray's SIGTERM reaches the run itself, and the run ends with Ray's process
beside it. Ray has no time limit of jobs and keeps no exit code of jobs that it stops. It gives up a job that waits 15
minutes for its resources; this launcher submits such a job again.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from robflat_bench.api import Job, LauncherInfo, Params, Resources, UsageError
from robflat_cluster import needs
from robflat_cluster.ray_jobs import Cluster, Row
from robflat_cluster.scheduler import Scheduled, Unanswered

ADDRESS, USUAL = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"
"""Ray's own variable of the dashboard's address, and the address where it is not set."""

SAVING_SECONDS = 120
"""Time between SIGTERM and SIGKILL of a job that is stopped. Ray's own 3 s are too short to save a large network."""

UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}

_HTTP = r"^https?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_./-]*)?$"


class RayParams(Params):
    address: str | None = Field(
        default=None,
        pattern=_HTTP,
        description=f"Address of Ray's dashboard, 'http://HOST:8265'; by default that of {ADDRESS}, or {USUAL}.",
    )
    gpus: int | None = Field(default=None, ge=0, le=64, description=needs.GPUS_TEXT)
    memory: str | None = Field(
        default=None,
        pattern=needs.MEMORY,
        description=needs.MEMORY_TEXT.format(else_="none is reserved") + " Ray reserves it, and does not enforce it.",
    )


INFO = LauncherInfo(
    "ray", "each run as a job of a Ray cluster, --jobs of them submitted at a time", f"{__name__}:Ray", RayParams
)


class Ray(Scheduled[Row]):
    """Jobs of a Ray cluster, found again by the names in their ids."""

    scheduler: ClassVar[str] = "Ray"

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._cluster = Cluster(params.address or _address())
        self._asked: dict[str, str] = {}
        self._told: set[str] = set()
        self._known = False

    def table(self) -> list[Row]:
        found = self._cluster.table()
        self._known = True
        return found

    def look(self) -> bool:
        answered = super().look()
        self.put_back([name for name, row in self.mine.items() if row.never_begun])
        return answered

    def submit(self, job: Job) -> str:
        if not self._known and not self.look():
            raise UsageError(
                f"Ray does not answer at {self._cluster.address}: {self.problem}. Type ray(address='http://HOST:8265')"
                " with the host of Ray's dashboard; on Kubernetes, first `kubectl port-forward service/HEAD 8265`"
            )
        id = self._asked.setdefault(job.name, _id(job.name, 1 + max(self._numbers(job), default=0)))
        self._cluster.submit(id, _entrypoint(job), _variables(self.resources), self._needs(job))
        return self._asked.pop(job.name)

    def found(self, job: Job) -> str:
        if self._asked.get(job.name) in self.rows:  # Ray had accepted it, without an answer
            return self._asked.pop(job.name)
        ids = (_id(job.name, number) for number in self._numbers(job))
        return next((id for id in ids if not self.rows[id].ended), "")

    def end(self, rows: Sequence[Row], again: bool) -> None:
        for row in rows:  # Ray does nothing about a second request
            try:
                if row.id not in self._told and self._cluster.stop(row.id):
                    self._told.add(row.id)
            except Unanswered as problem:
                self.problem = str(problem)
                return

    def _numbers(self, job: Job) -> list[int]:
        """The numbers of this job's ids in the table."""
        pattern = re.compile(re.escape(_id(job.name, "")) + "([1-9][0-9]{0,8})")
        return [int(found[1]) for id in self.rows if (found := pattern.fullmatch(id))]

    def _needs(self, job: Job) -> dict[str, int]:
        """What Ray reserves for a job."""
        given, mebibytes = self.params.memory, needs.mebibytes(job)
        memory = int(given[:-1]) * UNITS[given[-1]] if given else mebibytes and mebibytes * UNITS["M"]
        wanted = {"num_cpus": self.resources.threads, "num_gpus": needs.gpus(self.params.gpus, self.resources)}
        return wanted | ({"memory": memory} if memory else {})


def _id(name: str, number: int | str) -> str:
    return f"robflat-{name}-{number}"


def _address() -> str:
    """The dashboard's address where the user gives none."""
    found = os.environ.get(ADDRESS) or USUAL
    if not re.fullmatch(_HTTP, found):
        raise UsageError(f"{ADDRESS} is '{found}', which is no address such as {USUAL}: type ray(address='...')")
    return found


def _entrypoint(job: Job) -> str:
    """A line of `sh`. `exec` replaces the shell by the run."""
    log, folder = (shlex.quote(str(path)) for path in (job.log.resolve(), Path.cwd()))
    return f"cd {folder} && exec {shlex.join(job.command)} </dev/null >/dev/null 2>>{log}"


def _variables(resources: Resources) -> dict[str, str]:
    """Variables of a job. Ray gives it the environment in which its node was started, not that of the sweep."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("ROBFLAT_BENCH_")}
    return ours | {"OMP_NUM_THREADS": str(resources.threads), "RAY_JOB_STOP_WAIT_TIME_S": str(SAVING_SECONDS)}
