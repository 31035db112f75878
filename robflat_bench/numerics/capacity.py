"""What this process may use of its machine: cores and memory. A container's limits count."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")
"""The control group of this process, as a container sees it."""


def cores() -> int:
    """The cores that this process may use, at least 1: its CPU affinity, and the quota of its control group."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, *period = _words(_GROUP / "cpu.max") or ["max"]
    return max(1, min(found, int(quota) // int(period[0]))) if quota != "max" else found


def free_memory_bytes() -> int | None:
    """Memory that this process can still take without swapping, in bytes; None where the system does not say."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        sizes.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(ValueError, IndexError):  # no limit
        sizes.append(int(_words(_GROUP / "memory.max")[0]) - int(_words(_GROUP / "memory.current")[0]))
    return min(sizes, default=None)


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except OSError:
        return []
