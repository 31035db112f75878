"""Sweeps that a test types, holds and disturbs, and their records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from one_machine import until

from robflat_bench.testing.tiny import tiny_protocol

STUDY = """
name = "cluster"
version = "1.0"
summary = "One method."
protocol = "tiny.toml"

[[groups]]
title = "all"
methods = ["standard"]
"""

HOLDS = """
import os, pathlib, signal, time
from robflat_bench.api import hookimpl
from robflat_cluster.scheduler import Scheduled

Scheduled.pace = 1.0
FOLDER = pathlib.Path(__file__).parent

@hookimpl
def robflat_bench_epoch_ends(run, epoch):
    held, warned = FOLDER / f"hold-{run.seed}", FOLDER / f"warned-{run.seed}"
    before = signal.getsignal(signal.SIGUSR1)
    if epoch["epoch"] == 1 and held.exists():
        if callable(before):
            signal.signal(signal.SIGUSR1, lambda *call: (warned.touch(), before(*call)))
        (FOLDER / f"reached-{run.seed}").write_text(f"{os.getpid()} {os.environ.get('SLURM_JOB_ID', '')}")
        while held.exists() and not warned.exists():
            time.sleep(0.1)
"""
"""A plugin that stops a run after its second epoch while a file is there, and lets the sweep look every second."""


TIMES = ("seconds", "evaluation_seconds", "peak_memory_bytes", "provenance", "environment")


def timeless(part: Any) -> Any:
    if isinstance(part, list):
        return [timeless(one) for one in part]
    if isinstance(part, dict):
        return {name: timeless(one) for name, one in part.items() if name not in TIMES}
    return part


class Bench:
    """A folder with a study, its stores, and the files that hold runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drivers: list[subprocess.Popen[bytes]] = []
        (folder / "tiny.toml").write_text(tiny_protocol("tiny", epochs=3))
        (folder / "study.toml").write_text(STUDY)
        (folder / "holds.py").write_text(HOLDS)

    def close(self) -> None:
        """End what was typed."""
        for driver in self.drivers:
            driver.kill()
            driver.wait()

    def sweep(self, store: str, seeds: int, *options: str) -> subprocess.Popen[bytes]:
        """Type a sweep in another process."""
        words = ["sweep", "study.toml", "--seeds", str(seeds), "--store", store, *options]
        with (self.folder / f"{store}.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", "robflat_bench", *words],
                cwd=self.folder,
                env={**os.environ, "HOLDS": str(self.folder), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.drivers.append(started)
        return started

    def hold(self, *seeds: int) -> None:
        for seed in seeds:
            (self.folder / f"hold-{seed}").touch()

    def free(self, seed: int) -> None:
        (self.folder / f"hold-{seed}").unlink()

    def reached(self, seed: int) -> list[str]:
        """Wait until a run is held; returns its process, and its job's id on SLURM."""
        file = self.folder / f"reached-{seed}"
        until(lambda: file.exists() and file.read_text(), 600)
        return file.read_text().split()

    def finish(self, driver: subprocess.Popen[bytes], store: str, seconds: float = 600) -> None:
        code = driver.wait(seconds)
        assert code == 0, (self.folder / f"{store}.log").read_text()[-4000:]

    def records(self, store: str) -> dict[int, Any]:
        """Seed -> the run's record without times, memory and where it was made."""
        files = (self.folder / store).glob("*/*/seed-*/record.json")
        found = [timeless(json.loads(file.read_text())) for file in files]
        return {record["seed"]: record for record in found}
