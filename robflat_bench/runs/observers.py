"""Observers of a run: they see everything and change nothing. `Observer` is the core's own, `PluginObservers` calls
those of plugins, each alone, in a guard that undoes what it does to this process."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robflat_bench.core import Observer, RunView
from robflat_bench.registry.plugins import Plugins
from robflat_bench.results.record import Epoch, Result, RunRecord
from robflat_bench.results.store import write_atomically


class HistoryFile(Observer):
    """history.jsonl: one line per epoch, rewritten whole, so a resumed run leaves no line twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        write_atomically(self.path, "".join(f"{row.model_dump_json()}\n" for row in history).encode())


# ---------------------------------------------------------------------------------------------------------
# Observers of plugins
# ---------------------------------------------------------------------------------------------------------


Access = tuple[Callable[[], Any], Callable[[Any], Any]]


def _where_it_differs(read: Callable[[], Any], write: Callable[[Any], Any]) -> Access:
    """Of what is not written for nothing: any default device, the usual one too, slows every call of torch down, and
    determinism imports the compiler."""
    return read, lambda value: None if read() == value else write(value)


def _cuda_states() -> list[torch.Tensor]:
    """Of no device that this process has not touched: asking would take memory on each."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _flag(owner: Any, name: str) -> Access:
    return (lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


_GLOBALS: tuple[Access, ...] = (
    (os.getcwd, os.chdir),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
    (torch.get_rng_state, torch.set_rng_state),
    (_cuda_states, torch.cuda.set_rng_state_all),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    _where_it_differs(torch.get_default_device, torch.set_default_device),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _where_it_differs(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (lambda: False, torch.set_flush_denormal),  # which nobody can ask for
    *(
        (partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device))
        for device in ("cpu", "cuda")
    ),
    _flag(torch.backends.mkldnn, "enabled"),
    *(_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
)
"""How to read and how to set what a plugin shares with the run's numbers."""

SLOW = 0.1
"""A plugin that takes more of a run's time than this is told of."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """After the block this process is as before: its stdout, random numbers, threads, gradients, precision, folder."""
    with contextlib.ExitStack() as stack:  # which goes on where one cannot be put back
        for read, write in _GLOBALS:
            stack.callback(write, read())
        with contextlib.redirect_stdout(sys.stderr):
            yield


class PluginObservers(Observer):
    """The observers of all plugins for one run. One that raises is told of once and called no more."""

    def __init__(self, plugins: Plugins, run: RunView, tell: Callable[[str], None]) -> None:
        self.plugins, self.run, self.tell = plugins, run, tell
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, str] = {}

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """ "distribution version" -> seconds its observers took and, of one that raised, the error; for the record."""
        return {
            name: {"seconds": round(seconds, 3)} | ({"error": self.errors[name]} if name in self.errors else {})
            for name, seconds in self.seconds.items()
        }

    def starts(self) -> None:
        self._call("run_starts")

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        self._call("epoch_ends", epoch=history[-1])

    def evaluation_ends(self, checkpoint: str, result: Result) -> None:
        self._call("evaluation_ends", checkpoint=checkpoint, result=result)

    def ends(self, record: RunRecord) -> None:
        self._call("run_ends", record=record)
        for name, seconds in self.seconds.items():
            if seconds > SLOW * record.budget.seconds:
                self.tell(
                    f"the observers of {name} took {seconds:.1f} s beside this run's {record.budget.seconds:.1f} s"
                )

    def fails(self, error: Exception) -> None:
        self._call("run_fails", error=error)

    def _call(self, event: str, **what: Any) -> None:
        """Each plugin sees documents of its own, so that none can change what the next one or the record sees."""
        for provider, call in self.plugins.callers(f"robflat_bench_{event}"):
            name = str(provider)
            if name in self.errors:
                continue
            own = {
                key: value.model_dump(mode="json") if hasattr(value, "model_dump") else value
                for key, value in what.items()
            }
            began = time.perf_counter()
            try:
                with undisturbed():
                    began = time.perf_counter()  # what was put aside is not the plugin's time
                    call(run=replace(self.run, spec=copy.deepcopy(self.run.spec)), **own)
            except (Exception, SystemExit) as error:
                line = f"{type(error).__name__}: {error}".splitlines()[0]
                self.errors[name] = f"{event}: {line}"
                self.tell(f"{name} is no longer told of this run: its observer of {event} raised {line}")
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
