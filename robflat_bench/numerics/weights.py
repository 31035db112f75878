"""Weights as safetensors files: reading unpickles nothing, a digest identifies weights and finds damage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
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


@dataclass(frozen=True)
class Misfit:
    """How tensors differ from those of a network; false where names and shapes are equal.

    Parameters
    ----------
    unknown, missing : list of str
        Names that the network has not, and names of the network that are not given.
    reshaped : dict of str to (shape, shape)
        The given shape and the network's own, where they differ.
    given, own : int
        Numbers of tensors.
    """

    unknown: list[str]
    missing: list[str]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    given: int
    own: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Misfit:
        shapes = {name: (tuple(tensors[name].shape), tuple(own[name].shape)) for name in sorted(tensors.keys() & own)}
        return cls(
            sorted(tensors.keys() - own.keys()),
            sorted(own.keys() - tensors.keys()),
            {name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
            len(tensors),
            len(own),
        )

    def __bool__(self) -> bool:
        return bool(self.unknown or self.missing or self.reshaped)

    def __str__(self) -> str:
        parts = (
            (self.unknown, f"of its {self.given} tensors are not in the network", _quoted),
            (self.missing, f"of the network's {self.own} are not in it", _quoted),
            (self.reshaped, "have another shape", self._shape),
        )
        return ", ".join(f"{len(names)} {says} ({_five(names, form)})" for names, says, form in parts if names)

    def _shape(self, name: str) -> str:
        there, here = self.reshaped[name]
        return f"{_quoted(name)} is {there} there and {here} here"

    @property
    def rows(self) -> tuple[int, int] | None:
        """The numbers of rows, given and own, if these are all that differs: two numbers of classes."""
        if self.unknown or self.missing or not self.reshaped:
            return None
        pairs = {
            (there[0], here[0]) if there and here and there[1:] == here[1:] else None
            for there, here in self.reshaped.values()
        }
        return pairs.pop() if len(pairs) == 1 else None


def _quoted(name: str) -> str:
    return f"'{name:.100}'"


def _five(names: Collection[str], form: Callable[[str], str]) -> str:
    """The first five names; an ellipsis stands for the others."""
    return ", ".join([*map(form, islice(names, 5)), *(["..."] if len(names) > 5 else [])])


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load tensors into the model. `name` names their origin.

    Raises
    ------
    UsageError
        Names or shapes are not the model's; or a tensor has another kind of number, or holds NaN or infinity where the
        model's own tensor is finite (a mask may hold -inf).
    """
    own = model.state_dict()
    if misfit := Misfit.of(tensors, own):
        raise UsageError(f"{name} does not fit this backbone: {misfit}; name the backbone it was made with")
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
