r"""Fold batch normalisation into the convolution in front of it, as both act in evaluation:

    w <- s w,   b <- s b + shift,   s = gamma / sqrt(var + eps),   shift = beta - s mean

`pairs` finds what may be folded in the graph of one forward pass: the normalisation must be the only reader of the
convolution's output. So a convolution whose output also enters a shortcut is not folded, and neither is a module that
is used twice or has hooks. If the logits change, because something reads past the graph, nothing is folded.

Layers of torch count by their exact class, because a subclass may do more. Two of timm are known by name: a convolution
that pads in its forward, and normalisation with an activation behind it, which stays.

`folded` gives the model itself folded weights inside a block, where a network of known layers also runs as a list of
kernels (`numerics.program`). Its own parameters are not touched, so a flatness measure that moves them moves unfolded
weights.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from robflat_bench.numerics.gradients import nodes
from robflat_bench.numerics.kernels import scale_and_shift
from robflat_bench.numerics.passes import uncounted
from robflat_bench.numerics.program import Program, program
from robflat_bench.numerics.steps import Step
from robflat_bench.numerics.structure import is_hooked, looking, structure, watched

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PADDED_CONVOLUTION = "timm.layers.conv2d_same.Conv2dSame"
ACTIVATED_NORM = "timm.layers.norm_act.BatchNormAct2d"

Pair = tuple[_ConvNd, _BatchNorm]


@dataclass
class Known:
    """Findings about a model, which hold while its structure is the same.

    Parameters
    ----------
    structure : list
        Of the model (`numerics.structure`).
    pairs : list of (convolution, normalisation)
        Layers to fold.
    steps : list of Step, or None
        Its program; None until it is needed, empty if it has none.
    """

    structure: list[Any]
    pairs: list[Pair]
    steps: list[Step] | None = None


_KNOWN: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()
"""Models that were folded before."""


# ---------------------------------------------------------------------------------------------------------
# Folding
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def folded(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Fold a model inside the block: equal logits, without the pass through each folded normalisation.

    Parameters
    ----------
    model
        A network in eval mode. Inside the block no gradient reaches a folded weight. Afterwards every parameter is the
        object it was.
    x
        Images of the shape that the model takes; the first is used to find the pairs.
    """
    here, known = structure(model, x), _KNOWN.get(model)
    if known is None or known.structure != here:
        with looking(model, x):
            known = _KNOWN[model] = Known(here, pairs(model, x))
    with _replaced(known.pairs), _running(model, x, known):
        yield


@contextmanager
def _running(model: nn.Module, x: Tensor, known: Known) -> Iterator[None]:
    """Inside, the model's forward is its program, if it has one that passes over no hooks."""
    eager = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or "forward" in model.__dict__
    if eager or is_hooked(model):
        yield
        return
    if known.steps is None:
        known.steps = program(model, x)
    if not known.steps:
        yield
        return
    model.__dict__["forward"] = Program(model, known.steps, x.shape[1:])
    try:
        yield
    finally:
        del model.__dict__["forward"]


@contextmanager
def _replaced(found: list[Pair]) -> Iterator[None]:
    """Inside, each convolution has folded weights and its normalisation is the identity.

    Pairs that a block around this one has folded stay as they are.
    """
    found = [(layer, norm) for layer, norm in found if "forward" not in norm.__dict__]
    own = [dict(layer._parameters) for layer, _ in found]
    try:
        for layer, norm in found:
            weight, bias = _folded(layer, norm)
            parameters: dict[str, Any] = layer._parameters
            parameters.update(weight=weight, bias=bias)
            norm.__dict__["forward"] = MethodType(_act, norm) if _path(norm) == ACTIVATED_NORM else _identity
        yield
    finally:
        for (layer, norm), parameters in zip(found, own, strict=True):
            layer._parameters.update(parameters)
            norm.__dict__.pop("forward", None)


def _identity(x: Tensor) -> Tensor:
    return x


def _path(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _act(norm: Any, x: Tensor) -> Tensor:
    """What a normalisation with activation does after it has normalised."""
    made: Tensor = norm.act(norm.drop(x))
    return made


@torch.no_grad()
def _folded(layer: _ConvNd, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that also normalises, in the autocast precision if that is on."""
    # torch.nn.utils.fusion.fuse_conv_bn_weights rounds otherwise: with torch 2.15 the last bit differs in a quarter of
    # ResNet-18's float32 weights, and in a fifth of its float64 biases.
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift = scale_and_shift(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    weight = layer.weight * scale.to(layer.weight).view(-1, *[1] * (layer.weight.ndim - 1))
    bias = (shift if layer.bias is None else shift + scale * layer.bias.double()).to(layer.weight)
    device = weight.device.type
    if torch.is_autocast_enabled(device):  # cast here once, rather than in each pass
        return weight.to(torch.get_autocast_dtype(device)), bias.to(torch.get_autocast_dtype(device))
    return weight, bias


# ---------------------------------------------------------------------------------------------------------
# What may be folded
# ---------------------------------------------------------------------------------------------------------


def pairs(network: nn.Module, x: Tensor) -> list[Pair]:
    """Find the convolutions that can be folded.

    Parameters
    ----------
    network
        Any network, in train or eval mode.
    x
        Images of the shape that the network takes; the first is used.

    Returns
    -------
    list
        (convolution, normalisation), in the order of the network's modules.
    """
    if not any(isinstance(module, _BatchNorm) and _foldable(module) for module in network.modules()):
        return []
    nodes, readers = _graph(network, x)
    layers = {node: layer for layer, node in nodes.items() if isinstance(layer, _ConvNd)}
    found: list[Pair] = []
    for norm in network.modules():
        if norm in nodes and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            source = nodes[norm]
            if source in layers and readers[source] == 1:
                found.append((layers[source], norm))
    return found if _same_logits(network, found, x) else []


def _graph(network: nn.Module, x: Tensor) -> tuple[dict[nn.Module, Any], Counter[Any]]:
    """Two tables of the autograd graph of one forward pass.

    Module -> the node of its output (convolutions) or of its input (normalisations), for those that are used once and
    have no hooks; and node -> the number of edges that lead to it.
    """
    ends: defaultdict[nn.Module, list[Any]] = defaultdict(list)

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        ends[module].append((output if isinstance(module, _ConvNd) else inputs[0]).grad_fn)

    with ExitStack() as hooks, torch.enable_grad(), uncounted():
        for module in network.modules():
            if _foldable(module) and not _watched(module):
                hooks.enter_context(module.register_forward_hook(note))
        logits = network.forward(x[:1].detach().requires_grad_())
    readers = Counter(source for node in nodes(logits) for source, _ in node.next_functions)
    return {module: made[0] for module, made in ends.items() if len(made) == 1}, readers


@torch.no_grad()
def _same_logits(network: nn.Module, found: list[Pair], x: Tensor) -> bool:
    """Whether folding keeps the logits: they alone show that something reads a convolution's output past the graph (a
    detached gate)."""
    images = x[:1].detach()
    with uncounted(), torch.autocast(images.device.type, enabled=False):
        plain = network.forward(images)
        with _replaced(found):
            other = network.forward(images)
    scale = float(plain.abs().max())
    return math.isfinite(scale) and torch.allclose(other, plain, rtol=1e-3, atol=1e-3 * scale)


def _foldable(module: nn.Module) -> bool:
    return type(module) in (*CONVOLUTIONS, *BATCH_NORMS) or _path(module) in (PADDED_CONVOLUTION, ACTIVATED_NORM)


def _watched(module: nn.Module) -> bool:
    """Whether a hook may read inputs or outputs, or makes the weight anew before each pass (old weight norms)."""
    return watched(module) or (isinstance(module, _ConvNd) and "weight" not in module._parameters)
