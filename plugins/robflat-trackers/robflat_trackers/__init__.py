"""TensorBoard and MLflow as observers of robflat-bench's runs: files on disk, no server, no network.

Hooks only. What a tracker writes is in the module of its own, by which names in `scalars`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Protocol

from robflat_bench.api import RunView, UsageError, hookimpl

VARIABLE = "ROBFLAT_TRACKERS"

TRACKERS = {
    "tensorboard": "robflat_trackers.event_files:TensorBoard",
    "mlflow": "robflat_trackers.mlflow_runs:MLflow",
}


class Tracker(Protocol):
    """What follows one run. Made when the run starts or goes on; `ends` or `fails` close it."""

    def __init__(self, run: RunView) -> None: ...
    def epoch_ends(self, epoch: Mapping[str, Any]) -> None: ...
    def evaluation_ends(self, checkpoint: str, result: Mapping[str, Any]) -> None: ...
    def ends(self, record: Mapping[str, Any]) -> None: ...
    def fails(self, error: Exception) -> None: ...
    def close(self) -> None: ...


_open: dict[str, list[Tracker]] = {}
"""Run key -> its trackers, until the run ends."""


def _trackers(run: RunView) -> list[Tracker]:
    """Those that the environment names; all of them where it names none."""
    text = os.environ.get(VARIABLE, ",".join(TRACKERS))
    names = dict.fromkeys(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"{VARIABLE}={text}: no tracker '{name}'; there are {', '.join(TRACKERS)} (empty: none)")
    places = [TRACKERS[name].partition(":") for name in names]
    return [getattr(importlib.import_module(module), cls)(run) for module, _, cls in places]


@hookimpl
def robflat_bench_run_starts(run: RunView) -> None:
    for tracker in _open.pop(run.key, ()):  # Ctrl-C ended the run in this process, without a hook
        tracker.close()
    _open[run.key] = _trackers(run)


@hookimpl
def robflat_bench_epoch_ends(run: RunView, epoch: Mapping[str, Any]) -> None:
    for tracker in _open[run.key]:
        tracker.epoch_ends(epoch)


@hookimpl
def robflat_bench_evaluation_ends(run: RunView, checkpoint: str, result: Mapping[str, Any]) -> None:
    for tracker in _open[run.key]:
        tracker.evaluation_ends(checkpoint, result)


@hookimpl
def robflat_bench_run_ends(run: RunView, record: Mapping[str, Any]) -> None:
    for tracker in _open.pop(run.key):
        tracker.ends(record)


@hookimpl
def robflat_bench_run_fails(run: RunView, error: Exception) -> None:
    # A run whose record cannot be written fails after it has ended.
    for tracker in _open.pop(run.key, None) or _trackers(run):
        tracker.fails(error)


@hookimpl
def robflat_bench_environment() -> Mapping[str, str]:
    return {name: metadata.version(name) for name in ("tensorboard", "mlflow-skinny")}
