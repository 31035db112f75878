"""Processes on this machine, one to a slot.

A CPU slot is a number of threads. It is not bound to cores: on a machine that others use too, or where two sweeps
run, the system's scheduler finds the idle ones. A GPU slot sees one GPU; more slots than GPUs share them in turn.
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
    """A pool of slots. What it runs is in sessions of its own, so that Ctrl-C here reaches it only by `interrupt`, and
    lives on if this process is killed."""

    def __init__(self, params: Any, resources: Resources) -> None:
        super().__init__(params, resources)
        self._free = slots(resources)
        self._running: dict[str, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}

    def start(self, job: Job) -> None:
        with self.output(job.log) as errors:
            process = subprocess.Popen(
                job.command,
                env={**os.environ, **self._free[0]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        self._running[job.name] = process, self._free.pop(0)

    def output(self, log: Path) -> IO[bytes]:
        """Where stderr goes."""
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
    """The only slot, in the foreground."""

    foreground: ClassVar[bool] = True

    def __init__(self, params: Any, resources: Resources) -> None:
        if resources.jobs != 1:
            raise UsageError(f"inline runs one after the other, not {resources.jobs} at a time; use --launcher local")
        super().__init__(params, resources)

    def output(self, log: Path) -> IO[bytes]:
        return os.fdopen(os.dup(2), "wb")


def slots(resources: Resources) -> list[dict[str, str]]:
    """What each slot adds to the environment. A run sets the threads of torch itself, as its protocol says; these are
    of everything else."""
    threads = {"OMP_NUM_THREADS": str(resources.threads)}
    if resources.device != "cuda":
        return [threads] * resources.jobs
    found = _gpus()
    return [{**threads, "CUDA_VISIBLE_DEVICES": found[slot % len(found)]} for slot in range(resources.jobs)]


def _gpus() -> list[str]:
    """Those this process may use."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
