r"""Faster spellings of a network's operations on a CPU: the values of autograd up to rounding, in plain PyTorch.

| operation                  | spelling                                     | acts                                          |
|----------------------------|----------------------------------------------|-----------------------------------------------|
| `every` s-th pixel         | gradient in the layout of the input          | always                                        |
| `position_mean`            | gradient in the layout of the input          | always                                        |
| images' gradient of a stem | matrix product, then a sum of shifted parts  | frozen weights, C_out >= 8 C_in and 16         |

Layout: where a ReLU meets a gradient in another memory format than its output's, torch 2.15 reads it element by element:
1786 instead of 53 microseconds for 64 x 24 x 16 x 16 float32 (AMD EPYC, one thread). A strided slice passes back a
contiguous gradient, and a mean one that is expanded in place; both then slow every layer before them.

Stem: oneDNN pads the few input channels of a first convolution to the width of a vector. The product

    columns = W^T g,   W [C_out, C_in k k],   g [C_out, pixels],   dx = fold(columns)

takes 0.60 instead of 1.19 ms for 3 -> 24 channels with stride 2, and 4.7 instead of 6.4 ms for 3 -> 64 (32x32, batch 64).
For 3 -> 16 channels it takes 2.1 instead of 1.6 ms, and for 1 -> 8 on 8x8 its Python costs more than it saves.

The rules read shapes alone. Nothing is timed when a network runs, so equal runs use equal kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

OUTPUTS, OUTPUTS_PER_INPUT = 16, 8
"""Output channels, in all and for each input channel, from which on the matrix product is the faster gradient."""
PRECISIONS = (torch.float32, torch.float64)


# ---------------------------------------------------------------------------------------------------------
# Gradients in the layout of their input
# ---------------------------------------------------------------------------------------------------------


def every(x: Tensor, stride: int) -> Tensor:
    """Every stride-th pixel in both directions: [B,C,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)]."""
    made: Tensor = x if stride == 1 else _Every.apply(x, stride)
    return made


def position_mean(x: Tensor) -> Tensor:
    """The mean over positions: [B,C,H,W] -> [B,C]."""
    made: Tensor = _PositionMean.apply(x)
    return made


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1  # torch.vmap refuses to say more


class _Every(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, stride: int) -> Tensor:
        return x[:, :, ::stride, ::stride].clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        x, ctx.stride = inputs
        ctx.shape, ctx.last = x.shape, _channels_last(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        b, c, h, w = ctx.shape
        spread = gradient.new_zeros(b, h, w, c).permute(0, 3, 1, 2) if ctx.last else gradient.new_zeros(ctx.shape)
        spread[:, :, :: ctx.stride, :: ctx.stride] = gradient
        return spread, None


class _PositionMean(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        (x,) = inputs
        ctx.shape, ctx.last = x.shape, _channels_last(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        b, c, h, w = ctx.shape
        share = gradient / (h * w)
        if ctx.last:
            return share[:, None, None, :].expand(b, h, w, c).contiguous().permute(0, 3, 1, 2)
        return share[:, :, None, None].expand(ctx.shape).contiguous()


# ---------------------------------------------------------------------------------------------------------
# The stem's gradient
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, convolutions of few channels pass on the images' gradient by a matrix product.

    Parameters
    ----------
    model
        Any network. Layers of torch count by their exact class; they keep their hooks and their parameters. A layer
        whose weights require a gradient, or that runs under autocast or compiled, computes as it always does.
    """
    stems = [layer for layer in model.modules() if _is_stem(layer)]
    for layer in stems:
        layer.__dict__["forward"] = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in stems:
            del layer.__dict__["forward"]


def _is_stem(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.out_channels >= max(OUTPUTS, OUTPUTS_PER_INPUT * layer.in_channels)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and "forward" not in layer.__dict__
    )


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if not _applies(layer, x):
        return nn.Conv2d.forward(layer, x)
    made: Tensor = _Stem.apply(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
    return made


def _applies(layer: nn.Conv2d, x: Tensor) -> bool:
    bias = layer.bias
    return (
        x.requires_grad
        and not layer.weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in PRECISIONS
        and x.dtype == layer.weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Stem(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, stride, padding, dilation = inputs
        ctx.save_for_backward(weight)
        ctx.size, ctx.place = x.shape[2:], (dilation, padding, stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        columns = weight.flatten(1).t() @ gradient.flatten(2)
        return F.fold(columns, ctx.size, weight.shape[2:], *ctx.place), None, None, None, None, None
