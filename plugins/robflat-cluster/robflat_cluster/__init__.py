"""Launchers that start the runs of a sweep on a cluster: `slurm`, by SLURM's own commands, and `ray`, by its jobs."""

from __future__ import annotations

from robflat_bench.api import LauncherInfo, hookimpl
from robflat_cluster import ray, slurm


@hookimpl
def robflat_bench_launchers() -> list[LauncherInfo]:
    return [slurm.INFO, ray.INFO]
