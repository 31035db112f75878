r"""Batch normalisation folded into the convolution in front of it, as both act in evaluation:

    w <- s w,   b <- s (b - mean) + beta,   s = gamma / sqrt(var + eps)

A pair is found, not guessed from names: in the graph of one forward pass, the normalisation is the only reader of
the convolution's output. One whose output also enters a shortcut stays, and so does what is used twice or has hooks;
and a network whose logits would change, since something reads past the graph, is not folded at all.

`folded` lends the model itself such weights while an attack runs: its own parameters are not touched, so whatever
moves them (a draw of a flatness measure) moves them unfolded. `fold` makes a copy.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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

_KNOWN: WeakKeyDictionary[nn.Module, list[tuple[Pair, str]]] = WeakKeyDictionary()
"""The pairs of models that were folded before: their structure does not change."""


@contextmanager
def folded(model: nn.Module, x: Tensor) -> Iterator[None]:
    """The model in eval mode, with the same logits and a pass less for each norm; x: images of its shape.

    Within, no gradient reaches a folded weight. Afterwards every parameter is the object it was."""
    if model not in _KNOWN:
        _KNOWN[model] = pairs(model, x)
    with _lent([pair for pair, _ in _KNOWN[model]]):
        yield


@contextmanager
def _lent(known: list[Pair]) -> Iterator[None]:
    """Each convolution does what its norm does, and the norm does nothing."""
    own = [dict(layer._parameters) for layer, _ in known]
    try:
        for layer, norm in known:
            weight, bias = _folded(layer, norm)
            parameters: dict[str, Any] = layer._parameters
            parameters.update(weight=weight, bias=bias)
            norm.__dict__["forward"] = _identity
        yield
    finally:
        for (layer, norm), parameters in zip(known, own, strict=True):
            layer._parameters.update(parameters)
            norm.__dict__.pop("forward", None)


def _identity(x: Tensor) -> Tensor:
    return x


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode with the same logits, in which folded norms are the identity; x: images of its shape."""
    network = copy.deepcopy(model).eval().requires_grad_(True)
    for (layer, norm), name in pairs(network, x):
        weight, bias = _folded(layer, norm)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        network.set_submodule(name, nn.Identity())
    return network


@torch.no_grad()
def _folded(layer: _ConvNd, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does both."""
    scale, shift = scale_and_shift(norm)
    weight = layer.weight * scale.to(layer.weight).view(-1, *[1] * (layer.weight.ndim - 1))
    bias = (shift if layer.bias is None else shift + scale * layer.bias.double()).to(layer.weight)
    device = weight.device.type
    if torch.is_autocast_enabled(device):  # once, rather than at each pass
        return weight.to(torch.get_autocast_dtype(device)), bias.to(torch.get_autocast_dtype(device))
    return weight, bias


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What batch normalisation with running statistics does in evaluation, y = scale x + shift, float64 [C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def pairs(network: nn.Module, x: Tensor) -> list[tuple[Pair, str]]:
    """Each convolution with the norm that folds into it, and the norm's name; x: images of its shape."""
    if not any(type(module) in BATCH_NORMS for module in network.modules()):
        return []
    made: dict[nn.Module, Any] = {}
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] += 1
        made[module] = output.grad_fn

    # Exact types: a subclass may do more in its forward than convolve or normalise.
    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if type(module) in (*CONVOLUTIONS, *BATCH_NORMS)
    ]
    with torch.enable_grad(), uncounted():
        logits = network.forward(x[:1].detach().requires_grad_())
    for handle in handles:
        handle.remove()
    readers = _readers(logits.grad_fn)
    by_node = {node: layer for layer, node in made.items() if isinstance(layer, _ConvNd) and calls[layer] == 1}
    found = []
    for name, norm in network.named_modules():
        if isinstance(norm, _BatchNorm) and calls[norm] == 1 and norm.running_mean is not None and not _watched(norm):
            source = made[norm].next_functions[0][0]
            if source in by_node and readers[source] == 1 and not _watched(by_node[source]):
                found.append(((by_node[source], norm), name))
    return found if _same_logits(network, found, x) else []


@torch.no_grad()
def _same_logits(network: nn.Module, found: list[tuple[Pair, str]], x: Tensor) -> bool:
    """What reads a convolution's output past the graph (a detached gate) is seen in the logits only."""
    images = x[:1].detach()
    with uncounted(), torch.autocast(images.device.type, enabled=False):
        plain = network.forward(images)
        with _lent([pair for pair, _ in found]):
            other = network.forward(images)
    return torch.allclose(other, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def _watched(module: nn.Module) -> bool:
    """Whether a hook may read what goes in or out, or makes the weight anew at each pass (old weight norms)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or (isinstance(module, _ConvNd) and "weight" not in module._parameters)


def _readers(root: Any) -> Counter[Any]:
    """How many edges of the autograd graph lead to each node."""
    readers: Counter[Any] = Counter()
    seen, waiting = {root}, [root]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                readers[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    return readers
