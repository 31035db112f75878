"""The catalogue of backbones: names, parameters and constructors. Imports neither torch nor timm.

A factory is a function `(params, shape: ImageShape, activation: str) -> nn.Module`; the module takes images
float [B,C,H,W] in [0,1] and returns logits float [B,K]. Weights come from `parts.initialize` afterwards.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import BackboneInfo
from robflat_bench.core.params import Params

ACTIVATION_NAMES = ("relu", "silu", "gelu", "mish")
"""What a recipe may choose; `parts.ACTIVATIONS` holds the classes behind the names."""

Stride = Literal[1, 2]
Width = Annotated[int, Field(ge=1)]


class ResNet8Params(Params):
    """width: channels of the first stage. strides: of the stages. stem_stride: of the first convolution."""

    width: Width = 16
    strides: tuple[Stride, Stride, Stride] = (1, 2, 2)
    stem_stride: Stride = 1


class ResNet18Params(Params):
    """width: channels of the first stage; each later stage doubles them."""

    width: Width = 64


class TimmParams(Params):
    """name: an architecture of timm, e.g. resnet18; always untrained."""

    name: str


RESNET = "He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv 1512.03385"
PREACT = "He et al., Identity Mappings in Deep Residual Networks, ECCV 2016, arXiv 1603.05027"
WRN = "Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, arXiv 1605.07146"
TIMM = "Wightman, PyTorch Image Models, 2019, doi 10.5281/zenodo.4414861"


@hookimpl
def robflat_bench_backbones() -> list[BackboneInfo]:
    """The built-in backbones."""
    home = "robflat_bench.backbones"
    return [
        BackboneInfo(
            "resnet8",
            "three stages of one basic block: small enough for a laptop",
            f"{home}.resnet:resnet8",
            ResNet8Params,
            RESNET,
        ),
        BackboneInfo(
            "resnet18",
            "ResNet-18 with the 3x3 stem of small images",
            f"{home}.resnet:resnet18",
            ResNet18Params,
            RESNET,
        ),
        BackboneInfo(
            "preact-resnet18",
            "ResNet-18 of pre-activation blocks",
            f"{home}.resnet:preact_resnet18",
            ResNet18Params,
            PREACT,
        ),
        BackboneInfo(
            "wrn-28-10",
            "wide ResNet, depth 28, width factor 10",
            f"{home}.resnet:wrn_28_10",
            citation=WRN,
        ),
        BackboneInfo(
            "wrn-34-10",
            "wide ResNet, depth 34, width factor 10",
            f"{home}.resnet:wrn_34_10",
            citation=WRN,
        ),
        BackboneInfo(
            "timm",
            "any timm architecture, untrained, adapted to small images",
            f"{home}.timm_zoo:timm_model",
            TimmParams,
            TIMM,
            example={"name": "resnet18"},
        ),
    ]
