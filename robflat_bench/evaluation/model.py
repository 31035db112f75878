"""Models to evaluate: find one by name, load its weights, and bring it to the session's device and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.backbones.parts import Normalized, built, check_tensors
from robflat_bench.config.protocol import Protocol, load, recorded
from robflat_bench.core import ImageShape, UsageError
from robflat_bench.evaluation.copies import check_python, whole_copy
from robflat_bench.evaluation.fitting import (
    OTHER_NETWORK,
    check_fit,
    check_size,
    for_backbone,
    is_strange,
    normalisation_note,
    own_network,
    unwrapped,
    with_statistics,
)
from robflat_bench.evaluation.hub import HubWeights, fetched
from robflat_bench.evaluation.inspection import name_of
from robflat_bench.evaluation.layouts import recognise
from robflat_bench.evaluation.options import USUAL, ModelOptions, kind_of
from robflat_bench.evaluation.own_code import source_hash
from robflat_bench.evaluation.session import Session
from robflat_bench.evaluation.weight_files import read
from robflat_bench.numerics.logits import in_float32
from robflat_bench.numerics.passes import trial
from robflat_bench.numerics.weights import load_weights, read_weights
from robflat_bench.records.store import INITIAL
from robflat_bench.registry.components import resolve


@dataclass(frozen=True)
class FoundModel:
    """A model to evaluate, before it is loaded.

    Parameters
    ----------
    protocol : Protocol
        The protocol to evaluate it under: of a run, the run's own.
    name : str
        Its name in the record: of a run, the checkpoint's.
    backbone : str
        The component text of the network; "" for a live module.
    activation : str
        The activation function of the network.
    weights : Path, mapping of str to Tensor, or None
        The file of its weights, or the weights themselves, under the network's names; None for a network as
        initialised, and for a live module.
    module : nn.Module or None
        A live module, evaluated as given.
    home : Path or None
        The folder of its run, where evaluations are added; None for a model without a run.
    epoch : int or None
        The epoch, counted from 0, that its weights are of.
    initial : Path or None
        The file of the weights before the first step of training.
    classes : int or None
        Number of its logits; None: the number of classes of the data.
    source : str
        Hash of the user's file that made the module; "" if the code is unknown.
    notes : tuple of str
        What the reader should know: what was looked through, left out or assumed.
    origin : str
        Of a model of the hub, its name with commit and file.
    """

    protocol: Protocol
    name: str
    backbone: str = ""
    activation: str = ""
    weights: Path | Mapping[str, Tensor] | None = None
    module: nn.Module | None = None
    home: Path | None = None
    epoch: int | None = None
    initial: Path | None = None
    classes: int | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    origin: str = ""


def find_model(session: Session, model: str | nn.Module, options: ModelOptions = USUAL) -> FoundModel:
    """Find a model to evaluate.

    Parameters
    ----------
    session : Session
        Its store holds runs; its protocol is the one of models without a run.
    model : str or nn.Module
        A run's folder or key, a file of weights (`inspection.SUFFIXES`), one on the hub (hf://OWNER/NAME), a backbone
        with parameters such as "timm(name=resnet18)", or a live module: images in [0,1], [N,C,H,W], in; logits [N,K]
        out.
    options : ModelOptions
        How it is read.

    Raises
    ------
    UsageError
        If it is no network, there is no such run, checkpoint or file, the weights are of another network, or the run
        was made under a protocol that is not installed.
    CheckFailed
        If the file is damaged.
    """
    protocol = session.protocol
    if isinstance(model, nn.Module):
        return _of_module(session, model, options)
    if not isinstance(model, str):
        raise UsageError(f"the model is a {type(model).__name__}; give an nn.Module with its weights, or a checkpoint")
    kind = kind_of(model)
    if kind == "file":
        return _of_file(session, Path(model), options)
    if kind == "hub":
        return _of_hub(session, fetched(model), options)
    if kind == "backbone":
        return FoundModel(protocol, resolve(session.registry, "backbone", model).brief, model, "relu")
    return _of_run(session, model, options.checkpoint)


def _of_module(session: Session, module: nn.Module, options: ModelOptions, name: str = "") -> FoundModel:
    """A live module, behind the normalisation that the options ask for."""
    plain, notes = unwrapped(module)
    shape = with_statistics(image_shape(session, options.classes), options)
    front = Normalized(plain, shape) if options.mean else plain
    notes = (*notes, normalisation_note(options))
    name = name or type(plain).__name__
    return FoundModel(session.protocol, name, module=front, classes=options.classes, notes=notes)


def _of_hub(session: Session, given: HubWeights, options: ModelOptions) -> FoundModel:
    """A file of the hub: of the network that the options name, that its `config.json` names, or that its names show."""
    named = None if options.network or options.backbone else given.network(session.registry)
    if named:
        options = replace(options, backbone=named.backbone)
        component = resolve(session.registry, "backbone", named.backbone)
        check_size(component, image_shape(session, options.classes), named.activation, given.path)
    found = _of_file(session, given.path, options, named.activation if named else "")
    return replace(found, origin=str(given.name))


def _of_file(session: Session, file: Path, options: ModelOptions, activation: str = "") -> FoundModel:
    """A file of weights: of the network that the options name, or of the one that its names show.

    `activation`: of the network that the options name, "" for the protocol's.
    """
    contents, protocol, shape = read(file), session.protocol, image_shape(session, options.classes)
    if options.network:
        network, notes = own_network(contents, file, options, session.dtype)
        found = _of_module(session, network, options, name_of(file))
        source = source_hash(options.network)
        return replace(found, source=source, notes=(*contents.notes, *notes, *found.notes))

    backbone, activation = options.backbone or protocol.fixed.backbone, activation or protocol.recipe.activation

    def fitting(tensors: Mapping[str, Tensor], backbone: str, activation: str, notes: tuple[str, ...]) -> FoundModel:
        own = built(resolve(session.registry, "backbone", backbone), shape, activation, 0).state_dict()
        if not options.backbone and is_strange(tensors, own):
            raise UsageError(
                f"{file.name}: the names of its tensors ({next(iter(tensors)):.100}, ...) are of no network that is "
                "known here; add its code, --model net.py:CLASS, or its backbone, e.g. --backbone 'timm(name=resnet18)'"
            )
        named, said = for_backbone(tensors, own, with_statistics(shape, options), options)
        check_fit(named, own, file.name, f"the backbone {backbone}", OTHER_NETWORK)
        notes = (*contents.notes, *notes, *said)
        return FoundModel(protocol, name_of(file), backbone, activation, named, classes=options.classes, notes=notes)

    try:
        return fitting(contents.tensors, backbone, activation, ())
    except UsageError:
        if (seen := recognise(contents.tensors, contents.architecture)) is None:
            raise
    if not options.backbone:
        backbone, activation = seen.backbone, "relu"
    return fitting(seen.tensors, backbone, activation, seen.notes)


def _of_run(session: Session, name: str, checkpoint: str) -> FoundModel:
    folder, protocol = session.store.find(name), session.protocol
    record = folder.record()
    board = record.protocol
    if board.hash != protocol.hash and protocol.name == f"{board.name}-{protocol.hash[:8]}":
        raise UsageError(
            f"{name} was made under {board.name}, and a run is evaluated under its own protocol; leave out --set "
            f"fixed.*, or evaluate its weights as a file: {folder.weights(checkpoint)}"
        )
    if board.hash != protocol.hash and (known := recorded(session.registry, board.name, board.version)):
        protocol = load(session.registry, known)
    if board.hash != protocol.hash:
        raise UsageError(
            f"{name} was made under {board.name} {board.version} (hash {board.hash[:8]}), but {protocol.name} "
            f"{protocol.version} here has the hash {protocol.hash[:8]}; pass the original file: --protocol FILE.toml"
        )
    epochs: dict[str, int | None] = {result: record.results[result].epoch for result in record.results}
    epochs |= {INITIAL: None, **folder.kept()}
    if checkpoint not in epochs:
        raise UsageError(
            f"{name} has no checkpoint '{checkpoint}', only {', '.join(epochs)}; train it again with "
            "`robflat-bench run ... --keep-every N --fresh` to keep more"
        )
    return FoundModel(
        protocol,
        checkpoint,
        protocol.fixed.backbone,
        record.spec.recipe.activation,
        folder.weights(checkpoint),
        home=folder.path,
        epoch=epochs[checkpoint],
        initial=folder.weights(INITIAL),
    )


def load_model(session: Session, found: FoundModel) -> nn.Module:
    """The network with its weights, on the session's device; of a live module, a copy in eval mode."""
    if found.module is not None:
        model = _placed(session, whole_copy(session, found.module, found.name))
        model.train()  # what it derived from its weights on entering eval mode is derived anew
        model.eval()
        return model
    model = build_model(session, 0, found.backbone, found.activation, found.classes)
    if found.weights is not None:
        given = found.weights
        load_weights(model, read_weights(given) if isinstance(given, Path) else given, found.name)
    return model


def build_model(
    session: Session, seed: int, backbone: str = "", activation: str = "", classes: int | None = None
) -> nn.Module:
    """Build a network, initialised from the seed unless it comes with its own weights.

    Parameters
    ----------
    session : Session
        Image shape, device, precision and compilation.
    seed : int
        Key of the initial weights.
    backbone, activation : str
        Component text and activation function ("": the protocol's).
    classes : int or None
        Number of logits (None: the number of classes of the data).
    """
    protocol = session.protocol
    component = resolve(session.registry, "backbone", backbone or protocol.fixed.backbone)
    return _placed(
        session, built(component, image_shape(session, classes), activation or protocol.recipe.activation, seed)
    )


def image_shape(session: Session, classes: int | None) -> ImageShape:
    """The images of the session's data, for a network with this number of logits (None: one for each class)."""
    shape = session.splits.shape
    if classes is not None and classes < shape.classes:
        raise UsageError(
            f"--classes {classes}: {session.splits.ref.name} has {shape.classes} classes, and {classes} logits cannot "
            f"predict them all; choose a protocol whose data have {classes} classes: --protocol FILE.toml"
        )
    return replace(shape, classes=classes or shape.classes)


def _placed(session: Session, model: nn.Module) -> nn.Module:
    """The network on the session's device, in its precision and the faster memory format, compiled if it compiles.

    Its logits are in float32 at least, under autocast too.
    """
    check_python(model)
    check_tensors(model)
    model.register_forward_hook(in_float32)
    model = model.to(session.device, session.dtype)
    if layout(model) is torch.channels_last:
        model = model.to(memory_format=torch.channels_last)
        if not _runs(session, model):  # such as `x.view(len(x), -1)` behind a convolution
            model = model.to(memory_format=torch.contiguous_format)
    if session.compile:
        session.compile.add(model)
    return model


def _runs(session: Session, model: nn.Module) -> bool:
    """Whether a pass of two black images ends without an error."""
    x = torch.zeros_like(session.examples("test", 2).x)
    try:
        with attacked(model), trial(x), torch.no_grad():
            model(x)
    except Exception:  # of a network that fails on every layout, `check_network` says what is wrong
        return False
    return True


def layout(model: nn.Module) -> torch.memory_format:
    """The memory format of a network: channels last, which is faster, where it is safe.

    oneDNN (up to torch 2.15 at least) corrupts the heap in the weight gradient of a strided 1x1 convolution in channels
    last whose number of input channels is no multiple of 16. Networks with such a convolution stay contiguous.
    """
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) != m.stride]
    return torch.channels_last if all(m.in_channels % 16 == 0 for m in strided) else torch.contiguous_format


def initial_weights(path: Path | None) -> dict[str, Tensor] | None:
    """The weights before the first step of training; None if they were not kept."""
    return read_weights(path) if path is not None and path.is_file() else None
