r"""Copies of a model with rescaled weights, to test a measure's invariances.

layers   w <- c w of every convolution whose batch normalisation undoes it; mean <- c mean, var <- c^2 var,
         eps <- c^2 eps: the same function, exactly
alone    the same, and no other tensor moves: the case for which a measure declares its power of c
logits   W <- c W, b <- c b of the last linear layer: another function with the same decisions
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robflat_bench.core import Examples
from robflat_bench.measures.curvature.relative_flatness import head_pass
from robflat_bench.numerics.folding import pairs
from robflat_bench.numerics.gains import NORMALISATION


@torch.no_grad()
def rescaled(model: nn.Module, x: Tensor, c: float) -> nn.Module:
    """A copy with c times the weights of every convolution that a normalisation follows; the same function."""
    made = copy.deepcopy(model)
    for layer, norm in pairs(made, x):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for tensor in (layer.weight, layer.bias, norm.running_mean):
            if tensor is not None:
                tensor.mul_(c)
        norm.running_var.mul_(c**2)
        norm.eps *= c**2
    return made


def alone(model: nn.Module, x: Tensor) -> nn.Module:
    """The model itself, with all parameters turned into buffers but those of such convolutions and normalisations."""
    own = {layer for layer, _ in pairs(model, x)}
    for module in model.modules():
        if module not in own and not isinstance(module, NORMALISATION):
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    return model


@torch.no_grad()
def louder(model: nn.Module, examples: Examples, c: float) -> nn.Module:
    """A copy whose logits are c times as large."""
    made = copy.deepcopy(model)
    head, _ = head_pass(made, examples[:1])
    head.weight.mul_(c)
    if head.bias is not None:
        head.bias.mul_(c)
    return made
