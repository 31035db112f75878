r"""Faster spellings of a network's operations on a CPU: the values of autograd up to rounding, in plain PyTorch.

| gradient of                         | spelling                         | for                                      |
|-------------------------------------|----------------------------------|------------------------------------------|
| `every` s-th pixel, `position_mean` | in the layout of the input       | all networks of `backbones.blocks`       |
| a convolution's input, where the    | `pointwise`: W^T g               | 1x1, stride 1 (shortcuts)                |
| weights are frozen                  | `product`: W^T g, then a fold    | C_out >= 16 and >= 8 C_in (stems)        |
|                                     | `phases`: a convolution          | C_in <= 24                               |
|                                     | `contiguous`: oneDNN's, but NCHW | 3x3, C_in >= 48, at most 4 x 4 positions |
|                                     | `usual`: oneDNN's                | all others                               |

Layout: where a ReLU meets a gradient in another memory format than its output's, torch 2.15 reads it element by
element. For 64 x 24 x 16 x 16 float32 it takes 2057 microseconds for a contiguous gradient, 612 for one expanded over
positions, and 50 for one in channels last. A strided slice passes back the first, a mean the second.

Convolutions, y = W * x with stride s and padding p, and g the gradient of y (one axis written):

    product      columns = W^T g for W [C_out, C_in k];   dx = fold(columns)
    phases       dx[s i + a] = sum_d W[a + p - s d]^T g[i + d]      a < s: C_in s channels, then interleaved

oneDNN pads few input channels to the width of a vector, and scatters where there is a stride. Microseconds, float32,
channels last, AMD EPYC, one thread, torch 2.15; oneDNN's -> ours:

    product      3 -> 24, 32x32, stride 2, batch 64: 1190 -> 600;   3 -> 64, 32x32, batch 64: 6350 -> 4690
    phases       8 -> 16, 8x8, stride 2, batch 50: 170 -> 70;   24 -> 24, 16x16, stride 2, batch 64: 657 -> 490
                 8 -> 8, 8x8, batch 50: 90 -> 83;   32 -> 64, 16x16, stride 2, batch 64: 1151 -> 1266 (not used)
    contiguous   48 -> 96, 4x4, batch 64: 444 -> 362;   512 -> 512, 4x4, batch 32: 12845 -> 9885
    pointwise    (Intel Xeon) 24 -> 24, 8x8, batch 64: 99 -> 52;   48 -> 96, 4x4, batch 64: 103 -> 58;
                 8 -> 16, 4x4, batch 50: 41 -> 12;   256 -> 512, 4x4, batch 32: 832 -> 772

The rules read shapes alone. Nothing is timed when a network runs, so equal runs use equal kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F

PRECISIONS = (torch.float32, torch.float64)


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """s and shift, float64 [C], of batch normalisation with running statistics: y = s x + shift."""
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -scale * mean.double()
    return scale, shift if bias is None else shift + bias.detach().double()


# ---------------------------------------------------------------------------------------------------------
# Gradients in the layout of their input
# ---------------------------------------------------------------------------------------------------------


def every(x: Tensor, stride: int) -> Tensor:
    """Every stride-th pixel in both directions: [B,C,H,W] -> [B,C,ceil(H/stride),ceil(W/stride)]."""
    if stride == 1:
        return x
    if forward_mode():
        return x[:, :, ::stride, ::stride]
    made: Tensor = _Every.apply(x, stride)
    return made


def position_mean(x: Tensor) -> Tensor:
    """The mean over positions: [B,C,H,W] -> [B,C]."""
    made: Tensor = x.mean(dim=(2, 3)) if forward_mode() else _PositionMean.apply(x)
    return made


def forward_mode() -> bool:
    """Whether tangents are carried forward, for which the functions here have no rule."""
    level: int = forward_ad._current_level
    return level >= 0


def _channels_last(x: Tensor) -> bool:
    return x.stride(1) == 1  # torch.vmap refuses to say more


def spread(gradient: Tensor, shape: torch.Size, stride: int, last: bool) -> Tensor:
    """The gradient of `every` in images of this shape [B,C,H,W]; last: in channels last."""
    b, c, h, w = shape
    made = gradient.new_zeros(b, h, w, c).permute(0, 3, 1, 2) if last else gradient.new_zeros(b, c, h, w)
    made[:, :, ::stride, ::stride] = gradient
    return made


def shared_out(gradient: Tensor, shape: torch.Size, last: bool) -> Tensor:
    """The gradient of a mean over positions, [B,C] or [B,C,1,1], in images of this shape; last: in channels last."""
    b, c, h, w = shape
    share: Tensor = gradient / (h * w)
    if last:
        return share.reshape(b, 1, 1, c).expand(b, h, w, c).contiguous().permute(0, 3, 1, 2)
    return share.reshape(b, c, 1, 1).expand(b, c, h, w).contiguous()


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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return spread(gradient, ctx.shape, ctx.stride, ctx.last), None


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
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return shared_out(gradient, ctx.shape, ctx.last)


# ---------------------------------------------------------------------------------------------------------
# Gradients of a convolution's input
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InputGradient:
    """One spelling of the gradient of a convolution's input.

    Parameters
    ----------
    suits : callable
        (layer, (H, W) of its input) -> whether it is the fastest. The layer has one group and pads with zeros.
    prepare : callable
        (layer, its weight, (H, W)) -> the weight in the form that `apply` reads.
    apply : callable
        (layer, prepared weight, gradient of the output, shape of the input) -> gradient of the input.
    """

    suits: Callable[[nn.Conv2d, torch.Size], bool]
    prepare: Callable[[nn.Conv2d, Tensor, torch.Size], Tensor]
    apply: Callable[[nn.Conv2d, Tensor, Tensor, torch.Size], Tensor]


def input_gradient(layer: nn.Conv2d, size: torch.Size) -> InputGradient:
    """The spelling for a layer whose input has this size (H, W)."""
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return next(
        each for name, each in INPUT_GRADIENTS.items() if name == "usual" or (plain and each.suits(layer, size))
    )


def _pointwise(layer: nn.Conv2d, weight: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    return (g.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)


def _is_pointwise(layer: nn.Conv2d, size: torch.Size) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding) == ((1, 1), (1, 1), (0, 0))


def _product(layer: nn.Conv2d, weight: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    padding: Any = layer.padding
    return F.fold(weight @ g.flatten(2), shape[2:], layer.kernel_size, layer.dilation, padding, layer.stride)


@dataclass(frozen=True)
class _Axis:
    """Along one axis: taps [s][offsets] of the kernel (its length: none), and zeros around the output's gradient."""

    taps: list[list[int]]
    before: int
    after: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, padding: int) -> _Axis:
        first, last = -((kernel - 1 - padding) // stride), (stride - 1 + padding) // stride
        taps = [[a + padding - stride * d for d in range(first, last + 1)] for a in range(stride)]
        outputs = (size + 2 * padding - kernel) // stride + 1
        after = -(-size // stride) + last - outputs
        return cls([[tap if 0 <= tap < kernel else kernel for tap in row] for row in taps], -first, after)


def _axes(layer: nn.Conv2d, size: torch.Size) -> tuple[_Axis, _Axis]:
    rows, columns = map(_Axis.of, size, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    return rows, columns


def _phase_weight(layer: nn.Conv2d, weight: Tensor, size: torch.Size) -> Tensor:
    """[s s C_in, C_out, offsets, offsets] of the convolution that computes all phases."""
    rows, columns = (torch.tensor(axis.taps) for axis in _axes(layer, size))
    taps = F.pad(weight, (0, 1, 0, 1))[:, :, rows[:, :, None, None], columns]  # [C_out, C_in, s, d, s, d]
    return taps.permute(2, 4, 1, 0, 3, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _phases(layer: nn.Conv2d, weight: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    (rows, columns), (b, c, height, width) = _axes(layer, shape[2:]), shape
    (s, t) = layer.stride
    zeros = (columns.before, columns.after, rows.before, rows.after)
    if layer.stride == (1, 1) and len(set(zeros)) == 1 and zeros[0] >= 0:
        return F.conv2d(g, weight, None, 1, zeros[0])
    made = F.conv2d(F.pad(g, zeros), weight).permute(0, 2, 3, 1)
    h, w = made.shape[1:3]
    made = made.reshape(b, h, w, s, t, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * t, c)
    return made[:, :height, :width].permute(0, 3, 1, 2)


def _usual(layer: nn.Conv2d, weight: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    place = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    x = g.new_empty(1).expand(shape)  # its values are not read
    made: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *place, (True, False, False))[0]
    return made


def _contiguous(layer: nn.Conv2d, weight: Tensor, g: Tensor, shape: torch.Size) -> Tensor:
    return _usual(layer, weight, g.contiguous(), shape).contiguous(memory_format=torch.channels_last)


def _few_positions(layer: nn.Conv2d, size: torch.Size) -> bool:
    square = (layer.kernel_size, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))
    return square and layer.in_channels >= 48 and size.numel() <= 16


INPUT_GRADIENTS = {
    "pointwise": InputGradient(_is_pointwise, lambda layer, weight, size: weight.flatten(1), _pointwise),
    "product": InputGradient(
        lambda layer, size: layer.out_channels >= max(16, 8 * layer.in_channels),
        lambda layer, weight, size: weight.flatten(1).t(),
        _product,
    ),
    "phases": InputGradient(
        lambda layer, size: layer.in_channels <= 24 and layer.dilation == (1, 1), _phase_weight, _phases
    ),
    "contiguous": InputGradient(_few_positions, lambda layer, weight, size: weight.contiguous(), _contiguous),
    "usual": InputGradient(lambda layer, size: True, lambda layer, weight, size: weight, _usual),
}
"""Name -> spelling; the first that suits a layer is used."""


# ---------------------------------------------------------------------------------------------------------
# The stem where autograd runs the network
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, stems pass on the images' gradient by `product`.

    Parameters
    ----------
    model
        Any network. Layers of torch count by their exact class; they keep their hooks and their parameters. A layer
        whose weights require a gradient, or that runs under autocast or compiled, computes as it always does.
    """
    stems = [layer for layer in model.modules() if type(layer) is nn.Conv2d and _is_stem(layer)]
    for layer in stems:
        layer.__dict__["forward"] = MethodType(_forward, layer)
    try:
        yield
    finally:
        for layer in stems:
            del layer.__dict__["forward"]


def _is_stem(layer: nn.Conv2d) -> bool:
    """Whether `product` suits it. With fewer than 16 outputs the Python of a Function costs more than it saves."""
    chosen = input_gradient(layer, torch.Size((1, 1))) is INPUT_GRADIENTS["product"]
    return chosen and "forward" not in layer.__dict__


def _forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if not _applies(layer, x):
        return nn.Conv2d.forward(layer, x)
    made: Tensor = _Stem.apply(x, layer.weight, layer.bias, layer)
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
        and not forward_mode()
    )


class _Stem(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.layer = inputs
        ctx.save_for_backward(weight)
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _product(ctx.layer, weight.flatten(1).t(), gradient, ctx.shape), None, None, None
