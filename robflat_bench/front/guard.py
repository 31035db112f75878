"""A call from Python leaves the process as it found it: random state, torch's flags, threads, autograd and autocast.

The network is evaluated as a copy (`evaluation.model.load_model`), so weights, buffers, gradients, modes and hooks of
the caller's own are not touched either.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import backends

from robflat_bench.evaluation.session import OPERATIONS

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


_STATES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    _attribute(backends.cudnn, "benchmark"),
    _attribute(backends.cudnn, "deterministic"),
    # Precision has two interfaces in torch; the older one is read and restored first, since it writes to both.
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _attribute(backends.cudnn, "allow_tf32"),
    *(_attribute(operation, "fp32_precision") for operation in OPERATIONS),
)
"""(read, restore) of everything global that an evaluation or a training sets or draws from, on the CPU."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A block that computes as a new process would, and after which everything global is as before.

    It may be entered under `torch.no_grad`, `torch.inference_mode`, `torch.autocast` or another default dtype, from any
    thread, and left by any exception.
    """
    found = []
    for read, restore in _STATES:
        with contextlib.suppress(RuntimeError):  # torch refuses to read the older interface after use of the newer one
            found.append((restore, read()))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        torch.set_default_dtype(torch.float32)
        with contextlib.ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            yield
    finally:
        for restore, value in found:
            restore(value)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def leaves_no_trace(function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
    """A function whose calls are `undisturbed`."""

    @functools.wraps(function)
    def guarded(*arguments: Arguments.args, **named: Arguments.kwargs) -> Returned:
        with undisturbed():
            return function(*arguments, **named)

    return guarded
