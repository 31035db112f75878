"""Launchers: where the runs of a sweep are processes."""

from __future__ import annotations

from robflat_bench.core.catalogue import rows
from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import LauncherInfo


@hookimpl
def robflat_bench_launchers() -> list[LauncherInfo]:
    """The built-in launchers."""
    return rows(__name__)
