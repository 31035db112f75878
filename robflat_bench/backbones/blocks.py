"""Residual networks for small images: 3x3 stem, stages of basic blocks, mean over positions, linear head.

One function builds them all from a table of stages; the two kinds of block differ in where norms stand.
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

Modules = OrderedDict[str, nn.Module]


@dataclass(frozen=True)
class Stage:
    """A number of blocks at one width (channels); the first block has the stride."""

    blocks: int
    width: int
    stride: int = 1


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without bias, padded such that stride 1 keeps the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut: [B,inputs,H,W] -> [B,outputs,H/stride,W/stride]."""

    preactivated: ClassVar[bool]

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs if self.preactivated else outputs)
        self.act1 = activation()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.act2 = activation()
        self.conv2 = convolution(outputs, outputs, 3)
        self.reshapes = inputs != outputs or stride != 1
        projection = Modules()
        if self.reshapes:
            # Every stride-th pixel, then a dense 1x1 convolution: the same numbers as a strided one, whose weight
            # gradient oneDNN (up to torch 2.15 at least) writes out of bounds, channels last, where channels are few.
            projection["every"] = Every(stride)
            projection["conv"] = convolution(inputs, outputs, 1)
            if not self.preactivated:
                projection["norm"] = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(projection)  # empty: the identity


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
    """[B,C,H,W] -> every stride-th pixel of it, in both directions."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


class PositionMean(nn.Module):
    """[B,C,H,W] -> [B,C]. Not AdaptiveAvgPool2d, whose backward is nondeterministic on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def residual(
    block: type[Block], stem: Stage, stages: Sequence[Stage], shape: ImageShape, activation: str
) -> Normalized:
    """Stem, stages, mean and head in a row. Norm and activation stand behind the stem or, where blocks open
    with them, behind the last block (`tail`)."""
    act = activation_class(activation)
    with construction():
        width = stem.width
        entry = Modules(conv=convolution(shape.channels, width, 3, stem.stride))
        if not block.preactivated:
            entry.update(norm=nn.BatchNorm2d(width), act=act())
        row = Modules(stem=nn.Sequential(entry))
        for number, stage in enumerate(stages, start=1):
            blocks = Modules()
            for position in range(stage.blocks):
                stride = stage.stride if position == 0 else 1
                blocks[f"block{position + 1}"] = block(width, stage.width, stride, act)
                width = stage.width
            row[f"stage{number}"] = nn.Sequential(blocks)
        if block.preactivated:
            row["tail"] = nn.Sequential(Modules(norm=nn.BatchNorm2d(width), act=act()))
        row.update(pool=PositionMean(), head=nn.Linear(width, shape.classes))
        return Normalized(nn.Sequential(row), shape)
