r"""The path norm: squared weights multiplied along each path from inputs to logits, summed over all paths,

    log sum_paths prod_{l in path} w_l^2   =   log sum_k F_k(1),   F = the network, every weight squared

Paths start at inputs of 1, behind the constant that normalises pixels, and at biases, which are squared too (as
published). The weights are those that act: `numerics.operations` lists the functions that a pass calls with the tensors
that they use, batch normalisation and other factors of channels folded in. One pass in float64 through the list, with
every weight squared, sums all paths. Nothing in it is negative, so ReLU is the identity; it replaces SiLU, GELU and
Mish. Shortcuts add, pooling stays. What no layer absorbs is a diagonal layer, scale^2 x + shift^2.

Networks that call any other function on their images have no value, and the reason names the function and its module:
other activations, normalisation that depends on the input, gates and attention, which multiply two signals.
Neyshabur et al.: COLT 2015; Jiang et al.: ICLR 2020.

Invariant to scaling a convolution that its normalisation undoes, and to multiplying a ReLU unit's inputs by a and its
outputs by 1/a. Multiplying the logits by c adds 2 log c.
Standard error: None, because no example is read. Cost: one forward pass.
"""

from __future__ import annotations

import math
import re

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Passes, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.numerics.operations import (
        PRODUCTS,
        SAME,
        Operation,
        Signal,
        Trace,
        absorb,
        diagonal,
        replaced,
        traced,
    )


INFO = MeasureInfo(
    name="path-norm",
    summary="log-sum of squared weights along all paths (normalisation folded in)",
    factory=f"{__name__}:PathNorm",
    citation=cite("jiang2020fantastic"),
    title="log path norm",
    passes={"": Passes()},
    powers=FUNCTION,
)

ACTIVATIONS = ("relu", "silu", "gelu", "mish")
"""Functions that are the identity here."""
ARRANGING = re.compile(
    r"reshape|view|(un)?flatten|permute|transpose|swapaxes|movedim|(un)?squeeze|getitem|chunk|split|unbind|narrow|select"
    r"|expand|repeat|flip|roll|m?t|cat|concat|stack|pixel_(un)?shuffle|channel_shuffle"
)
"""Functions that move numbers to other places."""
POOLING = re.compile(r"mean|sum|amax|(adaptive_)?(avg|max)_pool[123]d")


class PathNorm(Measure):
    """No arrays."""

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        with attacked(model):
            trace = absorb(traced(model, examples.x))
        with torch.no_grad():
            total = float(_logits_of_squares(trace, examples.x.device).sum())
        float64 = torch.finfo(torch.float64)
        return Measurement(math.log(min(max(total, float64.tiny), float64.max)), standard_error=None, n=0)


def _logits_of_squares(trace: Trace, device: torch.device) -> Tensor:
    """The logits for inputs of 1 and squared weights, float64."""
    values = {trace.images: torch.ones(trace.images.shape, dtype=torch.float64, device=device)}
    pixels = {trace.images}  # and the images normalised by constants
    for operation in trace.operations:
        constant = _normalises(operation, pixels)
        pixels.update(operation.outputs if constant else ())
        made = values[operation.signals[0]] if constant else _squared(operation, values)
        if operation.outputs:  # x.type() makes no tensor
            values.update(zip(operation.outputs, [made] if isinstance(made, torch.Tensor) else made, strict=True))
    return values[trace.logits]


def _normalises(operation: Operation, pixels: set[Signal]) -> bool:
    """Whether it shifts, scales or copies the images by constants, before any layer."""
    if len(operation.signals) != 1 or operation.signals[0] not in pixels or len(operation.outputs) != 1:
        return False
    constant = not any(isinstance(weight, nn.Parameter) for weight in operation.weights)
    return constant and (diagonal(operation) is not None or SAME.fullmatch(operation.name) is not None)


def _squared(operation: Operation, values: dict[Signal, Tensor]) -> Tensor | tuple[Tensor, ...]:
    """What the operation makes of these values where its weights are squared. NoValue where that is not known."""
    name, given = operation.name, [values[signal] for signal in operation.signals]
    found = diagonal(operation)
    if name in ACTIVATIONS or (SAME.fullmatch(name) and not _random(operation)):
        return given[0]
    if name in ("add", "iadd", "sub", "isub") and len(given) == 2 and not operation.kwargs:
        return given[0] + given[1]
    if layer := operation.layer():
        _, weight, bias = layer
        return operation.call(given[0], weight.square(), None if bias is None else bias.square())
    if found:
        scale, shift = found
        return given[0] * scale**2 + shift**2
    linear = len(given) == 1 and PRODUCTS.fullmatch(name) is not None
    if linear or ARRANGING.fullmatch(name) or POOLING.fullmatch(name) or (name == "pad" and not any(_fill(operation))):
        args, kwargs = replaced((operation.args, operation.kwargs), lambda value: _value(value, values))
        return operation.function(*args, **kwargs)  # type: ignore[no-any-return]
    raise NoValue(
        f"path-norm is not defined for {operation.place}; it knows convolutions, linear layers, batch normalisation in "
        f"evaluation, {', '.join(ACTIVATIONS)}, sums and pooling"
    )


def _value(value: object, values: dict[Signal, Tensor]) -> object:
    """The value of a signal, the square of a weight, everything else as it is."""
    if isinstance(value, Signal):
        return values[value]
    return value.double().square() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _random(operation: Operation) -> bool:
    """Whether it is a dropout that acts."""
    flags = [value for value in (*operation.args[2:3], operation.kwargs.get("training")) if value is not None]
    return "dropout" in operation.name and any(flags)


def _fill(operation: Operation) -> list[float]:
    """The numbers that a padding puts around the image."""
    given = dict(zip(("input", "pad", "mode", "value"), operation.args, strict=False)) | operation.kwargs
    return [given.get("value") or 0.0]
