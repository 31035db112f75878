"""How a model to evaluate is read, and the mistakes that show before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robflat_bench.core import UsageError, parse_fraction
from robflat_bench.evaluation.inspection import SAVE, SUFFIXES, inspect
from robflat_bench.evaluation.own_code import check_name
from robflat_bench.records.hub import PREFIX, HubName
from robflat_bench.records.store import Store
from robflat_bench.registry.components import resolve
from robflat_bench.registry.grammar import parse_value
from robflat_bench.registry.registry import Registry

_USUAL = {"--mean": "0.4914,0.4822,0.4465", "--std": "0.2470,0.2435,0.2616"}
"""Examples: CIFAR-10's."""


def _check_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """UsageError unless mean and std are both there or both not, on the scale [0,1]."""
    given = {"--mean": mean, "--std": std}
    for option, other in (("--mean", "--std"), ("--std", "--mean")):
        if given[option] and not given[other]:
            raise UsageError(f"{option} without {other}; add {other}, e.g. {other} {_USUAL[other]}")
    for option, values in given.items():
        lowest = 0.0 if option == "--mean" else 1e-6
        for value in values:
            if not lowest <= value <= 1:
                raise UsageError(
                    f"{option}: {value:g} is out of range: images are in [0,1], so write {option} on that scale "
                    f"(a number on the scale 0 to 255 as {value:g}/255)"
                )


@dataclass(frozen=True)
class ModelOptions:
    """How a model is read.

    Parameters
    ----------
    backbone : str or None
        The backbone of a file of weights (None: the protocol's where it fits, else the one that its names show).
    network : str or None
        The class of a file of weights, or a function that makes the network: "net.py:Net" or "package.module:factory".
    arguments : mapping of str to values
        Keyword arguments of the class or function.
    mean, std : tuple of float
        Statistics of the channels on the scale [0,1], or one number for all. `(x - mean) / std` goes into the network;
        without them, images in [0,1] do.
    classes : int or None
        Number of logits (None: the number of classes of the data).
    checkpoint : str
        Of a run: best, last, initial or epoch-N.

    Raises
    ------
    UsageError
        One of mean and std is missing, or not on the scale [0,1].
    """

    backbone: str | None = None
    network: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: int | None = None
    checkpoint: str = "last"

    def __post_init__(self) -> None:
        _check_statistics(self.mean, self.std)


OTHER_PROTOCOL = "--protocol cifar10-linf --data DIR"
USUAL = ModelOptions()
"""The options of a command without any."""


Kind = Literal["file", "hub", "backbone", "run", "module"]
_READING = ("--model", "--model-args", "--backbone", "--mean", "--std", "--classes")
_APPLY: dict[Kind, tuple[str, ...]] = {
    "file": _READING,
    "hub": _READING,
    "module": ("--mean", "--std", "--classes"),
    "run": ("--checkpoint",),
    "backbone": (),
}
"""Kind of a model -> the options that say how it is read."""


def kind_of(model: str) -> Kind:
    """What the name of a model names: a file of weights, here or on the hub, a backbone with parameters, or a run."""
    if model.startswith(PREFIX):
        return "hub"
    if Path(model).suffix.lower() in SUFFIXES:
        return "file"
    return "backbone" if "(" in model and not os.path.isdir(model) else "run"


def check_model(model: str, options: ModelOptions, store: Store, registry: Registry) -> None:
    """Find every mistake that shows without torch.

    Parameters
    ----------
    model : str
        What `find_model` finds a model by.
    options : ModelOptions
        How it is read.
    store : Store
        Holds the runs.
    registry : Registry
        Holds the backbones.

    Raises
    ------
    UsageError
        There is no such file or run, it is a file of another kind, or an option does not apply; the message ends with
        the next thing to type.
    CheckFailed
        The file is empty, damaged or too large.
    """
    kind = kind_of(model)
    check_options(kind, model, options)
    if options.network is not None:
        if options.backbone is not None:
            raise UsageError("--model and --backbone both name a network; leave one out")
        if options.network in registry.names("backbone"):
            raise UsageError(f"--model {options.network}: it is a backbone; type --backbone {options.network}")
        check_name(options.network)
    elif options.arguments:
        raise UsageError("--model-args are the arguments of --model; add --model net.py:Net")
    if kind == "run":
        _check_run(model, store, registry)
    elif text := model if kind == "backbone" else options.backbone:
        resolve(registry, "backbone", text)
    if kind == "file":
        inspect(Path(model))
    elif kind == "hub":
        HubName.parse(model)


def check_options(kind: Kind, model: str, options: ModelOptions) -> None:
    """UsageError for an option that does not apply to a model of this kind; `model` is its name."""
    given = {
        "--model": options.network,
        "--model-args": options.arguments,
        "--backbone": options.backbone,
        "--mean": options.mean,
        "--std": options.std,
        "--classes": options.classes,
        "--checkpoint": options.checkpoint != "last",
    }
    used = next((name for name, value in given.items() if value and name not in _APPLY[kind]), None)
    if used == "--checkpoint":
        raise UsageError(f"--checkpoint {options.checkpoint} is of a run, and '{model}' is none; leave it out")
    if used:
        raise UsageError(
            f"{used} says how to read a file of weights, and '{model}' is none; leave {used} out, or name a file "
            f"({', '.join(SUFFIXES)})"
        )


def _check_run(model: str, store: Store, registry: Registry) -> None:
    """UsageError unless the name is a run's."""
    try:
        store.find(model)
    except UsageError as error:
        raise UsageError(_no_run(model, registry) or str(error)) from None


def _no_run(model: str, registry: Registry) -> str | None:
    """What a name that is no run's names instead."""
    path = Path(model)
    if path.suffix.lower() == ".py":
        return f"'{model}' is a network's code; name its weights: `evaluate WEIGHTS.pt --model {model}:Net`"
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        inside = f"name the weights in it, e.g. `evaluate {path / files[0]}`" if files else "name a file of weights"
        return f"'{model}' is a folder without a run; {inside}"
    if path.exists() or path.suffix:
        return f"'{model}' is no run, and no file of weights ({', '.join(SUFFIXES)}); {SAVE}"
    if model in registry.names("backbone"):
        return f"'{model}' is a backbone; name its weights: `evaluate WEIGHTS.pt --backbone {model}`"
    return None


# ---------------------------------------------------------------------------------------------------------
# Values of options
# ---------------------------------------------------------------------------------------------------------


PYTHON = {"True": True, "False": False, "None": None}
"""Values as Python writes them, which a component's parameters have as words."""


def named_values(pairs: Sequence[str]) -> dict[str, Any]:
    """['depth=28', 'widths=[16, 32]'] -> {'depth': 28, 'widths': [16, 32]}; values as in a component's parameters."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"--model-args {pair}: write NAME=VALUE, e.g. --model-args depth=28")
        if name.strip() in found:
            raise UsageError(f"--model-args {pair}: '{name.strip()}' is given twice; leave one out")
        text = value.strip()
        found[name.strip()] = PYTHON[text] if text in PYTHON else parse_value(text, f"--model-args {pair}")
    return found


def channel_values(text: str, option: str) -> tuple[float, ...]:
    """'0.49,0.48,0.45' -> (0.49, 0.48, 0.45); fractions such as 125.3/255 are numbers too."""
    values = tuple(parse_fraction(part.strip()) for part in text.split(","))
    try:
        return tuple(map(float, values))
    except ValueError:
        raise UsageError(
            f"{option} {text}: write one number for each channel, e.g. {option} {_USUAL[option]}"
        ) from None
