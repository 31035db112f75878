"""Launchers that start each run's process on this machine: `local` in the background, `inline` in the foreground.

A slot holds one process at a time. A CPU slot is a number of threads, not bound to cores: where other programs or a
second sweep run, the system's scheduler finds the idle cores. A GPU slot sees one GPU; if there are more slots than
GPUs, slots share them in turn. The seconds and the memory that a job is expected to need decide nothing here.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

from robflat_bench.core import Exit, Job, Launcher, LauncherInfo, Resources, UsageError, processes

INFO = (
    LauncherInfo("local", "on this machine, --jobs at a time, each on its own CPU threads or GPU", f"{__name__}:Local"),
    LauncherInfo("inline", "on this machine, one after the other, each with its progress here", f"{__name__}:Inline"),
)

POLL_SECONDS = 0.1
_ID = re.compile(r"(?P<pid>\d{1,9}) (?P<slot>\d{1,9}) (?P<started>.+) (?P<host>\S+)")


@dataclass(frozen=True)
class _Process:
    """A process in a slot, with the time of its start. Without `child`, an earlier launcher started it."""

    pid: int
    started: str
    slot: int
    child: subprocess.Popen[bytes] | None = None

    def exit(self) -> Exit | None:
        """How it ended; None while it runs. Only a parent learns the exit code."""
        if self.child:
            code = self.child.poll()
            return None if code is None else Exit(code)
        return None if processes.runs(self.pid, self.started) else Exit(None)


class Local(Launcher):
    """A pool of slots.

    Each process has a session of its own. So Ctrl-C reaches it only by `interrupt`, and it goes on if the launcher's
    process is killed. Its id is its pid, its slot, the time of its start, and this machine's name.
    """

    outlives: ClassVar[bool] = True

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._slots = slots(resources)
        self._running: dict[str, _Process] = {}

    def start(self, job: Job) -> str:
        slot, null = self._free(), subprocess.DEVNULL
        environment = os.environ | self._slots[slot]
        with self.output(job.log) as errors:
            child = subprocess.Popen(
                job.command, env=environment, stdin=null, stdout=null, stderr=errors, start_new_session=True
            )
        started = processes.started(child.pid)
        self._running[job.name] = _Process(child.pid, started, slot, child)
        return f"{child.pid} {slot} {started} {socket.gethostname()}" if started else ""

    def output(self, log: Path) -> IO[bytes]:
        """The file that takes a process's stderr."""
        return log.open("ab")

    def adopt(self, job: Job, known: str) -> bool:
        kept = _ID.fullmatch(known)
        if kept and kept["host"] == socket.gethostname():
            process = _Process(int(kept["pid"]), kept["started"], int(kept["slot"]))
        elif not known and (found := processes.running(job.command)):
            process = _Process(*found, self._free())
        else:
            return False
        if process.exit() or not processes.may_signal(process.pid):  # another user's run is waited for by its lease
            return False
        self._running[job.name] = process
        return True

    def _free(self) -> int:
        """The first free slot. Adopted processes may hold slots beyond those of this launcher."""
        taken = {process.slot for process in self._running.values()}
        return next(slot for slot in itertools.count() if slot not in taken)

    def wait(self, seconds: float) -> Mapping[str, Exit]:
        until = time.monotonic() + seconds
        while True:
            exits = {name: process.exit() for name, process in self._running.items()}
            ended = {name: exit for name, exit in exits.items() if exit}
            if ended or time.monotonic() >= until:
                break
            time.sleep(POLL_SECONDS)
        for name in ended:
            del self._running[name]
        return ended

    def standings(self) -> Mapping[str, str]:
        return dict.fromkeys(self._running, "running")

    def interrupt(self) -> None:
        for process in self._running.values():
            if process.exit() is None:
                with contextlib.suppress(ProcessLookupError):  # an adopted one has just ended
                    os.kill(process.pid, signal.SIGTERM)  # `&` of a script makes processes ignore SIGINT


class Inline(Local):
    """One slot, whose process writes to this terminal."""

    foreground: ClassVar[bool] = True

    def __init__(self, params: Any, resources: Resources) -> None:
        if resources.jobs != 1:
            raise UsageError(
                f"inline starts one run at a time, not {resources.jobs}: use `--launcher local`, or `--jobs 1`"
            )
        super().__init__(params, resources)

    def output(self, log: Path) -> IO[bytes]:
        return os.fdopen(os.dup(2), "wb")


def slots(resources: Resources) -> list[dict[str, str]]:
    """The environment variables of each slot.

    A run sets torch's threads itself, as its protocol says; OMP_NUM_THREADS limits all other libraries.
    """
    threads = {"OMP_NUM_THREADS": str(resources.threads)}
    gpus = _gpus() if resources.device == "cuda" else []
    seen = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
    return [threads | seen[slot % len(seen)] for slot in range(resources.jobs)]


def _gpus() -> list[str]:
    """The GPUs that this process may use."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
