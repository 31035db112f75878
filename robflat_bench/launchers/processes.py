"""Processes of this machine that are no children of this one: whether they are still there, and which runs a command.

Linux tells it in `/proc`. Elsewhere nothing is known about them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")


def started(pid: int) -> str:
    """When a process was started, in ticks of the kernel: with the pid, it names a process. "" if it has ended."""
    try:
        state, *fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]  # a zombie has ended


def running(command: Sequence[str]) -> tuple[int, str] | None:
    """The pid and the start of a process that runs exactly this command line; None without one."""
    wanted = b"".join(word.encode() + b"\0" for word in command)
    for path in PROC.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == wanted and (since := started(pid := int(path.parent.name))):
                return pid, since
    return None
