"""What components are tried on: a network of a few hundred weights and a dozen real digits.

Everything is made anew for each use and is the same each time, so a comparison shows what a component left behind.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.backbones.parts import initialize
from robflat_bench.core import Batch, Examples, ImageShape, Pool, Threat
from robflat_bench.core.randomness import generator
from robflat_bench.data.digits import load_digits
from robflat_bench.registry.components import resolve
from robflat_bench.registry.plugins import built_in
from robflat_bench.registry.registry import Registry

THREAT = Threat(epsilon=0.1)
COUNT = 12
SHAPE = ImageShape(channels=1, size=8, classes=10, mean=(0.3,), std=(0.4,))


@dataclass
class World:
    """A network, and `COUNT` digits as examples for evaluation and as a training batch."""

    model: nn.Module
    examples: Examples
    batch: Batch

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the network's weights and buffers."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@functools.cache
def built_ins() -> Registry:
    """A registry without any plugin: it provides the network and the method at of the trials."""
    return Registry(built_in())


def network() -> nn.Module:
    """resnet8(width=2), with the same weights at each call."""
    model: nn.Module = resolve(built_ins(), "backbone", "resnet8(width=2)").build(SHAPE, "relu")
    initialize(model, generator("kit"))
    return model


def dropping() -> nn.Module:
    """The network with dropout before its head."""
    model: Any = network()
    model.network.pool = nn.Sequential(model.network.pool, nn.Dropout(0.1))
    return model  # type: ignore[no-any-return]


def world() -> World:
    """An untrained network and the first `COUNT` digits."""
    pool = digits(0, COUNT)
    x = torch.from_numpy(pool.x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    y = torch.from_numpy(pool.y.astype(np.int64))
    index = torch.arange(COUNT)
    target = nn.functional.one_hot(y, 10).float()
    return World(network(), Examples(x, y, index), Batch(index, x.clone(), y.clone(), target, torch.ones(COUNT)))


def training_world() -> World:
    """The untrained network in train mode, and the digits."""
    place = world()
    place.model.train()
    return place


def digits(start: int, stop: int) -> Pool:
    """The digits start, ..., stop - 1."""
    pool = _all_digits()
    return Pool(pool.x[start:stop], pool.y[start:stop], pool.index[start:stop])


@functools.cache
def _all_digits() -> Pool:
    return load_digits().pools["train"]


def inner(steps: int = 2) -> TrainingAttack:
    """The recipe's training attack with so many steps."""
    return TrainingAttack(
        epsilon=THREAT.epsilon, step=0.05, steps=steps, start="uniform", bn="eval", source=generator("kit")
    )
