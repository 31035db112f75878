"""Who holds a lease: a process, known by its number and start on a machine, and whether it still runs."""

from __future__ import annotations

import json
import os
import secrets
import socket
from typing import NamedTuple

from robflat_bench.core.processes import machine, runs, started


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
        return runs(self.pid, self.started)
