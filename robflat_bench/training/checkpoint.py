"""Checkpoints as safetensors: weights alone for evaluation, and the whole training state for resuming.

Every state file carries a digest of its tensors and state; a damaged one is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robflat_bench.base import CheckFailed, UsageError
from robflat_bench.store import write_atomically

KEPT_STATES = 2


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, by name: the identity of weights wherever they lie."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _saved(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Parameters and buffers of a model, with the digest that finds damage later."""
    write_atomically(path, _saved(tensors, {"digest": digest(tensors)}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; UsageError where it is missing, CheckFailed where it is damaged."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        tensors, metadata = _read(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckFailed(f"{path} is not a readable safetensors file: {error}") from None
    if metadata.get("digest", digest(tensors)) != digest(tensors):
        raise CheckFailed(f"{path} is damaged: its tensors do not have the digest it carries")
    return tensors


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Into the model; UsageError naming the first tensor that does not fit."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != given:
        key = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))[0]
        raise UsageError(
            f"{name} does not fit this backbone: '{key}' is {given.get(key, 'missing')} there and "
            f"{expected.get(key, 'missing')} here; name the backbone it was made with"
        )
    model.load_state_dict(dict(tensors))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


class States:
    """The last few training states of a run, newest first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
        """One more state after `step` steps; older ones beyond the kept number go."""
        text = json.dumps(state)
        metadata = {"state": text, "digest": _seal(tensors, text)}
        write_atomically(self.folder / f"state-{step:09d}.safetensors", _saved(tensors, metadata))
        for path in self._files()[KEPT_STATES:]:
            path.unlink(missing_ok=True)

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest state that is whole, or None."""
        for path in self._files():
            try:
                tensors, metadata = _read(path)
                if metadata["digest"] == _seal(tensors, metadata["state"]):
                    return tensors, json.loads(metadata["state"])
            except (SafetensorError, OSError, ValueError, KeyError):
                continue
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"), reverse=True)


def _seal(tensors: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest(tensors)}{text}".encode()).hexdigest()
