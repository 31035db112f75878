r"""Fold batch normalisation into the convolution in front of it, as both act in evaluation:

    w <- s w,   b <- s b + shift,   s = gamma / sqrt(var + eps),   shift = beta - s mean

`pairs` finds what may be folded in the graph of one forward pass: the normalisation must be the only reader of the
convolution's output. So a convolution whose output also enters a shortcut is not folded, and neither is a module that
is used twice or has hooks. If the logits change, because something reads past the graph, nothing is folded.

`folded` gives the model itself folded weights inside a block. Its own parameters are not touched, so a flatness measure
that moves them moves unfolded weights. `fold` makes a folded copy.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from robflat_bench.numerics.passes import uncounted

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Pair = tuple[_ConvNd, _BatchNorm]

_KNOWN: WeakKeyDictionary[nn.Module, list[Pair]] = WeakKeyDictionary()
"""The pairs of models that were folded before: a model's structure does not change."""


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
    if model not in _KNOWN:
        _KNOWN[model] = [pair for pair, _ in pairs(model, x)]
    with _replaced(_KNOWN[model]):
        yield


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode with equal logits, whose folded normalisations are identities; x as for `folded`."""
    network = copy.deepcopy(model).eval().requires_grad_(True)
    for (layer, norm), name in pairs(network, x):
        weight, bias = _folded(layer, norm)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        network.set_submodule(name, nn.Identity())
    return network


@contextmanager
def _replaced(found: list[Pair]) -> Iterator[None]:
    """Inside, each convolution has folded weights and its normalisation is the identity."""
    own = [dict(layer._parameters) for layer, _ in found]
    try:
        for layer, norm in found:
            weight, bias = _folded(layer, norm)
            parameters: dict[str, Any] = layer._parameters
            parameters.update(weight=weight, bias=bias)
            norm.__dict__["forward"] = _identity
        yield
    finally:
        for (layer, norm), parameters in zip(found, own, strict=True):
            layer._parameters.update(parameters)
            norm.__dict__.pop("forward", None)


def _identity(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def _folded(layer: _ConvNd, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that also normalises, in the autocast precision if that is on."""
    # torch.nn.utils.fusion.fuse_conv_bn_weights rounds otherwise: with torch 2.15 the last bit differs in a quarter of
    # ResNet-18's float32 weights, and in a fifth of its float64 biases.
    scale, shift = scale_and_shift(norm)
    weight = layer.weight * scale.to(layer.weight).view(-1, *[1] * (layer.weight.ndim - 1))
    bias = (shift if layer.bias is None else shift + scale * layer.bias.double()).to(layer.weight)
    device = weight.device.type
    if torch.is_autocast_enabled(device):  # cast here once, rather than in each pass
        return weight.to(torch.get_autocast_dtype(device)), bias.to(torch.get_autocast_dtype(device))
    return weight, bias


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """s and shift, float64 [C], of batch normalisation with running statistics: y = s x + shift."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


# ---------------------------------------------------------------------------------------------------------
# What may be folded
# ---------------------------------------------------------------------------------------------------------


def pairs(network: nn.Module, x: Tensor) -> list[tuple[Pair, str]]:
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
        ((convolution, normalisation), name of the normalisation), in the order of the network's modules.
    """
    if not any(type(module) in BATCH_NORMS for module in network.modules()):
        return []
    nodes, readers = _graph(network, x)
    layers = {node: layer for layer, node in nodes.items() if isinstance(layer, _ConvNd)}
    found: list[tuple[Pair, str]] = []
    for name, norm in network.named_modules():
        if norm in nodes and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            source = nodes[norm].next_functions[0][0]
            if source in layers and readers[source] == 1:
                found.append(((layers[source], norm), name))
    return found if _same_logits(network, [pair for pair, _ in found], x) else []


def _graph(network: nn.Module, x: Tensor) -> tuple[dict[nn.Module, Any], Counter[Any]]:
    """Two tables of the autograd graph of one forward pass.

    Module -> the node of its output, for convolutions and normalisations that are used once and have no hooks; and
    node -> the number of edges that lead to it.
    """
    outputs: defaultdict[nn.Module, list[Any]] = defaultdict(list)
    # Exact types: a subclass may do more in its forward than convolve or normalise.
    kinds = (*CONVOLUTIONS, *BATCH_NORMS)
    modules = [module for module in network.modules() if type(module) in kinds and not _watched(module)]
    with ExitStack() as hooks, torch.enable_grad(), uncounted():
        for module in modules:
            hook = module.register_forward_hook(lambda module, _, output: outputs[module].append(output.grad_fn))
            hooks.enter_context(hook)
        logits = network.forward(x[:1].detach().requires_grad_())
    readers: Counter[Any] = Counter()
    seen, waiting = {logits.grad_fn}, [logits.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return {module: made[0] for module, made in outputs.items() if len(made) == 1}, readers


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


def _watched(module: nn.Module) -> bool:
    """Whether a hook may read inputs or outputs, or makes the weight anew before each pass (old weight norms)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or (isinstance(module, _ConvNd) and "weight" not in module._parameters)
