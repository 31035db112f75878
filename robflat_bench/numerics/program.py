r"""A folded network as a list of kernels: the same numbers, bit for bit, without modules and without autograd.

    x -> - mean -> / std -> conv -> relu -> ... -> + -> relu -> mean -> linear -> logits

An attack calls the same frozen network again and again. `program` reads the operations of one pass, and `Program` then
calls their kernels itself, forward and backward, as one node of autograd's graph. It saves a third of the time of
a network whose convolutions take 50 microseconds each, because

- no module is called, and no graph is built,
- a ReLU and a sum overwrite their input if nothing else reads it; only outputs of ReLUs are kept for the way back,
- where gradients meet, they are summed into one that nothing else holds.

`KERNELS` names the known operations. A network with any other, with hooks on a layer, under autocast, compiled or with
a weight that requires a gradient runs as it always does. A second derivative is computed by the network, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from robflat_bench.core import NoValue
from robflat_bench.numerics.gradients import is_guarded
from robflat_bench.numerics.kernels import INPUT_GRADIENTS, InputGradient, input_gradient
from robflat_bench.numerics.operations import Operation, Signal, Trace, traced

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
    layer : nn.Module
        The module that made the call: its parameters and buffers are read at each call.
    stride : int
        Of `every`.
    name : str
        Of the constant among the layer's buffers.
    inplace : bool
        Nothing else reads the first input, and it is memory of its own.
    gradient : InputGradient
        Of a convolution.
    prepared : tuple or None
        A convolution's weight, its version, and what `gradient` has prepared of it.
    """

    kernel: Kernel
    sources: tuple[int, ...]
    target: int
    layer: Any
    stride: int = 1
    name: str = ""
    inplace: bool = False
    gradient: InputGradient = INPUT_GRADIENTS["usual"]
    prepared: tuple[Tensor, int, Tensor] | None = None


@dataclass(frozen=True)
class Kernel:
    """An operation's kernels.

    Parameters
    ----------
    forward : callable
        (step, *inputs) -> output.
    backward : callable
        (step, gradient, whether it may be overwritten, shape of the first input, output or None) -> gradient of the
        first input. A sum passes its gradient on to both inputs.
    fresh : bool
        Whether the output is memory of its own.
    keeps : bool
        Whether the way back needs the output.
    """

    forward: Callable[..., Tensor]
    backward: Callable[..., Made]
    fresh: bool = True
    keeps: bool = False


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


def _convolve(step: Step, x: Tensor) -> Tensor:
    layer = step.layer
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _unconvolve(step: Step, g: Tensor, own: bool, shape: torch.Size, out: None) -> Made:
    layer, gradient = step.layer, step.gradient
    if step.prepared is None or step.prepared[0] is not layer.weight or step.prepared[1] != layer.weight._version:
        step.prepared = (layer.weight, layer.weight._version, gradient.prepare(layer, shape[2:]))
    return gradient.apply(layer, step.prepared[2], g, shape), True


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


def _spread(step: Step, g: Tensor, own: bool, shape: torch.Size, out: None) -> Made:
    b, c, h, w = shape
    made = g.new_zeros(b, h, w, c).permute(0, 3, 1, 2)
    made[:, :, :: step.stride, :: step.stride] = g
    return made, True


def _share(step: Step, g: Tensor, own: bool, shape: torch.Size, out: None) -> Made:
    b, c, h, w = shape
    return (g / (h * w))[:, None, None, :].expand(b, h, w, c).contiguous().permute(0, 3, 1, 2), True


KERNELS: dict[str, Kernel] = {
    "conv2d": Kernel(_convolve, _unconvolve),
    "linear": Kernel(
        lambda step, x: F.linear(x, step.layer.weight, step.layer.bias), lambda step, g, *_: (g @ step.layer.weight, True)
    ),
    "relu": Kernel(_relu, _unrelu, keeps=True),
    "add": Kernel(_add, _pass),
    "sub": Kernel(lambda step, x: x - step.layer._buffers[step.name], _pass),
    "div": Kernel(
        lambda step, x: x / step.layer._buffers[step.name],
        lambda step, g, *_: (g / step.layer._buffers[step.name], True),
    ),
    "getitem": Kernel(lambda step, x: x[:, :, :: step.stride, :: step.stride], _spread, fresh=False),
    "clone": Kernel(lambda step, x: x, _pass, fresh=False),
    "mean": Kernel(lambda step, x: x.mean(dim=(2, 3)), _share),
}
"""Name of an operation of torch -> its kernels."""


# ---------------------------------------------------------------------------------------------------------
# From a trace to steps
# ---------------------------------------------------------------------------------------------------------


def program(model: nn.Module, x: Tensor) -> Program | None:
    """The program of a folded network; None if it has an operation that is not known.

    Parameters
    ----------
    model
        In eval mode, folded, its parameters without gradient.
    x
        Images of the shape that it takes; the first is used.
    """
    try:
        trace = traced(model, x)
    except (NoValue, RuntimeError):
        return None
    steps = _steps(trace)
    return None if steps is None else Program(model, steps, len(steps) + 1)


def _steps(trace: Trace) -> list[Step] | None:
    """The steps, whose values are counted from 0, the images, in their order."""
    places, fresh, steps = {trace.images: 0}, {trace.images: False}, []
    for operation in trace.operations:
        kernel, details = KERNELS.get(operation.name), _details(operation)
        known = all(signal in places for signal in operation.signals) and len(operation.outputs) == 1
        if kernel is None or details is None or not known:
            return None
        (made,), signals = operation.outputs, operation.signals
        places[made], fresh[made] = len(places), kernel.fresh
        inplace = fresh[signals[0]] and signals[0].readers == 1
        sources = tuple(places[signal] for signal in signals)
        steps.append(Step(kernel, sources, places[made], operation.module, inplace=inplace, **details))
    return steps if steps and trace.logits is operation.outputs[0] else None


def _details(operation: Operation) -> dict[str, Any] | None:
    """Further fields of the step; None where the operation is not called in the form that its kernel knows."""
    name, layer, args, kwargs, signals = (
        operation.name,
        operation.module,
        operation.args,
        operation.kwargs,
        operation.signals,
    )
    first = len(signals) == 1 and args[:1] == (signals[0],)
    match name:
        case "conv2d" if first and type(layer) is nn.Conv2d and args[1] is layer.weight:
            plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            last = layer.weight.is_contiguous(memory_format=torch.channels_last)
            return {"gradient": input_gradient(layer, args[0].shape[2:])} if plain and last else None
        case "linear" if first and type(layer) is nn.Linear and args[1] is layer.weight:
            return {}
        case "relu" if first:
            return {}
        case "add" if len(signals) == 2 == len(args) and not kwargs and signals[0].shape == signals[1].shape:
            return {} if signals[0] is not signals[1] else None
        case "sub" | "div" if first and len(args) == 2 and not kwargs and operation.outputs[0].shape == args[0].shape:
            found = [key for key, value in layer._buffers.items() if value is args[1]]
            return {"name": found[0]} if found else None
        case "getitem" if first and len(signals[0].shape) == 4:
            return _stride(args[1])
        case "clone" if first and len(args) == 1 and not kwargs:
            return {}
        case "mean" if first and len(args) == 1 and kwargs == {"dim": (2, 3)} and len(signals[0].shape) == 4:
            return {}
    return None


def _stride(index: object) -> dict[str, Any] | None:
    """The stride of [:, :, ::s, ::s]."""
    if not isinstance(index, tuple) or len(index) != 4 or not all(isinstance(part, slice) for part in index):
        return None
    stride = index[2].step
    whole, strided = slice(None), slice(None, None, stride)
    return {"stride": stride} if index == (whole, whole, strided, strided) and isinstance(stride, int) else None


# ---------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------


class Program:
    """Computes a folded network's logits and the images' gradient.

    Parameters
    ----------
    model
        The network, which computes what the program does not.
    steps
        In the order of their outputs.
    count
        Number of values, the images included.
    """

    def __init__(self, model: nn.Module, steps: Sequence[Step], count: int) -> None:
        self.model = model
        self.steps = steps
        self.count = count
        self.last = {place: step for step in steps for place in step.sources}
        """Place -> the last step that reads it."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B,K]."""
        if not self.applies(x):
            return self.eager(x)
        if x.requires_grad and torch.is_grad_enabled():
            made: Tensor = _Run.apply(x, self)
            return made
        return self.forward(x, [], [])

    def forget(self) -> None:
        """Drop what was prepared of the weights."""
        for step in self.steps:
            step.prepared = None

    def eager(self, x: Tensor) -> Tensor:
        """The network's own forward."""
        made: Tensor = type(self.model).forward(self.model, x)
        return made

    def applies(self, x: Tensor) -> bool:
        """Whether autograd would do here what the program does."""
        return (
            x.device.type == "cpu"
            and x.dim() == 4
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not is_guarded(self.model)
            and not any(weight.requires_grad for step in self.steps for weight in step.layer._parameters.values() if weight is not None)
        )

    def forward(self, x: Tensor, kept: list[Tensor], shapes: list[torch.Size]) -> Tensor:
        """Logits; adds what the way back needs."""
        values: list[Any] = [x] + [None] * len(self.steps)
        for step in self.steps:
            inputs = [values[place] for place in step.sources]
            shapes.append(inputs[0].shape)
            values[step.target] = made = step.kernel.forward(step, *inputs)
            if step.kernel.keeps:
                kept.append(made)
            for place in step.sources:
                if self.last[place] is step:
                    values[place] = None
        return made

    def backward(self, gradient: Tensor, kept: list[Tensor], shapes: list[torch.Size]) -> Tensor:
        """The images' gradient."""
        found: list[Any] = [None] * self.count
        found[-1] = (gradient, False)
        for step, shape in zip(reversed(self.steps), reversed(shapes), strict=True):
            out = kept.pop() if step.kernel.keeps else None
            made = step.kernel.backward(step, *found[step.target], shape, out)
            found[step.target] = None
            for place in step.sources:
                found[place] = made if found[place] is None else _sum(found[place], made)
        images: Tensor = found[0][0]
        return images


def _sum(first: Made, second: Made) -> Made:
    """Both gradients, in the memory of one of them if nothing else holds it."""
    for (one, own), (other, _) in ((second, first), (first, second)):
        if own and one.stride() == other.stride():
            return one.add_(other), True
    return first[0] + second[0], True


class _Run(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, program: Program) -> Tensor:  # type: ignore[override]
        kept: list[Tensor] = []
        ctx.shapes, ctx.program = [], program
        logits = program.forward(x, kept, ctx.shapes)
        ctx.save_for_backward(x, *kept)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:  # type: ignore[override]
        x, *kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return ctx.program.backward(gradient, kept, ctx.shapes), None
        (made,) = torch.autograd.grad(ctx.program.eager(x), x, gradient, create_graph=True)
        return made, None
