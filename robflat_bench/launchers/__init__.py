"""Launchers: a launcher decides where each run's process starts, on this machine or (a plugin) on a cluster."""

from __future__ import annotations

from robflat_bench.core import LauncherInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_launchers() -> list[LauncherInfo]:
    """The built-in launchers."""
    return catalogue_rows(__name__)
