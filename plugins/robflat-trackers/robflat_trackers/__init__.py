"""TensorBoard and MLflow as observers of robflat-bench's runs: files on disk, no server, no network.

This module holds the hooks. Each tracker has a module of its own; `scalars` names the logged numbers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Protocol

from robflat_bench.api import RunView, UsageError, hookimpl

VARIABLE = "ROBFLAT_TRACKERS"
"""Environment variable with the trackers to use, separated by commas."""

TRACKERS = {
    "tensorboard": "robflat_trackers.event_files:TensorBoard",
    "mlflow": "robflat_trackers.mlflow_runs:MLflow",
}


class Tracker(Protocol):
    """Follows one run. It is made when the run starts or resumes, and closed by `ends`, `fails` or `close`."""

    def __init__(self, run: RunView) -> None: ...
    def epoch_ends(self, epoch: Mapping[str, Any]) -> None: ...
    def evaluation_ends(self, checkpoint: str, result: Mapping[str, Any]) -> None: ...
    def ends(self, record: Mapping[str, Any]) -> None: ...
    def fails(self, error: Exception) -> None: ...
    def close(self) -> None: ...


_open: dict[str, list[Tracker]] = {}
"""Key of a run -> its trackers, until the run ends."""


def _trackers(run: RunView) -> list[Tracker]:
    """New trackers for a run: those that the environment variable names, or all if it is not set."""
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
