"""The steps of a program: an operation of a folded network, its kernels forward and backward, and their table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robflat_bench.numerics.kernels import INPUT_GRADIENTS, InputGradient, shared_out, spread

aten: Any = torch.ops.aten

Made = tuple[Tensor, bool]
"""A gradient, and whether nothing else holds it, so that it may be overwritten."""


@dataclass(eq=False)
class Step:
    """One operation of the list.

    Parameters
    ----------
    kernel : Kernel
        How it is computed.
    sources, target : tuple of int, int
        Places of its inputs and of its output among the values.
    path : str
        Name of the module that made the call.
    layer : nn.Module
        That module, within a `Program`: its parameters and buffers are read at each call.
    stride : int
        Of `every`.
    name : str
        Of the constant among the layer's buffers.
    inplace : bool
        Nothing else reads the first input, and it is memory of its own.
    gradient : InputGradient
        Of a convolution.
    prepared : tuple or None
        A convolution's weight, its version and address, and the form of it that `gradient` reads.
    """

    kernel: Kernel
    sources: tuple[int, ...]
    target: int
    path: str
    layer: Any = None
    stride: int = 1
    name: str = ""
    inplace: bool = False
    gradient: InputGradient = INPUT_GRADIENTS["usual"]
    prepared: tuple[Tensor, int, int, Tensor] | None = None


@dataclass(frozen=True)
class Kernel:
    """An operation's kernels.

    Parameters
    ----------
    forward : callable
        (step, *inputs) -> output.
    backward : callable
        (step, gradient, whether it may be overwritten, shape of the first input, kept tensor or None) -> gradient of
        the first input. A sum passes its gradient on to both inputs.
    fresh : bool
        Whether the output is memory of its own, which a later step may overwrite.
    keeps : callable or None
        (step, output) -> the tensor that the way back needs, as it is in the pass forward.
    adds : callable or None
        (step, gradient, gradient of the first input so far) adds to the latter in place, in place of `backward`.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., Made]
    fresh: bool = True
    keeps: Callable[[Step, Tensor], Tensor] | None = None
    adds: Callable[[Step, Tensor, Tensor], object] | None = None


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def _weight(step: Step, *_: Tensor) -> Tensor:
    weight: Tensor = step.layer.weight
    return weight


def _constant(step: Step, *_: Tensor) -> Tensor:
    constant: Tensor = step.layer._buffers[step.name]
    return constant


def _convolve(step: Step, x: Tensor) -> Tensor:
    layer = step.layer
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _unconvolve(step: Step, g: Tensor, own: bool, shape: torch.Size, weight: Tensor) -> Made:
    state, known = (weight._version, weight.data_ptr()), step.prepared
    if known is None or known[0] is not weight or known[1:3] != state:
        step.prepared = known = (weight, *state, step.gradient.prepare(step.layer, weight, shape[2:]))
    return step.gradient.apply(step.layer, known[3], g, shape), True


def _relu(step: Step, x: Tensor) -> Tensor:
    return x.relu_() if step.inplace else x.relu()


def _unrelu(step: Step, g: Tensor, own: bool, shape: torch.Size, out: Tensor) -> Made:
    if own and g.stride() == out.stride():
        return aten.threshold_backward.grad_input(g, out, 0, grad_input=g), True
    return aten.threshold_backward(g, out, 0), True


def _add(step: Step, x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y) if step.inplace else x + y


def _pass(step: Step, g: Tensor, own: bool, *_: object) -> Made:
    return g, own and len(step.sources) == 1


def _normalise(step: Step, x: Tensor) -> Tensor:
    norm = step.layer
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def _scale(step: Step, *_: Tensor) -> Tensor:
    norm = step.layer
    scale: Tensor = (norm.running_var + norm.eps).rsqrt()
    return (scale if norm.weight is None else scale * norm.weight).view(1, -1, 1, 1)


def _unnormalise(step: Step, g: Tensor, own: bool, shape: torch.Size, scale: Tensor) -> Made:
    return (g.mul_(scale) if own else g * scale), True


def _every(step: Step, x: Tensor) -> Tensor:
    return x[:, :, :: step.stride, :: step.stride]


def _spread(step: Step, g: Tensor, own: bool, shape: torch.Size, out: None) -> Made:
    return spread(g, shape, step.stride, last=True), True


def _share(step: Step, g: Tensor, own: bool, shape: torch.Size, out: None) -> Made:
    return shared_out(g, shape, last=True), True


KERNELS: dict[str, Kernel] = {
    "conv2d": Kernel(_convolve, _unconvolve, keeps=_weight),
    "linear": Kernel(
        lambda step, x: F.linear(x, step.layer.weight, step.layer.bias),
        lambda step, g, own, shape, weight: (g @ weight, True),
        keeps=_weight,
    ),
    "batch_norm": Kernel(_normalise, _unnormalise, keeps=_scale),
    "relu": Kernel(_relu, _unrelu, fresh=False, keeps=lambda step, out: out),
    "add": Kernel(_add, _pass),
    "iadd": Kernel(_add, _pass),
    "sub": Kernel(lambda step, x: x - _constant(step), _pass),
    "div": Kernel(
        lambda step, x: x / _constant(step),
        lambda step, g, own, shape, constant: (g / constant, True),
        keeps=_constant,
    ),
    "getitem": Kernel(_every, _spread, fresh=False, adds=lambda step, g, so_far: _every(step, so_far).add_(g)),
    "clone": Kernel(lambda step, x: x, _pass, fresh=False),
    "mean": Kernel(lambda step, x: x.mean(dim=(2, 3)), _share),
    "adaptive_avg_pool2d": Kernel(lambda step, x: F.adaptive_avg_pool2d(x, 1), _share),
    "flatten": Kernel(
        lambda step, x: x.flatten(1), lambda step, g, own, shape, _: (g.reshape(shape), False), fresh=False
    ),
}
"""Name of an operation of torch -> its kernels."""
