"""What all backbones share: activations, normalisation of the images, construction and initialisation."""

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
    """Build modules from a fixed random state inside the block, and restore the global state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # The CPU's generator alone: torch.manual_seed would also reseed accelerators, where nothing is built.
        torch.default_generator.manual_seed(0)
        yield


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@torch.no_grad()
def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution and linear weights, and reset biases, norm weights and running statistics.

    Parameters
    ----------
    model
        Its other parameters, e.g. a transformer's position embedding, keep their constructed values, which are the
        same in every process.
    generator
        A CPU generator. Layout, dtype and device of the model change no draw.

    Notes
    -----
    Weights ~ N(0, 2 / fan): fan_out for convolutions, fan_in for linear layers, with the gain of ReLU for every
    activation (He et al., arXiv 1502.01852). Biases are 0, norm weights 1.
    """
    for module in model.modules():
        if isinstance(module, CONVOLUTIONS):
            # Per group: kaiming_normal_ itself counts the outputs of all groups and starves depthwise layers.
            _draw(module.weight, module.out_channels // module.groups * math.prod(module.kernel_size), generator)
        elif isinstance(module, nn.Linear):
            _draw(module.weight, module.in_features, generator)
        elif isinstance(module, NORMS):
            if module.weight is not None:
                module.weight.fill_(1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
        else:
            continue
        if (bias := getattr(module, "bias", None)) is not None:
            bias.zero_()


def _draw(weight: Tensor, fan: int, generator: torch.Generator) -> None:
    """weight <- N(0, 2 / fan), drawn contiguous in float32 on the CPU."""
    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) * math.sqrt(2 / fan))
