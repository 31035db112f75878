"""Weights as safetensors files: reading unpickles nothing, a digest identifies weights and finds damage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robflat_bench.core import CheckFailed, RobflatError, UsageError
from robflat_bench.records.store import write_atomically


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in order of name: the identity of weights on every device."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def packed(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file. Tensors may share memory (the best weights can be the last ones)."""
    copies = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return save(copies, metadata)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers of a model, with the digest that finds damage later."""
    write_atomically(path, packed(tensors, {"digest": digest(tensors)}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UsageError if it is missing, CheckFailed if it is damaged."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        tensors, metadata = unpacked(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckFailed(f"{path} is not a readable safetensors file: {error}") from None
    found = digest(tensors)
    if metadata.get("digest", found) != found:
        raise CheckFailed(f"{path} is damaged: its tensors do not have the digest it carries")
    return tensors


def undamaged(path: Path) -> bool:
    """Whether `read_weights` can read the file."""
    try:
        read_weights(path)
    except RobflatError:
        return False
    return True


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load tensors into the model. `name` names their origin.

    Raises
    ------
    UsageError
        With the first tensor whose shape or kind of number is not the model's, or that holds NaN or infinity where the
        model's own tensor is finite (a mask may hold -inf).
    """
    own = model.state_dict()
    expected = {key: tuple(value.shape) for key, value in own.items()}
    given = {key: tuple(value.shape) for key, value in tensors.items()}
    wrong = sorted(key for key in expected | given if expected.get(key) != given.get(key))
    if wrong:
        there, here = (shapes.get(wrong[0], "missing") for shapes in (given, expected))
        raise UsageError(
            f"{name} does not fit this backbone: '{wrong[0]}' is {there} there and {here} here; "
            "name the backbone it was made with"
        )
    for key, theirs in sorted(tensors.items()):
        ours = own[key]
        if _kind(theirs) != _kind(ours):
            raise UsageError(
                f"{name}: '{key}' holds {_kind(theirs)} ({theirs.dtype}), and this backbone's are {_kind(ours)} "
                f"({ours.dtype}); save the weights unquantized"
            )
        if not bool((theirs.isfinite() | ~ours.isfinite().to(theirs.device)).all()):
            raise UsageError(f"{name}: '{key}' holds NaN or infinity; name weights from before training diverged")
    _check_ties(model, tensors, name)
    model.load_state_dict(dict(tensors))


def _kind(tensor: Tensor) -> str:
    return "floats" if tensor.is_floating_point() else "complex numbers" if tensor.is_complex() else "integers"


def _check_ties(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """UsageError where names of one tensor of the model have two values: loading would keep the last one's."""
    first: dict[int, str] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        same = first.setdefault(id(tensor), key)
        if same != key and not torch.equal(tensors[same], tensors[key]):
            raise UsageError(
                f"{name}: '{same}' and '{key}' are one tensor in this network and have two values here; whatever "
                "changes weights must change every name, see `named_parameters(remove_duplicate=False)`"
            )


@contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> Iterator[None]:
    """The model with these weights; its own are restored from a copy afterwards, bit for bit."""
    own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    load_weights(model, tensors, name)
    try:
        yield
    finally:
        model.load_state_dict(own)


def unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; SafetensorError, OSError or ValueError if it is damaged."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
