"""Launchers that start each run's process on this machine: `local` in the background, `inline` in the foreground.

A slot holds one process at a time. A CPU slot is a number of threads, not bound to cores: where other programs or a
second sweep run, the system's scheduler finds the idle cores. A GPU slot sees one GPU; if there are more slots than
GPUs, slots share them in turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, ClassVar

from robflat_bench.core import Job, Launcher, LauncherInfo, Resources, UsageError

INFO = (
    LauncherInfo(
        name="local",
        summary="on this machine, --jobs at a time, each on its own CPU threads or GPU",
        factory=f"{__name__}:Local",
    ),
    LauncherInfo(
        name="inline",
        summary="on this machine, one after the other, each showing its own progress here",
        factory=f"{__name__}:Inline",
    ),
)


POLL_SECONDS = 0.1


class Local(Launcher):
    """A pool of slots.

    Each process has a session of its own. So Ctrl-C reaches it only by `interrupt`, and it goes on if the launcher's
    process is killed.
    """

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._free = slots(resources)
        self._running: dict[str, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}

    def start(self, job: Job) -> None:
        slot = self._free[0]
        null = subprocess.DEVNULL
        with self.output(job.log) as errors:
            process = subprocess.Popen(
                job.command, env=os.environ | slot, stdin=null, stdout=null, stderr=errors, start_new_session=True
            )
        self._running[job.name] = process, self._free.pop(0)

    def output(self, log: Path) -> IO[bytes]:
        """The file that takes a process's stderr."""
        return log.open("wb")

    def wait(self, seconds: float) -> Mapping[str, int]:
        until = time.monotonic() + seconds
        while True:
            codes = {name: process.poll() for name, (process, _) in self._running.items()}
            ended = {name: code for name, code in codes.items() if code is not None}
            if ended or time.monotonic() >= until:
                break
            time.sleep(POLL_SECONDS)
        self._free += [self._running.pop(name)[1] for name in ended]
        return ended

    def interrupt(self) -> None:
        for process, _ in self._running.values():
            process.send_signal(signal.SIGINT)


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
