"""Who holds a lease: a process, known by its number and start on a machine, and whether it still runs."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple


class Holder(NamedTuple):
    """A process that holds a lease.

    Parameters
    ----------
    token : str
        Random; no two holders share it.
    host : str
        Name of its machine, for people.
    pid : int
        Its number.
    started : str
        When it started: numbers are used again.
    machine : str
        Where `pid` means something.
    """

    token: str
    host: str
    pid: int
    started: str
    machine: str

    @classmethod
    def this_process(cls) -> Holder:
        return cls(secrets.token_hex(8), socket.gethostname(), os.getpid(), started(os.getpid()), machine())

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """The holder that a lease names; None if the lease is damaged."""
        try:
            found = cls(**json.loads(content))
            return found._replace(host=str(found.host)[:100], pid=int(found.pid))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None

    def written(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host!r}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine, about which this process can know."""
        return self.machine == machine()

    def runs(self) -> bool:
        """Whether a holder that is here still runs."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # another user's, whose start may be hidden
            return started(self.pid) in (self.started, "")
        return started(self.pid) == self.started


def machine() -> str:
    """What processes that see each other's numbers have in common: the running kernel, and the space of numbers."""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def started(pid: int) -> str:
    """When a process of this machine started, in its kernel's words; "" if it has ended or may not be seen."""
    try:
        if not Path("/proc/self/stat").exists():  # no Linux
            shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
            return shown.stdout.strip()
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
