"""Networks as people bring them, for 8x8 images of one channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Plain(nn.Module):
    """Two convolutions and a linear head; the rows of the table change one thing each."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.conv1(x)).relu()).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class WeightNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.conv1)
        parametrizations.weight_norm(self.head)


class OldWeightNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        torch.nn.utils.weight_norm(self.conv1)


class SpectralNorm(Plain):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.conv2)


class Pair(Plain):
    """Logits and features."""

    def forward(self, x: Tensor):
        found = self.features(x)
        return self.head(found), found


class PairInTraining(Plain):
    """Two outputs in train mode, one in eval mode, as Inception has."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 10)

    def forward(self, x: Tensor):
        found = self.features(x)
        return (self.head(found), self.second(found)) if self.training else self.head(found)


class Tied(Plain):
    """One convolution under two names."""

    def __init__(self) -> None:
        super().__init__(width=6)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.once_more = self.again

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        return self.once_more(self.again(x).relu()).relu().mean((2, 3))


class LayerScale(Plain):
    """A gain outside normalisation, declared."""

    fixed_in_weight_space = ("gamma",)

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((6, 1, 1), 0.5))

    def features(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        return (self.gamma * self.conv2(x)).relu().mean((2, 3))


class Holding(Plain):
    """A parameter of a module that has children."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(-0.1, 0.1, 10))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv1.requires_grad_(False)
        self.norm.requires_grad_(False)


class Dropping(Plain):
    def features(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().features(x), 0.5, self.training)


class Bare(Plain):
    """No normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


class Grouped(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(3, 6)


class Layered(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([6, 8, 8])


class Viewed(Plain):
    """`view` behind a convolution, which no channels-last tensor takes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6 * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)).relu()).relu()
        return x.view(len(x), -1)


def make(depth: int = 1, **sizes: int) -> nn.Module:
    """A factory with arguments."""
    return Deeper(depth, **sizes)


class Deeper(Plain):
    def __init__(self, depth: int, **sizes: int) -> None:
        super().__init__(**sizes)
        self.more = nn.ModuleList(nn.Linear(*2 * [self.head.in_features]) for _ in range(depth))

    def features(self, x: Tensor) -> Tensor:
        found = super().features(x)
        for layer in self.more:
            found = found + layer(found).relu()
        return found


def trained(network: nn.Module) -> nn.Module:
    """The network with random weights and running statistics of a seed, in train mode as training leaves it."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=draw, dtype=torch.float64)
                positive = name.endswith(("running_var", "original0", "weight_g"))
                tensor.copy_((noise.abs() + 0.5) if positive else noise / 2)
    return network.train()
