"""What all backbones share: activations, normalisation of the images, construction and initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from robflat_bench.backbones import ACTIVATION_NAMES
from robflat_bench.core import BackboneInfo, ImageShape, UsageError
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.folding import CONVOLUTIONS
from robflat_bench.registry.components import Component

ACTIVATIONS: dict[str, type[nn.Module]] = dict(zip(ACTIVATION_NAMES, (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish), strict=True))
"""Name -> class. Called without arguments, so none works in place: attacks and weight measures reuse their inputs."""


def activation_class(name: str) -> type[nn.Module]:
    """The module class of an activation; UsageError for a name that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UsageError(f"no activation named {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Normalized(nn.Module):
    """A network behind the normalisation of its images, so that attacks work on pixels.

    Parameters
    ----------
    network
        Normalised images float [B,C,H,W] -> logits [B,K].
    shape
        Gives mean and standard deviation of each channel. They are saved with the weights, as buffers [1,C,1,1], so a
        weights file needs no dataset beside it.

    Notes
    -----
    forward(x) = network((x - mean) / std) for images x in [0,1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, shape: ImageShape) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", shape.mean), ("std", shape.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B,K]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


# ---------------------------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def construction() -> Iterator[None]:
    """Restore torch's global random state after the block, in which modules are built; a run seeds it before."""
    with torch.random.fork_rng(devices=[]):
        yield


def built(component: Component[BackboneInfo], shape: ImageShape, activation: str, seed: int) -> nn.Module:
    """A backbone's network with the initial weights of a seed, or with its own if it is pretrained."""
    with global_state(generator(seed, "construction")):
        model: nn.Module = component.build(shape, activation)
    check_tensors(model)
    if not component.info.pretrained:
        initialize(model, generator(seed, "init"))
    return model


def check_tensors(model: nn.Module) -> None:
    """UsageError where a tensor has no shape, no values or is complex, or the state holds more than tensors."""
    if extra := next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None):
        raise UsageError(
            f"'{extra}' is no tensor, so it cannot be saved with the weights; keep it out of the state dict"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"'{name}' has no shape before the first pass; call the network once where it is built")
        if tensor.is_meta:
            raise UsageError(f"'{name}' is on the device meta and has no values; load its weights with assign=True")
        if tensor.is_complex():
            raise UsageError(
                f"'{name}' is complex, and networks are evaluated in real numbers; keep torch.view_as_real(...) of it, "
                "and compute torch.view_as_complex(...) in forward"
            )


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution and linear weights, and reset biases, norm weights and running statistics.

    Parameters
    ----------
    model
        Its other parameters, e.g. a transformer's position embedding, keep their constructed values, which `built`
        draws from the seed too. So do weights that a layer computes, unless by weight or spectral normalisation.
    generator
        A CPU generator. Layout, dtype and device of the model change no draw.

    Notes
    -----
    Weights ~ N(0, 2 / fan): fan_out for convolutions, fan_in for linear layers, with the gain of ReLU for every
    activation (He et al., arXiv 1502.01852). Biases are 0, norm weights 1. A weight-normalised layer starts with the
    weight of a plain one, a spectrally normalised layer with that weight over its largest singular value.
    """
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            # Per group: kaiming_normal_ itself counts the outputs of all groups and starves depthwise layers.
            _draw(module, module.out_channels // module.groups * math.prod(module.kernel_size), generator)
        elif isinstance(module, nn.Linear):
            _draw(module, module.in_features, generator)
        elif isinstance(module, NORMS):
            if module.weight is not None:
                module.weight.fill_(1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        else:
            continue
        if (bias := getattr(module, "bias", None)) is not None:
            bias.zero_()


NORMALISATIONS = (parametrizations._WeightNorm, parametrizations._SpectralNorm)
"""Parametrizations that a weight can be assigned through."""
POWER_ITERATIONS = 15
"""As many as torch makes when it registers spectral normalisation."""


def _draw(layer: Any, fan: int, generator: torch.Generator) -> None:
    """The layer's weight <- N(0, 2 / fan), drawn contiguous in float32 on the CPU."""
    drawn = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float32) * math.sqrt(2 / fan)
    if isinstance(layer.weight, nn.Parameter):
        layer.weight.copy_(drawn)
    elif parametrize.is_parametrized(layer, "weight"):
        if all(isinstance(part, NORMALISATIONS) for part in layer.parametrizations.weight):
            layer.weight = drawn.to(layer.weight)
            _settle(layer, lambda: layer.weight)
    else:
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and hook.name == "weight":
                layer.weight_v.copy_(drawn)
                layer.weight_g.copy_(torch.norm_except_dim(layer.weight_v, 2, hook.dim))
            elif isinstance(hook, SpectralNorm) and hook.name == "weight":
                layer.weight_orig.copy_(drawn)
                _settle(layer, partial(hook, layer, ()))


def _settle(layer: nn.Module, compute: Callable[[], object]) -> None:
    """Let spectral normalisation find the singular vectors of a new weight: it iterates each time in train mode."""
    mode = layer.training
    layer.train()
    for _ in range(POWER_ITERATIONS):
        compute()
    layer.train(mode)
