"""Files of weights as training programs write them: read without running anything, and looked through to the tensors.

what the file holds     {"epoch": 9, "state_dict": {"module.conv1.weight": ...}, "args": Namespace(...)}
what is returned        {"conv1.weight": ...}, and notes that name "state_dict" and "module."
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.evaluation.inspection import MAX_BYTES, SAVE, inspect
from robflat_bench.numerics.weights import read_weights

ENTRIES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module"),
    *("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "swa", "swa_state_dict"),
)
"""Entries of a dictionary that hold the tensors of a network. Of several, the first one here is read."""
DEEPEST = 4
"""Dictionaries in dictionaries that are looked through."""


@dataclass(frozen=True)
class Contents:
    """The tensors of a file.

    Parameters
    ----------
    tensors : dict of str to Tensor
        On the CPU, under the file's own names.
    architecture : str
        The network's name as the training program called it; "" if the file does not say.
    notes : tuple of str
        Which part of the file this is.
    """

    tensors: dict[str, Tensor]
    architecture: str = ""
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------


def read(path: Path) -> Contents:
    """The tensors of a file of torch.save or safetensors.

    Raises
    ------
    UsageError
        There is no such file, or it holds no tensors by name.
    CheckFailed
        It is damaged, or asks for more than a file of weights does.
    """
    if inspect(path) == "safetensors":
        return Contents(read_weights(path))
    content = _unpickled(path)
    tensors, entries, others = _looked_through(content, path)
    notes = [f"{path.name}: tensors of {_written(entries)}"] if entries else []
    if others:
        place = "".join(f"[{name!r}]" for name in others[0])
        command = f"import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True){place}, 'other.pt')"
        names = _written([other[-1] for other in others])
        notes = [f"{notes[0]}, not of {names}; for these: python -c {shlex.quote(command)} {shlex.quote(str(path))}"]
    return Contents(_checked(tensors, path), _architecture(content), tuple(notes))


class Opaque:
    """Stands for an object of a file that is no tensor. Its class is not looked up, so none of its code runs."""

    def __init__(self, *args: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state if isinstance(state, dict) else {})


_UNKNOWN = re.compile(r"GLOBAL ([\w.<>]+) was not an allowed global")
_BLOCKED = re.compile(r"unsupported GLOBAL ([\w.<>]+) whose module")
_MOST_CLASSES = 100


def _unpickled(path: Path) -> Any:
    """What torch.save saved: containers, numbers, texts and tensors; every other object is an `Opaque`."""
    opaque: dict[str, Any] = {}
    while True:
        replaced: list[Any] = [(made, name) for name, made in opaque.items()]
        try:
            with path.open("rb") as file, torch.serialization.safe_globals(replaced), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(file, map_location="cpu", weights_only=True)  # of a name, it would trust the suffix
        except Exception as error:  # a damaged file fails anywhere in torch
            unknown = _UNKNOWN.search(str(error))
            name = unknown[1] if unknown else ""
            if not name or name in opaque or name.startswith("torch._") or len(opaque) == _MOST_CLASSES:
                raise CheckFailed(_unreadable(path, str(error), name if name in opaque else "")) from None
            opaque[name] = type(name, (Opaque,), {})


def _unreadable(path: Path, error: str, called: str) -> str:
    """Why torch refuses a file; `called` is a function of Python itself, which torch lets nothing replace."""
    blocked = _BLOCKED.search(error)
    if called := called or (blocked[1] if blocked else ""):
        return f"{path} asks Python to call {called}, which no weights need; it was not called: do not use this file"
    essence = " ".join(error.rpartition("WeightsUnpickler error:")[2].split())
    return f"{path} cannot be read ({essence:.200}); copy it again, or {SAVE}"


def _checked(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, detached; CheckFailed for a tensor that is not plain, or is larger than the file."""
    largest = min(max(path.stat().st_size, 2**20), MAX_BYTES)
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > largest:
            raise CheckFailed(f"{path}: '{name:.100}' is sparse, quantized, or larger than the file; {SAVE}")
    return {name: tensor.detach() for name, tensor in tensors.items()}


# ---------------------------------------------------------------------------------------------------------
# Looking through
# ---------------------------------------------------------------------------------------------------------


def _looked_through(content: Any, path: Path) -> tuple[dict[str, Tensor], list[str], list[list[str]]]:
    """The named tensors in nested dictionaries, the entries that lead to them, and those that lead to others."""
    entries: list[str] = []
    others: list[list[str]] = []
    while isinstance(content, Mapping) and len(entries) < DEEPEST:
        names = [name for name in ENTRIES if _holds_tensors(content.get(name))]
        if not names:
            tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
            names = [str(name) for name, value in content.items() if not tensors and _holds_tensors(value)]
            if tensors and all(isinstance(name, str) for name in tensors):
                return tensors, entries, others
            if len(names) != 1:
                break
        others = others or [[*entries, name] for name in names[1:]]
        entries.append(names[0])
        content = content[names[0]]
    raise UsageError(f"{path} holds {_described(content)}, and no tensors by name; {SAVE}")


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether a value is a dictionary with named tensors, or a dictionary that holds such a dictionary."""
    if not isinstance(value, Mapping) or depth == DEEPEST or not all(isinstance(name, str) for name in value):
        return False
    if any(isinstance(part, Tensor) for part in value.values()):
        return True
    return any(_holds_tensors(value.get(name), depth + 1) for name in ENTRIES)


def _described(content: Any) -> str:
    """What is there instead of tensors: an object's class, a dictionary's entries."""
    if isinstance(content, Mapping):
        objects = [value for value in content.values() if isinstance(value, Opaque)]
        if not objects:
            return f"a dictionary of {_written([*map(str, content)][:5]) or 'nothing'}"
        content = objects[0]
    if isinstance(content, Opaque):
        return f"a whole object ({type(content).__name__:.100}), whose code would run if it were unpickled"
    return f"a {type(content).__name__}"


def _written(names: list[str]) -> str:
    return ", ".join(f"'{name:.100}'" for name in names)


def _architecture(content: Any) -> str:
    """The entry `arch` of timm's and torchvision's training programs, or of their arguments."""
    if not isinstance(content, Mapping):
        return ""
    arguments = content.get("args")
    places = (content, arguments if isinstance(arguments, Mapping) else getattr(arguments, "__dict__", {}))
    found = [place.get(name) for place in places for name in ("arch", "model")]
    return next((name for name in found if isinstance(name, str)), "")
