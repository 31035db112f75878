"""A call from Python leaves the process as it found it: random state, torch's flags, threads, autograd and autocast.

The network is evaluated as a copy (`evaluation.model.load_model`), so weights, buffers, gradients, modes and hooks of
the caller's own are not touched either. What the network's code changes outside the network stays changed: a hook that
appends to a list appends during a call too.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import backends

from robflat_bench.core import uninterrupted
from robflat_bench.evaluation.session import OPERATIONS

Entered = TypeVar("Entered")

Setting = tuple[Callable[[], Any], Callable[[Any], Any], Any]
"""How to read it, how to write it, and its value in a new process; None: a call sets it itself, or draws from it."""


def _attribute(owner: Any, name: str, new: Any = None) -> Setting:
    return partial(getattr, owner, name), partial(setattr, owner, name), new


_SETTINGS: tuple[Setting, ...] = (
    (random.getstate, random.setstate, None),
    (np.random.get_state, np.random.set_state, None),
    (torch.get_rng_state, torch.set_rng_state, None),
    (torch.get_num_threads, torch.set_num_threads, None),
    (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    *(_attribute(owner, "enabled", True) for owner in (backends.mkldnn, backends.cudnn)),
    *(_attribute(backends.cudnn, name) for name in ("benchmark", "deterministic")),
    # An operation whose precision is "none" reads as the precision of all; so that one is "none" while they are read.
    *(_attribute(owner, "fp32_precision", "none") for owner in (backends, backends.cudnn)),
    *(_attribute(operation, "fp32_precision") for operation in OPERATIONS),
    # The older of torch's two interfaces to precision writes to both.
    _attribute(backends.cudnn, "allow_tf32"),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, None),
)
"""Everything global that an evaluation or a training sets, reads or draws from, on the CPU; restored from the last to
the first."""


def undisturbed() -> contextlib.AbstractContextManager[None]:
    """A block that computes as a new process would, and after which everything global is as before.

    It may be entered under `torch.no_grad`, `torch.inference_mode`, `torch.autocast`, another default dtype or device
    or NumPy's `seterr`, from any thread, and left by any exception.
    """
    return _entered(_enter)


def temporary_folder() -> contextlib.AbstractContextManager[str]:
    """A folder that is gone after the block, after Ctrl-C too."""
    return _entered(lambda left: left.enter_context(tempfile.TemporaryDirectory()))


@contextlib.contextmanager
def _entered(enter: Callable[[contextlib.ExitStack], Entered]) -> Iterator[Entered]:
    """A block that Ctrl-C interrupts neither while it is entered nor while it is left."""
    with contextlib.ExitStack() as left:
        with uninterrupted():
            found = enter(left)
        try:
            yield found
        finally:
            with uninterrupted():
                left.close()


def _enter(left: contextlib.ExitStack) -> None:
    for read, assign, new in _SETTINGS:
        with contextlib.suppress(RuntimeError):  # torch refuses to read the older interface after use of the newer one
            left.callback(assign, found := read())
            if new not in (None, found):
                assign(new)
    if torch.cuda.is_initialized():
        left.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    left.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
    left.enter_context(torch.autograd.set_detect_anomaly(False))
    left.enter_context(torch.inference_mode(False))  # records gradients, under `no_grad` too
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            left.enter_context(torch.autocast(kind, enabled=False))
    if torch.get_default_device().type != "cpu":
        left.enter_context(torch.device("cpu"))
