"""Residual networks for small images, as tables of stages; `blocks` holds their modules.

ResNet-8 and ResNet-18: He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385.
Pre-activation ResNet-18: by the same authors, Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv 1603.05027.
WRN-28-10 and WRN-34-10: Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from robflat_bench.core import BackboneInfo, ImageShape, Params, lazy_imports

with lazy_imports():
    from torch import nn

    from robflat_bench.backbones.blocks import PostActivation, PreActivation, Stage, residual

Stride = Literal[1, 2]
Width = Annotated[int, Field(ge=1, le=1024)]
Depth = Literal[10, 16, 22, 28, 34, 40, 46, 52, 58, 64, 70, 106]


class ResNet8Params(Params):
    width: Width = Field(default=16, description="Channels of the first stage; each later stage doubles them.")
    strides: tuple[Stride, Stride, Stride] = Field(default=(1, 2, 2), description="Strides of the three stages.")
    stem_stride: Stride = Field(default=1, description="Stride of the first convolution.")


class ResNet18Params(Params):
    width: Width = Field(
        default=64, description="Channels of the first stage; each later stage doubles them. The paper has 64."
    )


class WideParams(Params):
    """Depth and width."""

    depth: Depth = Field(default=28, description="Weight layers: 6 n + 4, of which each of three stages has 2 n.")
    factor: int = Field(default=10, ge=1, le=64, description="Width factor k: stages of 16 k, 32 k and 64 k channels.")


_RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385"
_PREACTIVATION = "He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv 1603.05027"
_WIDE = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146"

INFO = tuple(
    BackboneInfo(name, summary, f"{__name__}:{name.replace('-', '_')}", params, citation)
    for name, summary, params, citation in (
        ("resnet8", "three stages of one basic block: small enough for a laptop", ResNet8Params, _RESNET),
        ("resnet18", "ResNet-18 with the 3x3 stem of small images", ResNet18Params, _RESNET),
        ("preact-resnet18", "ResNet-18 of pre-activation blocks", ResNet18Params, _PREACTIVATION),
        ("wrn-28-10", "wide ResNet, depth 28, width factor 10", Params, _WIDE),
        ("wrn-34-10", "wide ResNet, depth 34, width factor 10", Params, _WIDE),
        ("wrn", "wide ResNet of any depth and width factor", WideParams, _WIDE),
    )
)


def resnet8(params: ResNet8Params, shape: ImageShape, activation: str) -> nn.Module:
    """Eight weight layers: stem, three blocks of two, head; widths W, 2W, 4W."""
    stages = [Stage(1, params.width * 2**i, stride) for i, stride in enumerate(params.strides)]
    return residual(PostActivation, Stage(1, params.width, params.stem_stride), stages, shape, activation)


def _stages18(width: int) -> list[Stage]:
    """Two blocks each at W, 2W, 4W, 8W; all but the first stage halve the size."""
    return [Stage(2, width * factor, stride) for factor, stride in ((1, 1), (2, 2), (4, 2), (8, 2))]


def resnet18(params: ResNet18Params, shape: ImageShape, activation: str) -> nn.Module:
    """The paper's network at width 64, without its biases in front of normalisation."""
    return residual(PostActivation, Stage(1, params.width), _stages18(params.width), shape, activation)


def preact_resnet18(params: ResNet18Params, shape: ImageShape, activation: str) -> nn.Module:
    """ResNet-18 of pre-activation blocks."""
    return residual(PreActivation, Stage(1, params.width), _stages18(params.width), shape, activation)


def _wide(depth: int, factor: int, shape: ImageShape, activation: str) -> nn.Module:
    """WRN-depth-factor without dropout: a stem of 16, three stages of (depth - 4) / 6 blocks."""
    blocks = (depth - 4) // 6
    stages = [Stage(blocks, width * factor, stride) for width, stride in ((16, 1), (32, 2), (64, 2))]
    return residual(PreActivation, Stage(1, 16), stages, shape, activation)


def wrn_28_10(params: Params, shape: ImageShape, activation: str) -> nn.Module:
    """WRN-28-10."""
    return _wide(28, 10, shape, activation)


def wrn(params: WideParams, shape: ImageShape, activation: str) -> nn.Module:
    """WRN-depth-factor."""
    return _wide(params.depth, params.factor, shape, activation)


def wrn_34_10(params: Params, shape: ImageShape, activation: str) -> nn.Module:
    """WRN-34-10."""
    return _wide(34, 10, shape, activation)
