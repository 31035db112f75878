"""Odd but valid networks, and a registry that offers them as backbones."""

from __future__ import annotations

import sys
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from robflat_bench.backbones.resnet import ResNet8Params, resnet8
from robflat_bench.core import BackboneInfo
from robflat_bench.registry.plugins import Provider, built_in
from robflat_bench.registry.registry import Registry


class Root(torch.autograd.Function):
    """The square root, its derivative at 0 written as 0."""

    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return torch.where(x > 0, gradient / (2 * x.sqrt()), 0.0)


NORMALISED = {
    "new-weight-norm": parametrizations.weight_norm,
    "new-spectral-norm": parametrizations.spectral_norm,
    "old-weight-norm": weight_norm,
    "old-spectral-norm": spectral_norm,
}
"""Name of a backbone -> what is done to each layer of resnet8(width=4)."""


def residual(params, shape, activation):
    return resnet8(ResNet8Params(width=4), shape, activation)


def normalised(name: str, params, shape, activation):
    model = residual(params, shape, activation)
    for module in [*model.modules()]:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            NORMALISED[name](module)
    return model


class Attention(nn.Module):
    """Each row of the image is a token; `in_proj` belongs to no linear layer."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(shape.size, 2, batch_first=True)
        self.head = nn.Linear(shape.size, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean(1)
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


class Dropping(nn.Module):
    """Dropout in its features, which it computes again in the backward pass."""

    def __init__(self, shape) -> None:
        super().__init__()
        pixels = shape.channels * shape.size**2
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Dropout(0.3))
        self.norm, self.head = nn.BatchNorm1d(32), nn.Linear(32, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(checkpoint(self.features, x, use_reentrant=False)))


class Tied(nn.Module):
    """Two layers with one weight, and two with one batch normalisation."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.entry = nn.Linear(shape.channels * shape.size**2, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(16)
        self.again = self.norm
        self.head = nn.Linear(16, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(self.entry(x.flatten(1))).relu())
        return self.head(self.again(self.second(y).relu()))


class Derived(nn.Module):
    """In eval mode it uses a weight that it derived when it entered that mode."""

    derived: Tensor | None = None

    def __init__(self, shape) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.channels * shape.size**2, shape.classes)

    def train(self, mode: bool = True):
        super().train(mode)
        self.derived = None if mode else F.normalize(self.layer.weight.detach())
        return self

    def forward(self, x: Tensor) -> Tensor:
        derived = F.normalize(self.layer.weight) if self.derived is None else self.derived
        return F.linear(x.flatten(1), derived, self.layer.bias)


class DerivedLazily(Derived):
    """It derives the weight in its first pass in eval mode."""

    def train(self, mode: bool = True):
        nn.Module.train(self, mode)
        if mode:
            self.derived = None
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.derived is None:
            self.derived = F.normalize(self.layer.weight.detach())
        return super().forward(x)


class Noisy(Derived):
    """Noise on its logits, also in eval mode."""

    def train(self, mode: bool = True):
        return nn.Module.train(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) + 0.3 * torch.randn(len(x), self.layer.out_features)


class Flat(nn.Module):
    """Batch normalisation of one value per image and channel: in train mode it needs two images."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(shape.channels * shape.size**2, 16), nn.BatchNorm1d(16))
        self.head = nn.Linear(16, shape.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).relu())


CLASSES = (Attention, Dropping, Tied, Derived, DerivedLazily, Noisy, Flat)


def _factories():
    yield "residual", residual
    for name in NORMALISED:
        yield name, partial(normalised, name)
    for network in CLASSES:
        yield network.__name__.lower(), lambda params, shape, activation, network=network: network(shape)


FACTORIES = dict(_factories())
globals().update({f"make_{name.replace('-', '_')}": factory for name, factory in FACTORIES.items()})


def with_networks() -> Registry:
    """The built-in components and these networks: `residual`, `dropping`, `new-weight-norm`, ..."""
    registry = Registry(built_in())
    provider = Provider("networks.py", "file", "networks", sys.modules[__name__])
    for name in FACTORIES:
        registry.add(BackboneInfo(name, name, f"networks:make_{name.replace('-', '_')}"), provider)
    return registry


NET = '''
import torch
from torch import nn


class Net(nn.Module):
    """Images [N,1,8,8] -> logits [N,classes]."""

    def __init__(self, classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(64 * width, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


class Pair(Net):
    def forward(self, x):
        return x, super().forward(x)


def make(**arguments):
    return Net(**arguments)


def thing():
    return [1]


def broken():
    return Net(width=1 // 0)
'''
"""A network's file, as a user has it."""
