r"""The operations of one forward pass, each with the tensors that it used.

A layer's stored weight is not always the weight that acts: standardising convolutions, weight norm and spectral norm
compute theirs, and a functional call may use any tensor. `traced` records the functions that torch sees while one image
passes, so a network has one list of operations however it is spelled:

    images -> pad -> conv2d(weight, bias) -> batch_norm(...) -> relu -> ...

A tensor that depends on the images is a `Signal`; other tensors are weights, as values.

`absorb` turns what is diagonal behind a convolution or a linear layer into a part of that layer, as evaluation acts:

    w <- s w,   b <- s b + t      for y = s x + t, one s and t for each channel, if nothing else reads x
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robflat_bench.core import NoValue
from robflat_bench.numerics.kernels import scale_and_shift
from robflat_bench.numerics.passes import uncounted

METADATA = re.compile(
    r"shape|size|stride|n?dim|ndimension|dtype|device|layout|numel|nelement|len|hash|names|element_size|get_device"
    r"|is_(?!nonzero)\w+|requires_grad_?"
)
"""Functions that read no value of a tensor."""
LAYERS = ("conv1d", "conv2d", "conv3d", "linear")
"""Functions of (input, weight, bias) whose weight's first dimension is the output channel."""
PRODUCTS = re.compile(r"r?matmul|mm|bmm|einsum|conv_transpose[123]d")
"""Functions that are linear in each tensor, besides LAYERS."""
SAME = re.compile(r"identity|\w*dropout[123]?d?|detach|data|clone|contiguous|to|float|double|type|type_as")
"""Functions that leave the values as they are, in evaluation."""


@dataclass(eq=False)
class Signal:
    """A tensor that depends on the images: an output of an operation (None: the images themselves)."""

    source: Operation | None
    shape: torch.Size
    readers: int = 0


@dataclass(eq=False)
class Operation:
    """A call of a function of torch.

    Parameters
    ----------
    name : str
        The function's name, without underscores at its ends: "conv2d", "add", "relu".
    function : callable
        The function.
    args, kwargs
        Its arguments, with a `Signal` in place of each tensor that depends on the images.
    module, path
        The innermost module that made the call, and its name in the network.
    outputs : list of Signal
        The tensors that it returned, or changed in place.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module
    path: str
    outputs: list[Signal] = field(default_factory=list)

    @property
    def signals(self) -> list[Signal]:
        """Its arguments that depend on the images."""
        return [value for value in leaves((self.args, self.kwargs)) if isinstance(value, Signal)]

    @property
    def weights(self) -> list[Tensor]:
        """Its floating-point tensors that do not."""
        given = leaves((self.args, self.kwargs))
        return [value for value in given if isinstance(value, Tensor) and value.is_floating_point()]

    @property
    def place(self) -> str:
        """Where it is, for a message."""
        return f"{self.name} in {type(self.module).__name__}{f' ({self.path})' if self.path else ''}"

    def layer(self) -> tuple[Signal, Tensor, Tensor | None] | None:
        """(input, weight, bias) of a convolution or a linear layer of one signal; None for other operations."""
        if self.name not in LAYERS:
            return None
        given = dict(zip(("input", "weight", "bias"), self.args, strict=False)) | self.kwargs
        x, weight, bias = (given.get(name) for name in ("input", "weight", "bias"))
        if len(self.signals) != 1 or not isinstance(x, Signal) or not isinstance(weight, Tensor):
            return None
        return x, weight, bias

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution or linear layer with another input, weight and bias."""
        further = {name: value for name, value in self.kwargs.items() if name not in ("input", "weight", "bias")}
        made: Tensor = self.function(x, weight, bias, *self.args[3:], **further)
        return made


@dataclass
class Trace:
    """The operations of one pass in their order, the images and the logits."""

    operations: list[Operation]
    images: Signal
    logits: Signal


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of nested tuples, lists and dicts with every leaf changed."""
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([replaced(item, change) for item in value]) if type(value) in (tuple, list) else value
    return change(value)


def traced(network: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> Trace:
    """The operations of one pass of the first image.

    Parameters
    ----------
    network
        In eval mode; its parameters require no gradient.
    x
        Images of the shape that it takes.
    forward
        Called in place of the network, whose own hooks then do not see the pass.

    Raises
    ------
    NoValue
        A part of the network hides its operations, e.g. scripted code.
    """
    recorder = _Recorder(network)
    with ExitStack() as hooks, uncounted(), torch.enable_grad():
        for path, module in network.named_modules():
            for hook in recorder.hooks(path, module):
                hooks.enter_context(hook)
        begin = x[:1].detach().requires_grad_() + 0  # a gradient betrays what hidden code made from the images
        images = recorder.note(begin, Signal(None, begin.shape))
        with recorder:
            logits = (forward or network)(begin)
    recorder.unchanged(logits, f"the end of {type(network).__name__}")
    end = recorder.known.get(id(logits))
    if end is None:
        raise NoValue(f"no operation that torch shows leads to the logits of {type(network).__name__}: is it scripted?")
    end.readers += 1
    return Trace(recorder.operations, images, end)


class _Recorder(TorchFunctionMode):
    """Records every function of torch that reads a signal."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.known: dict[int, Signal] = {}
        self.versions: dict[int, int] = {}
        self.kept: list[Tensor] = []  # so that no identity is used twice
        self.stack: list[tuple[str, nn.Module]] = [("", network)]

    def hooks(self, path: str, module: nn.Module) -> Iterator[Any]:
        """Hooks that keep the innermost module on the stack."""
        yield module.register_forward_pre_hook(lambda *_: self.stack.append((path, module)))
        yield module.register_forward_hook(lambda *_: self.stack.pop() and None)

    def note(self, tensor: Tensor, signal: Signal) -> Signal:
        self.known[id(tensor)] = signal
        self.versions[id(tensor)] = tensor._version
        self.kept.append(tensor)
        return signal

    def unchanged(self, value: Any, place: str) -> None:
        """NoValue if a known tensor was changed in place through a view of it: its signal is the one before."""
        if id(value) in self.known and value._version != self.versions[id(value)]:
            raise NoValue(f"{place} reads a tensor that was changed in place through a view of it")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = (func.__self__ if func.__name__ == "__get__" else func).__name__.strip("_")
        own = [value for value in leaves((args, kwargs)) if isinstance(value, Tensor)]
        relevant = not METADATA.fullmatch(name) and any(id(value) in self.known or value.requires_grad for value in own)
        if not relevant:
            return func(*args, **kwargs)
        path, module = self.stack[-1]
        own_args, own_kwargs = replaced((args, kwargs), lambda value: self.known.get(id(value), value))
        operation = Operation(name, func, own_args, own_kwargs, module, path)
        for value in own:
            self.unchanged(value, operation.place)
        if any(value.requires_grad for value in operation.weights):
            raise NoValue(f"{operation.place} reads a tensor that code which torch does not show made from the images")
        made = func(*args, **kwargs)
        for signal in operation.signals:
            signal.readers += 1
        tensors = [value for value in leaves(made) if isinstance(value, Tensor)]
        changed = own[:1] if made is None else []  # such as x[...] = y
        operation.outputs = [self.note(tensor, Signal(operation, tensor.shape)) for tensor in tensors or changed]
        self.operations.append(operation)
        return made


# ---------------------------------------------------------------------------------------------------------
# Diagonal operations
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def absorb(trace: Trace) -> Trace:
    """The trace with float64 layers that have absorbed the diagonal operations behind them, which become `identity`."""
    roots: dict[Signal, Operation] = {}  # outputs of layers that nothing has read yet but diagonal operations
    for operation in trace.operations:
        if layer := operation.layer():
            x, weight, bias = layer
            _set(operation, x, weight.detach().double(), None if bias is None else bias.detach().double())
            roots[operation.outputs[0]] = operation
        elif (only := _only(operation)) and only.readers == 1 and (root := roots.get(only)):
            if SAME.fullmatch(operation.name):
                roots[operation.outputs[0]] = root
            elif (found := diagonal(operation)) and (vectors := _by_channel(root, operation, *found)):
                scale, shift = vectors
                source, weight, bias = root.layer()  # type: ignore[misc]
                wide = scale.view(-1, *[1] * (weight.ndim - 1))
                _set(root, source, weight * wide, shift if bias is None else shift + scale * bias)
                operation.name = "identity"
                roots[operation.outputs[0]] = root
    return trace


def diagonal(operation: Operation) -> tuple[Tensor | float, Tensor | float] | None:
    """(s, t) of an operation y = s x + t of one signal x; None for other operations."""
    if operation.function is F.batch_norm:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
        mean, var = given["running_mean"], given["running_var"]
        if given.get("training") or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
            return None
        scale, shift = scale_and_shift(mean, var, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))
        wide = (-1, *[1] * (len(operation.signals[0].shape) - 2))
        return scale.view(wide), shift.view(wide)
    if operation.kwargs or len(operation.args) != 2 or len(operation.signals) != 1:
        return None
    first, second = operation.args
    left = isinstance(first, Signal)
    other = second if left else first
    if not isinstance(other, int | float | Tensor):
        return None
    c = other.detach().double() if isinstance(other, Tensor) else float(other)
    match operation.name:
        case "add" | "iadd" | "radd":
            return 1.0, c
        case "sub" | "isub" | "rsub":
            reversed_ = left == (operation.name == "rsub")
            return (-1.0, c) if reversed_ else (1.0, -c)
        case "mul" | "imul" | "rmul":
            return c, 0.0
        case "div" | "truediv" | "itruediv" if left:
            return 1 / c, 0.0
    return None


def _only(operation: Operation) -> Signal | None:
    signals = operation.signals
    return signals[0] if len(signals) == 1 and len(operation.outputs) == 1 else None


def _set(operation: Operation, x: Signal, weight: Tensor, bias: Tensor | None) -> None:
    operation.kwargs = {k: v for k, v in operation.kwargs.items() if k not in ("input", "weight", "bias")}
    operation.args = (x, weight, bias, *operation.args[3:])


def _by_channel(root: Operation, operation: Operation, *values: Tensor | float) -> list[Tensor] | None:
    """The values as one number for each output channel of the layer [C]; None where they vary along other axes."""
    weight, shape = root.args[1], operation.outputs[0].shape
    axis = len(shape) - 1 if root.name == "linear" else 1
    if shape[axis] != len(weight):
        return None
    vectors = []
    for value in values:
        tensor = torch.as_tensor(value, dtype=torch.float64, device=weight.device)
        tensor = tensor.reshape((1,) * (len(shape) - tensor.ndim) + tuple(tensor.shape))
        if tensor.ndim != len(shape) or tensor.numel() not in (1, tensor.shape[axis]):
            return None
        vectors.append(tensor.reshape(-1).expand(len(weight)))
    return vectors
