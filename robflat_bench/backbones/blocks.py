"""Residual networks for small images: 3x3 stem, stages of basic blocks, mean over positions, linear head.

`residual` builds every network from a table of stages. The two kinds of block differ in the position of their norms.
Parameter names read `network.stage2.block1.conv1.weight`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robflat_bench.backbones.parts import Normalized, activation_class, construction
from robflat_bench.core import ImageShape
from robflat_bench.numerics.kernels import every, position_mean


@dataclass(frozen=True)
class Stage:
    """A number of blocks at one width (channels). The first block has the stride."""

    blocks: int
    width: int
    stride: int = 1


def _named(modules: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut: [B,inputs,H,W] -> [B,outputs,H/stride,W/stride]."""

    preactivated: ClassVar[bool]

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs if self.preactivated else outputs)
        self.act1 = activation()
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = activation()
        self.conv2 = _convolution(outputs, outputs, 3)
        self.reshapes = inputs != outputs or stride != 1
        projection: dict[str, nn.Module] = {}  # empty: the identity
        if self.reshapes:
            # Every stride-th pixel, then a dense 1x1 convolution: the same numbers as a strided convolution, whose
            # weight gradient oneDNN (up to torch 2.15 at least) writes out of bounds, channels last, where channels
            # are few.
            projection = {"every": Every(stride), "conv": _convolution(inputs, outputs, 1)}
            if not self.preactivated:
                projection["norm"] = nn.BatchNorm2d(outputs)
        self.shortcut = _named(projection)


class PostActivation(Block):
    """act(norm2(conv2(act(norm1(conv1(x))))) + shortcut(x)); He et al., arXiv 1512.03385, option B."""

    preactivated = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        out: Tensor = self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))
        return out


class PreActivation(Block):
    """conv2(act(norm2(conv1(a)))) + shortcut, a = act(norm1(x)); He et al., arXiv 1603.05027.

    The shortcut carries x itself, or the 1x1 convolution of a where the shape changes.
    """

    preactivated = True

    def forward(self, x: Tensor) -> Tensor:
        a = self.act1(self.norm1(x))
        y = self.conv2(self.act2(self.norm2(self.conv1(a))))
        out: Tensor = y + self.shortcut(a if self.reshapes else x)
        return out


class Every(nn.Module):
    """[B,C,H,W] -> every stride-th pixel in both directions."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return every(x, self.stride)


class PositionMean(nn.Module):
    """[B,C,H,W] -> [B,C]. AdaptiveAvgPool2d would have a nondeterministic backward on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return position_mean(x)


def residual(
    block: type[Block], stem: Stage, stages: Sequence[Stage], shape: ImageShape, activation: str
) -> Normalized:
    """A residual network: stem, stages, mean over positions, linear head.

    Parameters
    ----------
    block
        Kind of block. With `PreActivation`, norm and activation follow the last block (`tail`) instead of the stem.
    stem, stages
        Widths and strides from input to output.
    shape
        Size, channels, classes and statistics of the images.
    activation
        A name of `parts.ACTIVATIONS`.
    """
    act = activation_class(activation)
    with construction():
        width = stem.width
        entry: dict[str, nn.Module] = {"conv": _convolution(shape.channels, width, 3, stem.stride)}
        if not block.preactivated:
            entry |= {"norm": nn.BatchNorm2d(width), "act": act()}
        network: dict[str, nn.Module] = {"stem": _named(entry)}
        for number, stage in enumerate(stages, start=1):
            blocks: dict[str, nn.Module] = {}
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                blocks[f"block{position + 1}"] = block(width, stage.width, stride, act)
                width = stage.width
            network[f"stage{number}"] = _named(blocks)
        if block.preactivated:
            network["tail"] = _named({"norm": nn.BatchNorm2d(width), "act": act()})
        network |= {"pool": PositionMean(), "head": nn.Linear(width, shape.classes)}
        return Normalized(_named(network), shape)
