"""Launchers that start the runs of a sweep on a cluster: `slurm`, by SLURM's own commands."""

from __future__ import annotations

from robflat_bench.api import LauncherInfo, hookimpl
from robflat_cluster import slurm


@hookimpl
def robflat_bench_launchers() -> list[LauncherInfo]:
    return [slurm.INFO]
