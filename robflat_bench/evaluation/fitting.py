"""Tensors of a file meet a network: under its own names, behind a normalisation, or refused with what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robflat_bench.backbones.parts import Normalized, check_tensors
from robflat_bench.core import BackboneInfo, CheckFailed, ImageShape, UsageError
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.evaluation.options import OTHER_PROTOCOL, ModelOptions
from robflat_bench.evaluation.own_code import make
from robflat_bench.evaluation.weight_files import Contents
from robflat_bench.numerics.weights import Misfit, load_weights
from robflat_bench.registry.components import Component

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put in front of every name: DataParallel, torch.compile, Lightning modules."""
DEEPEST = 8
"""Prefixes of one name that are looked through."""
STATISTICS = ("mean", "std", "mu", "sigma", "var", "variance", "_mean", "_std")
"""Last parts of the names of tensors that normalise images."""
COUNTER = "n_averaged"
"""The tensor that torch's AveragedModel has beside those of its network."""
INSIDE = "network."
"""What names of a network behind `Normalized` begin with."""


# ---------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------


def stripped(tensors: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], tuple[str, ...]]]:
    """The tensors as they are, then without the first prefix that all names share, then without the next, ...

    Yields
    ------
    tuple
        Tensors, and a note for each prefix that is gone.
    """
    found, notes = dict(tensors), tuple[str, ...]()
    while len(notes) <= DEEPEST:
        yield found, notes
        named = {name: tensor for name, tensor in found.items() if name != COUNTER}
        prefix = next((prefix for prefix in PREFIXES if named and all(name.startswith(prefix) for name in named)), None)
        if prefix is None:
            return
        found = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        notes = (*notes, f"names are read without their prefix '{prefix}'")


def fitted(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The tensors under a network's own names, and notes; None where their names are others.

    Raises UsageError where the file holds all of them more than once, behind several prefixes.
    """
    for named, notes in stripped(tensors):
        if whole := _whole(named, own):
            return whole, notes
    return _behind_a_prefix(tensors, own)


def _whole(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors and what a file may lack; None unless these are the network's own names."""
    whole = {**named, **_left_out(named, own), **_counted(named, own)}
    return whole if whole.keys() == own.keys() else None


def _behind_a_prefix(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The network in a file of more than it, such as a Lightning module with a loss of its own.

    None unless exactly one prefix has tensors of these names and shapes behind it, and no others.
    """
    first = next((name for name in own if not name.endswith("num_batches_tracked")), "")
    prefixes = sorted({name.removesuffix(first) for name in tensors if first and name.endswith(f".{first}")})
    inside = {
        prefix: {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        for prefix in prefixes
    }
    found = [prefix for prefix, named in inside.items() if _holds(named, own)]
    if len(found) > 1:
        raise UsageError(
            f"the file holds this network {len(found)} times, behind {' and '.join(map(repr, found))}; save one alone: "
            f"torch.save({{k[{len(found[0])}:]: v for k, v in tensors.items() if k.startswith({found[0]!r})}}, "
            '"weights.pt")'
        )
    if not found or (whole := _whole(inside[found[0]], own)) is None:
        return None
    (prefix,) = found
    others = [name for name in tensors if not name.startswith(prefix)]
    if front := next((name for name in others if name.rpartition(".")[2] in STATISTICS), None):
        raise UsageError(
            f"the file holds {front!r} beside the network behind {prefix!r}, which may normalise its images; save the "
            "network alone, and give its normalisation by --mean and --std"
        )
    left = f"; {len(others)} others, such as {others[0]!r}, are left out" if others else ""
    return whole, (f"names are read behind their prefix {prefix!r}{left}",)


def _holds(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a network of these shapes is among the tensors, whatever else is."""
    present = {**named, **_left_out(named, own)}
    return all(name in present and present[name].shape == tensor.shape for name, tensor in own.items())


def _counted(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Counters of batches as integers: averages and conversions of whole dictionaries make them floats."""
    counters = [name for name in named if name.endswith("num_batches_tracked") and name in own]
    return {name: named[name].to(own[name].dtype) for name in counters}


def _left_out(named: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that a file may lack: second names of a tensor, and counters of batches, which no evaluation reads.

    safetensors drops the former, old versions of torch the latter.
    """
    given = {(tensor.data_ptr(), tensor.shape): named[name] for name, tensor in own.items() if name in named}
    missing = {name: tensor for name, tensor in own.items() if name not in named and tensor.numel()}
    ties = {name: given.get((tensor.data_ptr(), tensor.shape)) for name, tensor in missing.items()}
    counters = {name: tensor for name, tensor in missing.items() if name.endswith("num_batches_tracked")}
    return counters | {name: tensor for name, tensor in ties.items() if tensor is not None}


def nearest(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without as many prefixes as makes most of their names the network's."""
    return max((named for named, _ in stripped(tensors)), key=lambda named: len(named.keys() & own.keys()))


def check_fit(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], file: str, network: str, instead: str, rebuild: str = ""
) -> None:
    """UsageError unless these are the tensors of the network: what differs, and the options to type `instead`.

    `rebuild` are the options, besides --classes, that build it for another number of classes.
    """
    misfit = Misfit.of(tensors, own)
    if not misfit:
        return
    if misfit.rows:
        there, here = misfit.rows
        more = f"add {rebuild}--classes {there}"
        fewer = f"choose a protocol whose data have {there}: --protocol FILE.toml"
        instead = f"if these are {there} classes, {more if there > here else fewer}"
    raise UsageError(f"{file} does not fit {network}: {misfit}; {instead}")


LARGER = 2**20
"""A network may take so many bytes more than its file: buffers that files leave out."""


def check_size(component: Component[BackboneInfo], shape: ImageShape, activation: str, file: Path) -> None:
    """CheckFailed where a backbone that a stranger names is larger than its file: building it could take all memory."""
    try:
        with torch.device("meta"):  # shapes without values
            network: nn.Module = component.build(shape, activation)
    except Exception:  # some of timm's do not build without values; its list of names bounds their sizes
        return
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > file.stat().st_size + LARGER:
        raise CheckFailed(
            f"{file.name} has {file.stat().st_size:,} bytes, and the backbone {component.canonical} that comes with it "
            f"takes {size:,}; do not trust it, or name the network yourself: --backbone"
        )


# ---------------------------------------------------------------------------------------------------------
# A network of one's own
# ---------------------------------------------------------------------------------------------------------


def unwrapped(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile, and a note for each."""
    notes: tuple[str, ...] = ()
    while (inner := _inner(module)) is not None:
        notes = (*notes, f"evaluated without its wrapper {type(module).__name__}")
        module = inner
    return module, notes


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return module.module
    return dict(module.named_children()).get("_orig_mod")  # of torch.compile, whose class takes seconds to import


def own_network(
    contents: Contents, file: Path, options: ModelOptions, dtype: torch.dtype
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network that a user's class or function makes, with the tensors of a file, and notes."""
    assert options.network is not None
    with global_state(generator(0, "construction")):  # for what is drawn and not saved
        made = make(options.network, options.arguments)
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--model {options.network} made a {type(made).__name__}, not an nn.Module; name a class of networks, or a "
            "function that returns one"
        )
    network, notes = unwrapped(made)
    check_tensors(network)
    network = network.to(dtype)
    own = network.state_dict()
    tensors, prefixes = fitted(contents.tensors, own) or (nearest(contents.tensors, own), ())
    check_fit(
        tensors,
        own,
        file.name,
        options.network,
        "name the class that it was saved from by --model, and its arguments by --model-args NAME=VALUE",
        "--model-args NAME=VALUE for them and ",
    )
    load_weights(network, tensors, file.name)
    given = ", ".join(f"{key}={value!r}" for key, value in options.arguments.items())
    called = f"the network is {options.network.rpartition('/')[2]}({given})"
    return network, (called, *notes, *prefixes)


# ---------------------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------------------


def with_statistics(shape: ImageShape, options: ModelOptions) -> ImageShape:
    """The shape with the options' mean and std of each channel; without any, 0 and 1: images go in as they are."""
    found: dict[str, Any] = {}
    for name, values, usual in (("mean", options.mean, 0.0), ("std", options.std, 1.0)):
        if len(values) not in (0, 1, shape.channels):
            raise UsageError(
                f"--{name} has {len(values)} values, and the protocol's images have {shape.channels} channels; write "
                f"one for each channel, or one for all, or choose another protocol: {OTHER_PROTOCOL}"
            )
        found[name] = values if len(values) == shape.channels else shape.channels * (values or (usual,))
    return replace(shape, **found)


def normalisation_note(options: ModelOptions) -> str:
    """What happens to images in front of the network."""
    if options.mean:
        return f"images are normalised: mean {_listed(options.mean)}, std {_listed(options.std)}"
    return "no normalisation: images in [0,1] go in as they are; --mean and --std put one in front"


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:.6g}" for value in values)


def behind_statistics(tensors: Mapping[str, Tensor], shape: ImageShape) -> dict[str, Tensor]:
    """Tensors of a network, under the names that they have inside `Normalized`, and those of its normalisation."""
    front = Normalized(nn.Identity(), shape).state_dict()
    return {**front, **{INSIDE + name: tensor for name, tensor in tensors.items()}}


def inside(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network behind `Normalized`, under their names without it; none if the network is not."""
    front = {name for name in own if not name.startswith(INSIDE)}
    return {name.removeprefix(INSIDE): own[name] for name in own.keys() - front} if front == {"mean", "std"} else {}


OTHER_NETWORK = (
    "name the backbone that it was made with, --backbone 'resnet18(width=64)', or its code, --model net.py:NAME"
)


def for_backbone(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], shape: ImageShape, options: ModelOptions
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors under the names of a backbone, and notes; where they are others, those that are nearest to it."""
    if whole := fitted(tensors, own):
        if options.mean:
            raise UsageError("this file holds the normalisation that it was trained with; leave out --mean and --std")
        return whole
    within = inside(own)
    if found := fitted(tensors, within):
        named, notes = found
        return behind_statistics(named, shape), (*notes, normalisation_note(options))
    plain, bare = nearest(tensors, own), nearest(tensors, within)
    if len(plain.keys() & own.keys()) >= len(bare.keys() & within.keys()):
        return plain, ()
    return behind_statistics(bare, shape), ()


def is_strange(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether fewer than half of the names are a backbone's, with prefixes or without."""
    known = max(len(nearest(tensors, names).keys() & names.keys()) for names in (own, inside(own)))
    return 2 * known < len(tensors)
