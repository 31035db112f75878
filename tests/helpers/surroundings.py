"""Snapshots of everything that a call must leave as it was: this process, a network, a folder.

Libraries that are imported for the first time add filters of warnings (scipy does); that is no trace of a call.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Snapshot = dict[str, Any]
"""Name -> what was found, comparable by ==."""

_b = torch.backends
_OPERATIONS = {
    "all": _b,
    "cudnn": _b.cudnn,
    "mkldnn": _b.mkldnn,
    "cuda.matmul": _b.cuda.matmul,
    "cudnn.conv": _b.cudnn.conv,
    "cudnn.rnn": _b.cudnn.rnn,
    "mkldnn.conv": _b.mkldnn.conv,
    "mkldnn.rnn": _b.mkldnn.rnn,
    "mkldnn.matmul": _b.mkldnn.matmul,
}


def _bytes(tensor: Tensor) -> bytes:
    """The bits of a tensor and its type; NaN equals itself."""
    dense = tensor.detach().cpu().contiguous()
    return f"{dense.dtype}{tuple(dense.shape)}".encode() + dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def _denormal() -> float:
    return float(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 0.5)


_READERS: Mapping[str, Callable[[], Any]] = {
    "random": random.getstate,
    "numpy": lambda: pickle.dumps(np.random.get_state()),
    "torch": lambda: torch.get_rng_state().numpy().tobytes(),
    "numpy errors": np.geterr,
    "numpy printing": np.get_printoptions,
    "threads": torch.get_num_threads,
    "threads between operations": torch.get_num_interop_threads,
    "gradients": torch.is_grad_enabled,
    "inference": torch.is_inference_mode_enabled,
    "anomalies": lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    "autocast": lambda: [
        (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
        for kind in ("cpu", "cuda")
    ],
    "default dtype": torch.get_default_dtype,
    "default device": lambda: str(torch.get_default_device()),
    "deterministic": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    ),
    "denormals": _denormal,
    "printing": lambda: vars(torch._tensor_str.PRINT_OPTS).copy(),
    "cudnn": lambda: (_b.cudnn.enabled, _b.cudnn.benchmark, _b.cudnn.deterministic, _b.cudnn.benchmark_limit),
    "mkldnn": lambda: (_b.mkldnn.enabled, _b.mkldnn.deterministic),
    "attention": lambda: (_b.cuda.flash_sdp_enabled(), _b.cuda.mem_efficient_sdp_enabled(), _b.cuda.math_sdp_enabled()),
    "matmul precision": torch.get_float32_matmul_precision,
    "matmul tf32": lambda: _b.cuda.matmul.allow_tf32,
    "cudnn tf32": lambda: _b.cudnn.allow_tf32,
    **{f"precision of {name}": partial(getattr, owner, "fp32_precision") for name, owner in _OPERATIONS.items()},
    "global hooks": lambda: len(nn.modules.module._global_forward_hooks),
    "sys.path": lambda: [*sys.path],
    "sys.meta_path": lambda: [finder for finder in sys.meta_path if "robflat_bench" not in type(finder).__module__],
    "user modules": lambda: sorted(name for name in sys.modules if name.startswith("users_")),
    "environment": lambda: dict(os.environ),
    "folder": os.getcwd,
    "warnings": lambda: [*warnings.filters],
    "signals": lambda: [*map(signal.getsignal, sorted(signal.valid_signals()))],
    "streams": lambda: [id(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
    "excepthooks": lambda: (sys.excepthook, threading.excepthook, sys.displayhook),
    "trace": lambda: (sys.gettrace() is None, sys.getrecursionlimit()),
    "logging": lambda: (logging.root.level, [*logging.root.handlers], logging.root.manager.disable),
    "temporary files": lambda: sorted(os.listdir(tempfile.gettempdir())),
}


def _read(reader: Callable[[], Any]) -> Any:
    try:
        return reader()
    except RuntimeError as error:  # torch reads no precision by the older interface after use of the newer one
        return f"refused: {type(error).__name__}"


def process() -> Snapshot:
    """Everything global in this process that a call could change."""
    return {name: _read(reader) for name, reader in _READERS.items()}


def forget_precision() -> None:
    """No precision is set any more."""
    for owner in (_b, _b.cudnn, _b.mkldnn.matmul, _b.mkldnn.conv, _b.mkldnn.rnn, _b.cuda.matmul):
        owner.fp32_precision = "none"
    _b.cudnn.conv.fp32_precision = _b.cudnn.rnn.fp32_precision = "tf32"


def inherited() -> Snapshot:
    """What every operation's precision becomes when the precision of all is set, and set again: a precision that was
    not set follows, one that was set stays. It changes the process; read it last."""
    found = {}
    for value in ("tf32", "ieee", "none"):
        _b.fp32_precision = value
        for name, owner in _OPERATIONS.items():
            found[f"{name} under {value}"] = _read(partial(getattr, owner, "fp32_precision"))
    return found


def network(model: nn.Module) -> Snapshot:
    """The bits, versions, addresses, gradients, modes, hooks and attributes of a network."""
    found: Snapshot = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"{path}: module"] = (id(module), type(module), module.training)
        for name, value in vars(module).items():
            at = f"{path}.{name}"
            if name in ("_parameters", "_buffers"):
                found[at] = {key: None if part is None else _tensor(part) for key, part in value.items()}
            elif name.endswith("hooks") or name == "_modules":
                found[at] = [(key, id(part)) for key, part in value.items()]
            elif isinstance(value, Tensor):
                found[at] = _tensor(value)
            else:
                found[at] = repr(value)
    return found


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    inference = tensor.is_inference()
    gradient = None if inference or not tensor.is_leaf or tensor.grad is None else _tensor(tensor.grad)
    version = None if inference else tensor._version
    place = (id(tensor), tensor.data_ptr(), tensor.stride(), version)
    return *place, tensor.requires_grad, _bytes(tensor), gradient, [*(tensor._backward_hooks or ())]


def folder(path: Path) -> Snapshot:
    """Every file below a folder and its hash."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def changes(before: Snapshot, after: Snapshot) -> list[str]:
    """The names of what differs."""
    return [name for name in before.keys() | after.keys() if before.get(name, "none") != after.get(name, "none")]
