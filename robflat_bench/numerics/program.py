r"""A folded network as a list of kernels: the same logits without modules, the same gradients without autograd.

    x -> - mean -> / std -> conv -> relu -> ... -> + -> relu -> mean -> linear -> logits

An attack calls the same frozen network again and again. `program` reads the operations of one pass, and `Program` then
calls their kernels itself, forward and backward, as one node of autograd's graph. It saves time because

- no module is called, and no graph is built,
- a ReLU and a sum overwrite their input if nothing else reads it; only outputs of ReLUs are kept for the way back,
- where gradients meet, they are summed into one that nothing else holds; that of a slice is added at its pixels alone.

Logits are equal bit for bit. The images' gradient is equal up to rounding: each convolution passes it back in the
spelling that is fastest for its shape (`kernels.INPUT_GRADIENTS`).

`steps.KERNELS` names the known operations. A network with any other runs as it always does, and so does one with hooks
on a layer or gradients of its own (`autograd.Function`), under autocast, forward-mode differentiation or `torch.func`,
compiled, on a GPU, or with a weight that requires a gradient. Second derivatives are computed by the network, too.

As for autograd, weights may not change between a pass forward and its way back. A program does not see a weight that is
written through `.data` between two passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from robflat_bench.numerics import kernels
from robflat_bench.numerics.gradients import is_guarded, nodes
from robflat_bench.numerics.kernels import PRECISIONS, forward_mode, input_gradient
from robflat_bench.numerics.operations import Operation, Trace, traced
from robflat_bench.numerics.steps import KERNELS, Made, Step
from robflat_bench.numerics.structure import hooks_inside, looking

# ---------------------------------------------------------------------------------------------------------
# From a trace to steps
# ---------------------------------------------------------------------------------------------------------


def program(model: nn.Module, x: Tensor) -> list[Step]:
    """The steps of a folded network; none if it has an operation that is not known, or no convolution.

    Parameters
    ----------
    model
        In eval mode, folded, its parameters without gradient.
    x
        Images of the shape that it takes; the first two are used.
    """
    if not any(type(layer) is nn.Conv2d for layer in model.modules()):
        return []
    try:
        images = x[torch.arange(2) % len(x)].detach()
        with looking(model, x) as steady:
            steps = _steps(traced(model, images, model.forward))
            return steps if steps and _is_exact(Program(model, steps, x.shape[1:]), images) and steady() else []
    except Exception:  # of a network that fails, or that a trace cannot follow, the network itself says what is wrong
        return []


def _is_exact(found: Program, images: Tensor) -> bool:
    """Whether logits are equal, and the gradient up to rounding: parts of the network may pass on none or another."""
    variable = images.clone().requires_grad_()
    with torch.enable_grad():
        logits = found.eager(variable)
    if logits.dtype not in PRECISIONS or any(map(_is_foreign, nodes(logits))):
        return False
    upstream = torch.linspace(1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    (expected,) = torch.autograd.grad((upstream * logits).sum(), variable)  # `grad_outputs` would import SymPy
    kept: list[Tensor] = []
    shapes: list[torch.Size] = []
    with torch.no_grad():
        if not torch.equal(found.forward(images, kept, shapes), logits):
            return False
        gradient = found.backward(upstream, kept, shapes)
    bound = 1e4 * torch.finfo(logits.dtype).eps * float(expected.abs().max())
    return torch.allclose(gradient, expected, rtol=0, atol=bound)


def _is_foreign(node: Any) -> bool:
    """Whether a node of the graph has a gradient of someone's own, such as a straight-through estimator's."""
    function = getattr(node, "_forward_cls", None)
    return function is not None and function.__module__ != kernels.__name__


def _steps(trace: Trace) -> list[Step]:
    """A step for each operation. Values are counted in the order in which they are made; 0 are the images."""
    places, fresh, steps = {trace.images: 0}, {trace.images: False}, []
    for operation in trace.operations:
        kernel, details = KERNELS.get(operation.name), _details(operation)
        known = all(signal in places for signal in operation.signals) and len(operation.outputs) == 1
        if kernel is None or details is None or not known:
            return []
        (made,), signals = operation.outputs, operation.signals
        if not made.readers:
            return []
        places[made], fresh[made] = len(places), kernel.fresh
        inplace = fresh[signals[0]] and signals[0].readers == 1
        sources = tuple(places[signal] for signal in signals)
        steps.append(Step(kernel, sources, places[made], operation.path, inplace=inplace, **details))
    return sorted(steps, key=_turn) if steps and trace.logits is made else []


def _turn(step: Step) -> float:
    """A slice is taken as soon as its source is made, so its gradient comes last and is added to those of others."""
    return step.sources[0] + 0.5 if step.kernel.adds else step.target


def _details(operation: Operation) -> dict[str, Any] | None:
    """Further fields of the step; None where the operation is not called in the form that its kernel knows."""
    name, layer, signals = operation.name, operation.module, operation.signals
    args, kwargs = operation.args, operation.kwargs
    first = len(signals) == 1 and args[:1] == (signals[0],)
    match name:
        case "conv2d" if first and type(layer) is nn.Conv2d and args[1] is layer.weight:
            plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
            last = layer.weight.is_contiguous(memory_format=torch.channels_last)
            return {"gradient": input_gradient(layer, args[0].shape[2:])} if plain and last else None
        case "linear" if first and type(layer) is nn.Linear and args[1] is layer.weight:
            return {}
        case "batch_norm" if type(layer) is nn.BatchNorm2d and first and args[1] is layer.running_mean is not None:
            return {} if not layer.training else None
        case "relu" if first:
            return {}
        case "add" | "iadd" if len(signals) == 2 == len(args) and not kwargs and signals[0].shape == signals[1].shape:
            return {} if signals[0] is not signals[1] else None
        case "sub" | "div" if first and len(args) == 2 and not kwargs and operation.outputs[0].shape == args[0].shape:
            found = [key for key, value in layer._buffers.items() if value is args[1]]
            return {"name": found[0]} if found else None
        case "getitem" if first and len(signals[0].shape) == 4:
            return _stride(args[1])
        case "clone" if first and len(args) == 1 and not kwargs:
            return {}
        case "adaptive_avg_pool2d" if first and args[1:] in ((1,), ((1, 1),)) and not kwargs:
            return {} if len(signals[0].shape) == 4 else None
        case "flatten" if first and args[1:] in ((1,), (1, -1)) and not kwargs:
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
        What `program` found in it.
    size
        Shape of an image: the network may treat others in another way.
    """

    def __init__(self, model: nn.Module, steps: Sequence[Step], size: torch.Size) -> None:
        self.model, self.size = model, size
        modules = dict(model.named_modules())
        self.steps = [replace(step, layer=modules[step.path]) for step in steps]
        self.last = {place: step for step in self.steps for place in step.sources}
        """Place -> the last step that reads it."""
        tables = (step.layer._parameters for step in self.steps)
        self.tables = list({id(table): table for table in tables if table}.values())
        self.hooks = hooks_inside(model)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B,K]."""
        if not self.applies(x):
            return self.eager(x)
        if x.requires_grad and torch.is_grad_enabled():
            made: Tensor = _Run.apply(x, self)
            return made
        return self.forward(x, [], [])

    def eager(self, x: Tensor) -> Tensor:
        """The network's own forward."""
        made: Tensor = type(self.model).forward(self.model, x)
        return made

    def applies(self, x: Tensor) -> bool:
        """Whether autograd would do here what the program does."""
        return (
            x.device.type == "cpu"
            and x.shape[1:] == self.size
            and not any(self.hooks)
            and not torch._C._are_functorch_transforms_active()
            and not forward_mode()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and not is_guarded(self.model)
            and not any(map(_moves, (weight for table in self.tables for weight in table.values())))
        )

    def forward(self, x: Tensor, kept: list[Tensor], shapes: list[torch.Size]) -> Tensor:
        """Logits; adds what the way back needs."""
        values: list[Any] = [x] + [None] * len(self.steps)
        for step in self.steps:
            inputs = [values[place] for place in step.sources]
            shapes.append(inputs[0].shape)
            values[step.target] = made = step.kernel.forward(step, *inputs)
            if keeps := step.kernel.keeps:
                kept.append(keeps(step, made))
            for place in step.sources:
                if self.last[place] is step:
                    values[place] = None
        return made

    def backward(self, gradient: Tensor, kept: list[Tensor], shapes: list[torch.Size]) -> Tensor:
        """The images' gradient."""
        found: list[Any] = [None] * (len(self.steps) + 1)
        found[-1] = (gradient, False)
        for step, shape in zip(reversed(self.steps), reversed(shapes), strict=True):
            kernel, (g, own), so_far = step.kernel, found[step.target], found[step.sources[0]]
            found[step.target] = None
            if kernel.adds and so_far and so_far[1]:
                kernel.adds(step, g, so_far[0])
                continue
            made = kernel.backward(step, g, own, shape, kept.pop() if kernel.keeps else None)
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


def _moves(weight: Tensor | None) -> bool:
    return weight is not None and weight.requires_grad


class _Run(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, program: Program) -> Tensor:
        kept: list[Tensor] = []
        ctx.shapes, ctx.program = [], program
        logits = program.forward(x, kept, ctx.shapes)
        ctx.save_for_backward(x, *kept)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        x, *kept = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return ctx.program.backward(gradient, kept, ctx.shapes), None
        (made,) = torch.autograd.grad(ctx.program.eager(x), x, gradient, create_graph=True)
        return made, None
