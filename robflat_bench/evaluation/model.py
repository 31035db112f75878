"""Models to evaluate: find one by name, load its weights, and bring it to the session's device and precision."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.backbones.parts import built, check_tensors
from robflat_bench.config.protocol import Protocol, load
from robflat_bench.core import UsageError
from robflat_bench.evaluation.options import USUAL, ModelOptions
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.logits import in_float32
from robflat_bench.numerics.passes import uncounted
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
    weights : Path or None
        The file of its weights; None for a network as initialised, and for a live module.
    module : nn.Module or None
        A live module, evaluated as given.
    home : Path or None
        The folder of its run, where evaluations are added; None for a model without a run.
    epoch : int or None
        The epoch, counted from 0, that its weights are of.
    initial : Path or None
        The file of the weights before the first step of training.
    notes : tuple of str
        What the reader should know: what was looked through, left out or assumed.
    """

    protocol: Protocol
    name: str
    backbone: str = ""
    activation: str = ""
    weights: Path | None = None
    module: nn.Module | None = None
    home: Path | None = None
    epoch: int | None = None
    initial: Path | None = None
    notes: tuple[str, ...] = ()


def find_model(session: Session, model: str | nn.Module, options: ModelOptions = USUAL) -> FoundModel:
    """Find a model to evaluate.

    Parameters
    ----------
    session : Session
        Its store holds runs; its protocol is the one of models without a run.
    model : str or nn.Module
        A run's folder or key, a file of weights (`*.safetensors`), a backbone with parameters such as
        "timm(name=resnet18)", or a live module: images in [0,1], [N,C,H,W], in; logits [N,K] out.
    options : ModelOptions
        How it is read.

    Raises
    ------
    UsageError
        If there is no such run or checkpoint, or the run was made under a protocol that is not installed.
    """
    protocol = session.protocol
    if isinstance(model, nn.Module):
        return FoundModel(protocol, type(model).__name__, module=model)
    if model.endswith(".safetensors"):
        weights = Path(model)
        network = options.backbone or protocol.fixed.backbone
        return FoundModel(protocol, weights.stem, network, protocol.recipe.activation, weights)
    if "(" in model:
        return FoundModel(protocol, resolve(session.registry, "backbone", model).brief, model, "relu")
    return _of_run(session, model, options.checkpoint)


def _of_run(session: Session, name: str, checkpoint: str) -> FoundModel:
    folder, protocol = session.store.find(name), session.protocol
    record = folder.record()
    board = record.protocol
    if board.hash != protocol.hash and board.name in session.registry.protocols:
        protocol = load(session.registry, board.name)
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
        model = _placed(session, _copied(found.module, found.name))
        return model.train().eval()  # what it derived from its weights on entering eval mode is derived anew
    model = build_model(session, 0, found.backbone, found.activation)
    if found.weights is not None:
        load_weights(model, read_weights(found.weights), found.weights.name)
    return model


def _copied(module: nn.Module, name: str) -> nn.Module:
    """A copy; UsageError where a layer holds a computed weight, as torch's old weight normalisation does."""
    try:
        return copy.deepcopy(module)
    except RuntimeError as error:
        raise UsageError(
            f"{name} cannot be copied ({str(error).splitlines()[0]}); call it once under torch.no_grad() before"
        ) from None


def build_model(session: Session, seed: int, backbone: str = "", activation: str = "") -> nn.Module:
    """Build a network, initialised from the seed unless it comes with its own weights.

    Parameters
    ----------
    session : Session
        Image shape, device, precision and compilation.
    seed : int
        Key of the initial weights.
    backbone, activation : str
        Component text and activation function ("": the protocol's).
    """
    protocol = session.protocol
    component = resolve(session.registry, "backbone", backbone or protocol.fixed.backbone)
    return _placed(session, built(component, session.splits.shape, activation or protocol.recipe.activation, seed))


def _placed(session: Session, model: nn.Module) -> nn.Module:
    """The network on the session's device, in its precision and the faster memory format, compiled if it compiles.

    Its logits are in float32 at least, under autocast too.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} holds a TorchScript module, whose passes cannot be counted; pass the Python "
            "module that it was made from"
        )
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
    shape = session.splits.shape
    x = torch.zeros(2, shape.channels, shape.size, shape.size, device=session.device, dtype=session.dtype)
    try:
        with attacked(model), uncounted(), torch.no_grad(), torch.random.fork_rng([x.device] if x.is_cuda else []):
            model(x)
    except RuntimeError:
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
