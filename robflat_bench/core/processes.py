"""Processes of this machine that need not be children of this one: where their numbers mean something, when one
started, which one runs a command; whether torchrun started this one with others."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")


def machine() -> str:
    """What processes that see each other's numbers have in common: the running kernel, and the space of numbers."""
    try:
        kernel = (PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{kernel} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def started(pid: int) -> str:
    """When a process started, in its kernel's words: with the pid, it names a process. "" if it has ended, or may not
    be seen."""
    try:
        if not (PROC / "self/stat").exists():  # no Linux
            shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
            return shown.stdout.strip()
        fields = (PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except (OSError, IndexError):
        return ""


def runs(pid: int, since: str) -> bool:
    """Whether the process with this number and this start still runs. The start of another user's process may be
    hidden; then the number alone counts."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return started(pid) in (since, "")
    return started(pid) == since


def may_signal(pid: int) -> bool:
    """Whether this process may end that one, which another user's it may not."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        try:
            os.kill(pid, 0)
        except PermissionError:
            return False
    return True


def in_torchrun() -> bool:
    """Whether `torchrun` started this process, or the one that started it, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE") != "1"


def first_here() -> bool:
    """Whether this process is alone, or the first one that `torchrun` started on this machine."""
    return not in_torchrun() or os.environ.get("LOCAL_RANK", "0") == "0"


def running(command: Sequence[str]) -> tuple[int, str] | None:
    """The pid and the start of a process that runs exactly this command line; None without one, or off Linux."""
    wanted = b"".join(word.encode() + b"\0" for word in command)
    for path in PROC.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == wanted and (since := started(pid := int(path.parent.name))):
                return pid, since
    return None
