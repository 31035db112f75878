"""What all backbones share: activations, normalisation of the input, construction and initialisation.

Architectures are in `resnet` and `timm_zoo`; seeds belong to whoever calls `initialize`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robflat_bench.backbones import ACTIVATION_NAMES
from robflat_bench.core import ImageShape, UsageError
from robflat_bench.numerics.folding import CONVOLUTIONS

ACTIVATIONS: dict[str, type[nn.Module]] = dict(zip(ACTIVATION_NAMES, (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish), strict=True))
"""By name; called without arguments, so never in place: attacks and weight measures reuse their inputs."""


def activation_class(name: str) -> type[nn.Module]:
    """The module class of an activation; UsageError for a name not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise UsageError(f"no activation named {name!r}; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Normalized(nn.Module):
    """Images float [B,C,H,W] in [0,1] -> network((x - mean) / std), so attacks work on pixels.

    mean and std are buffers [1,C,1,1] saved with the weights: a weights file needs no dataset beside it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, shape: ImageShape) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", _per_channel(shape.mean))
        self.register_buffer("std", _per_channel(shape.std))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B,K]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


# ---------------------------------------------------------------------------------------------------------
# Random numbers
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def construction() -> Iterator[None]:
    """Modules built inside draw from a fixed state and leave the global one as it was, on every device."""
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would also reseed accelerators, where nothing is built.
        torch.default_generator.manual_seed(0)
        yield


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution and linear weights anew from a CPU generator and reset the rest of those modules.

    Weights ~ N(0, 2 / fan): fan_out for convolutions, fan_in for linear layers (He et al., arXiv 1502.01852,
    gain of ReLU whatever the activation). Biases 0, norm weights 1, running statistics as at the start.
    Parameters outside these modules, e.g. a transformer's position embedding, keep their constructed values,
    which are the same in every process.
    """
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            # Per group: kaiming_normal_ itself counts the outputs of all groups and starves depthwise layers.
            fan = module.out_channels // module.groups * math.prod(module.kernel_size)
            _draw(module.weight, math.sqrt(2 / fan), generator)
        elif isinstance(module, nn.Linear):
            _draw(module.weight, math.sqrt(2 / module.in_features), generator)
        elif isinstance(module, NORMS):
            if module.weight is not None:
                module.weight.fill_(1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        else:
            continue
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias.zero_()


def _draw(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """weight <- N(0, std^2), drawn contiguous in float32 on the CPU: layout and device change no value."""
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) * std)
