r"""Batch normalisation folded into the convolution in front of it, as both act in evaluation:

    w <- s w,   b <- s (b - mean) + beta,   s = gamma / sqrt(var + eps)

A pair is found, not guessed from names: in the graph of one forward pass, the normalisation is the only reader of
the convolution's output. One whose output also enters a shortcut stays, and so does what is used twice.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from robflat_bench.backbones.parts import CONVOLUTIONS

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode with the same logits, in which folded norms are the identity; x: images of its shape."""
    network = copy.deepcopy(model).eval().requires_grad_(True)
    for layer, norm, name in _pairs(network, x):
        scale, shift = scale_and_shift(norm)
        with torch.no_grad():
            weight = layer.weight.double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            bias = shift if layer.bias is None else shift + scale * layer.bias.double()
            layer.bias = nn.Parameter(bias.to(layer.weight))
            layer.weight.copy_(weight)
        network.set_submodule(name, nn.Identity())
    return network


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What batch normalisation with running statistics does in evaluation, y = scale x + shift, float64 [C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _pairs(network: nn.Module, x: Tensor) -> list[tuple[_ConvNd, _BatchNorm, str]]:
    """Each convolution with its norm, and the norm's name."""
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
    with torch.enable_grad():
        logits = network(x[:1].detach().requires_grad_())
    for handle in handles:
        handle.remove()
    readers = _readers(logits.grad_fn)
    by_node = {node: layer for layer, node in made.items() if isinstance(layer, _ConvNd) and calls[layer] == 1}
    found = []
    for name, norm in network.named_modules():
        if isinstance(norm, _BatchNorm) and calls[norm] == 1 and norm.running_mean is not None:
            source = made[norm].next_functions[0][0]
            if source in by_node and readers[source] == 1:
                found.append((by_node[source], norm, name))
    return found


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
