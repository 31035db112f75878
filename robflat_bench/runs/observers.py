"""Observers of a run. They see everything and change nothing.

`HistoryFile` writes history.jsonl. `PluginObservers` calls the hooks of plugins, each alone, and afterwards restores
what a hook changed in this process.
"""

from __future__ import annotations

import contextlib
import copy
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from robflat_bench.core import Observer, RunView, contained
from robflat_bench.records.record import Epoch, Result, RunRecord
from robflat_bench.records.store import write_atomically
from robflat_bench.registry.plugins import Plugins


class HistoryFile(Observer):
    """Writes history.jsonl, one line per epoch. The file is rewritten whole, so a resumed run repeats no line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch_ends(self, history: Sequence[Epoch]) -> None:
        write_atomically(self.path, "".join(f"{row.model_dump_json()}\n" for row in history).encode())


# ---------------------------------------------------------------------------------------------------------
# Observers of plugins
# ---------------------------------------------------------------------------------------------------------


Access = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How to read a setting of this process, and how to write it."""


def _if_changed(read: Callable[[], Any], write: Callable[[Any], Any]) -> Access:
    """Access that writes only a changed value, because writing costs: setting a default device, even the usual one,
    slows every call of torch down, and setting determinism imports the compiler."""
    return read, lambda value: None if read() == value else write(value)


def _cuda_states() -> list[torch.Tensor]:
    """Random states of the devices; none before this process uses CUDA, because reading takes memory on each device."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _working_folder() -> str | None:
    """None if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _return_to(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _attribute(owner: Any, name: str) -> Access:
    return partial(getattr, owner, name), partial(setattr, owner, name)


_GLOBALS: tuple[Access, ...] = (
    (_working_folder, _return_to),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (np.geterr, lambda kinds: np.seterr(**kinds)),
    (torch.get_rng_state, torch.set_rng_state),
    (_cuda_states, torch.cuda.set_rng_state_all),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    _if_changed(torch.get_default_device, torch.set_default_device),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _if_changed(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (lambda: False, torch.set_flush_denormal),  # torch cannot read this setting
    *((partial(torch.is_autocast_enabled, at), partial(torch.set_autocast_enabled, at)) for at in ("cpu", "cuda")),
    _attribute(torch.backends.mkldnn, "enabled"),
    *(_attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
)
"""Everything in this process that a plugin could change and that the run's numbers depend on."""

SLOW = 0.1
"""Fraction of a run's time; the user is told of plugins whose observers take more."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Restore random states, threads, gradients, precision and working directory after the block."""
    with contextlib.ExitStack() as stack:  # restores the rest if one of them cannot be restored
        for read, write in _GLOBALS:
            stack.callback(write, read())
        yield


class PluginObservers(Observer):
    """The observers of all plugins in one run.

    Parameters
    ----------
    plugins : Plugins
        The plugins. After an observer raises, its plugin is not called again in this run.
    run : RunView
        The run as observers see it.
    tell : callable
        Shows a message to the user.
    """

    def __init__(self, plugins: Plugins, run: RunView, tell: Callable[[str], None]) -> None:
        self.plugins, self.run, self.tell = plugins, run, tell
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, str] = {}

    @property
    def report(self) -> dict[str, dict[str, Any]]:
        """For the record: "distribution version" -> seconds that its observers took, and the error if one raised."""
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
        whole = record.budget.seconds
        for name, seconds in self.seconds.items():
            if seconds > SLOW * whole:
                self.tell(f"the observers of {name} took {seconds:.1f} s beside this run's {whole:.1f} s")

    def fails(self, error: Exception) -> None:
        self._call("run_fails", error=error)

    def _call(self, event: str, **seen: Any) -> None:
        """Call every plugin's hook. Each gets its own documents, so a plugin cannot change what another or the record
        gets."""
        for provider, call in self.plugins.callers(f"robflat_bench_{event}"):
            name = str(provider)
            if name in self.errors:
                continue
            run = replace(self.run, spec=copy.deepcopy(self.run.spec))
            own = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in seen.items()}
            began = time.perf_counter()
            with contained(partial(self._failed, name, event)), undisturbed():
                began = time.perf_counter()  # saving the process's state is not the plugin's time
                call(run=run, **own)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def _failed(self, name: str, event: str, error: BaseException) -> None:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        self.errors[name] = f"{event}: {line}"
        self.tell(f"{name} is no longer told of this run: its observer of {event} raised {line}")
