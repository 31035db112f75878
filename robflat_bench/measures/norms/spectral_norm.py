r"""The product of the operator norms of all layers, on the log scale:

    sum_l log || A_l ||_2    over convolutions, linear layers and products with a weight; factors of channels folded in

A_l is the layer as it acts on the whole image: a linear map with its actual weight, input size, padding and stride,
without bias; its norm differs from the norm of the reshaped kernel. The layers are those of one pass
(`numerics.operations`), so a standardised or parametrised weight is read as it is used, functional calls count, and a
layer that acts twice counts twice. Functions that hide weights (fused attention, recurrent cells) have no value.
In a network without shortcuts the value bounds the logarithm of the Lipschitz constant; in a residual network it bounds
nothing. Layers of zero norm, whose log is -inf, and normalisation and factors that no layer absorbs are left out; the
details `zero_layers` and `unfolded_norms` (of batch normalisation) count them.
Bartlett et al.: NeurIPS 2017; Jiang et al.: ICLR 2020; operator norms of convolutions: Sedghi et al.: ICLR 2019.

Norms come from power iteration on A'A, from a start keyed by the layer's name and shape; A' is the gradient of A. The
detail `residual` is the largest ||A'A v - s^2 v|| / s^2 of a layer; some squared singular value lies that close to s^2,
relative to it.
Invariant to scaling a convolution that its normalisation undoes, and to scaling consecutive layers around a ReLU by a
and 1/a. Multiplying the logits by c adds log c.
Standard error: None, because no example is read, only the shape of the images.
Cost: `iterations` forward and backward passes of one image through each convolution.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import Field, PositiveInt

from robflat_bench.core import (
    Examples,
    Measure,
    MeasureInfo,
    Measurement,
    NoValue,
    Number,
    Params,
    Passes,
    Workspace,
    lazy_imports,
)
from robflat_bench.core.works import cite

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.core.randomness import generator
    from robflat_bench.measures.units import units
    from robflat_bench.numerics.operations import LAYERS, PRODUCTS, Operation, Signal, Trace, absorb, replaced, traced


class SpectralNormParams(Params):
    iterations: PositiveInt = Field(default=100, description="Power iterations for each layer, at most.")
    tolerance: Number = Field(default=1e-4, ge=0, description="Residual at which the iteration of a layer ends.")


INFO = MeasureInfo(
    name="spectral-norm",
    summary="log-sum of the operator norms of convolutions (normalisation folded in) and linear layers",
    factory=f"{__name__}:SpectralNorm",
    params=SpectralNormParams,
    citation=cite("jiang2020fantastic"),
    title="log-sum of operator norms",
    example={"iterations": 20},
    passes={"": Passes()},
    powers={"layers": 0, "filters": 0},
)


BESIDE = re.compile(
    r"[ir]?(add|sub|mul)|div|i?truediv|cat|concat|stack|where|maximum|minimum|addcmul|prelu"
    r"|(batch|layer|group|instance|rms)_norm|scaled_dot_product_attention"
)
"""Functions whose weights are biases, factors or masks: no layer."""


class SpectralNorm(Measure):
    """Arrays: `operator_norms` [layers], in the order of the pass.

    Details: `residual`, and the counts `layers`, `zero_layers`, `unfolded_norms`.
    """

    params: SpectralNormParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        with attacked(model):
            trace = absorb(traced(model, examples.x))

        layers = [*_named(trace)]

        def norm_of(place: int) -> dict[str, np.ndarray]:
            name, operator = layers[place]
            return {"norm": np.array(self._operator_norm(operator, workspace.seed, INFO.name, name))}

        # By its place: a module's name may be empty, or hold characters that no unit's name has.
        found = units(workspace.journal, "layer", len(layers), norm_of).get("norm", np.zeros((0, 2)))
        norms = np.array([norm for norm, _ in found])
        positive = [norm for norm in norms if norm > 0]
        return Measurement(
            value=sum(math.log(norm) for norm in positive),
            standard_error=None,
            n=0,
            details={
                "residual": max((float(residual) for _, residual in found), default=0.0),
                "layers": float(len(positive)),
                "zero_layers": float(len(norms) - len(positive)),
                "unfolded_norms": float(sum(operation.name == "batch_norm" for operation in trace.operations)),
            },
            arrays={"operator_norms": norms},
        )

    def _operator_norm(self, operator: Operator, *key: int | str) -> tuple[float, float]:
        """The norm of a layer, and its residual; exact for a matrix."""
        if operator.matrix is not None:
            return float(torch.linalg.matrix_norm(operator.matrix, 2)), 0.0
        start = torch.randn(operator.shape, generator=generator(*key, *operator.shape), dtype=torch.float64)
        v, squared, residual = (start / start.norm()).to(operator.device), 0.0, 0.0
        offset = operator.apply(torch.zeros_like(v))
        for _ in range(self.params.iterations):
            variable = v.requires_grad_()
            with torch.enable_grad():
                image = operator.apply(variable) - offset
                # The product instead of grad's third argument, for which torch imports a compiler's symbols.
                along = (image * image.detach()).sum()
            (back,) = torch.autograd.grad(along, variable)
            squared, length = float(image.detach().square().sum()), float(back.norm())
            if length == 0:
                return 0.0, 0.0
            residual = float((back - squared * v.detach()).norm()) / squared
            v = back / length
            if residual < self.params.tolerance:
                break
        return math.sqrt(squared), residual


@dataclass(frozen=True)
class Operator:
    """A layer as a map of inputs of a shape, affine; `matrix` where the map multiplies by it along the last axis."""

    shape: torch.Size
    device: torch.device
    apply: Callable[[Tensor], Tensor]
    matrix: Tensor | None = None


def _named(trace: Trace) -> Iterator[tuple[str, Operator]]:
    """The layers in the order of the pass, each named by its module; a module that acts again gets a number."""
    seen: Counter[str] = Counter()
    for operation in trace.operations:
        if operator := _operator(operation):
            seen[operation.path] += 1
            times = seen[operation.path]
            yield operation.path if times == 1 else f"{operation.path}#{times}", operator


def _operator(operation: Operation) -> Operator | None:
    """The layer that an operation is; None where it is none. NoValue where it hides weights."""
    if layer := operation.layer():
        x, weight, _ = layer
        if operation.name == "linear":
            return Operator(x.shape, weight.device, lambda v: operation.call(v, weight, None), weight)
        padding = x.source if x.source and x.source.name == "pad" and x.readers == 1 else None
        begin = padding.signals[0] if padding else x

        def convolve(v: Tensor) -> Tensor:
            return operation.call(_called(padding, v) if padding else v, weight, None)

        return Operator(begin.shape, weight.device, convolve)
    if PRODUCTS.fullmatch(operation.name):
        if len(operation.signals) == 1:
            (x,) = operation.signals
            return Operator(x.shape, operation.weights[0].device, lambda v: _called(operation, v))
        if not operation.weights:
            return None  # a product of two signals, as in attention
    wide = any(sum(size > 1 for size in weight.shape) > 1 for weight in operation.weights)
    if operation.name in LAYERS or (wide and not BESIDE.fullmatch(operation.name)):
        raise NoValue(f"spectral-norm cannot read the weights of {operation.place}")
    return None


def _called(operation: Operation, v: Tensor) -> Tensor:
    """The operation with v in place of its only signal, in float64."""

    def given(value: object) -> object:
        if isinstance(value, Signal):
            return v
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    args, kwargs = replaced((operation.args, operation.kwargs), given)
    made: Tensor = operation.function(*args, **kwargs)
    return made
