"""Any timm architecture as a backbone: untrained, without dropout, its stem adapted to small images.

Importing timm takes ten seconds, so only the factory imports it. Wightman, PyTorch Image Models, 2019, doi
10.5281/zenodo.4414861.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field

from robflat_bench.backbones import ACTIVATION_NAMES
from robflat_bench.core import BackboneInfo, ImageShape, Params, UsageError, lazy_imports

with lazy_imports():
    import torch
    from torch import nn
    from torch.nn.modules.dropout import _DropoutNd

    from robflat_bench.backbones.parts import Normalized, construction


class TimmParams(Params):
    name: str = Field(description="Architecture of timm, e.g. resnet18, without a pretrained tag: it is untrained.")
    stem: Literal["original"] | None = Field(
        default=None, description="`original` keeps the 7x7 stem of a ResNet; by default, small images have a 3x3 one."
    )


INFO = BackboneInfo(
    name="timm",
    summary="any timm architecture, untrained, adapted to small images",
    factory=f"{__name__}:timm_model",
    params=TimmParams,
    citation="Wightman, PyTorch Image Models, 2019, doi 10.5281/zenodo.4414861",
    example={"name": "resnet18"},
)

SMALL = 64
"""Largest size [pixels] of images that keep their resolution through a ResNet's stem."""


def timm_model(params: TimmParams, shape: ImageShape, activation: str) -> nn.Module:
    """`timm.create_model(params.name)` for images of `shape`.

    Raises
    ------
    UsageError
        For an unknown name, an activation other than the default, or images that the architecture cannot take.
    """
    default = ACTIVATION_NAMES[0]
    if activation != default:
        raise UsageError(
            f"timm models keep their own activation, so {activation!r} cannot be chosen: "
            f"set the recipe's activation to {default!r}, or choose another backbone"
        )
    import timm

    # Names of architectures only: "resnet18.a1_in1k" would be the same network under a second name, and
    # "hf-hub:..." would reach for the network.
    known = timm.list_models()
    if params.name not in known:
        close = difflib.get_close_matches(params.name, known, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UsageError(f"timm has no architecture named {params.name!r}; {hint}")
    with construction():
        try:
            network = _create(params.name, shape)
            if shape.size <= SMALL and params.stem is None:
                _keep_resolution(network)
            with torch.no_grad():  # in eval mode, so that no statistics move
                network.eval()(torch.zeros(1, shape.channels, shape.size, shape.size))
        except Exception as error:  # each architecture fails in its own way on images too small for it
            size = f"{shape.channels}x{shape.size}x{shape.size}"
            raise UsageError(
                f"timm's {params.name} does not take {size} images: {error}; choose another architecture"
            ) from error
    _disable_dropout(network)
    return Normalized(network.train(), shape)


def _create(name: str, shape: ImageShape) -> nn.Module:
    """The architecture for images of this shape. timm does not say which architectures take `img_size`."""
    import timm

    sizes: dict[str, Any] = {"num_classes": shape.classes, "in_chans": shape.channels, "pretrained": False}
    try:
        return timm.create_model(name, img_size=shape.size, **sizes)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, **sizes)


def _keep_resolution(network: nn.Module) -> None:
    """Replace a ResNet's 7x7 stride-2 convolution by a 3x3 stride-1 one and drop its pooling, as in our resnet18."""
    stem = getattr(network, "conv1", None)
    if isinstance(stem, nn.Conv2d) and stem.kernel_size == (7, 7) and hasattr(network, "maxpool"):
        network.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
        network.maxpool = nn.Identity()


def _disable_dropout(network: nn.Module) -> None:
    """Set the rates of dropout, drop path and drop block to 0; not every constructor of timm takes them."""
    for module in network.modules():
        rates = ("drop_rate", "drop_prob", "p") if isinstance(module, _DropoutNd) else ("drop_rate", "drop_prob")
        for name in rates:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
