"""Catalogue of launchers (torch-free): where the runs of a sweep are processes. Code lies in `local`."""

from __future__ import annotations

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import LauncherInfo


@hookimpl
def robflat_bench_launchers() -> list[LauncherInfo]:
    return [
        LauncherInfo(
            "local",
            "on this machine, --jobs at a time, each on its own CPU threads or GPU",
            "robflat_bench.launchers.local:Local",
        ),
        LauncherInfo(
            "inline",
            "on this machine, one after the other, each showing its own progress here",
            "robflat_bench.launchers.local:Inline",
        ),
    ]
