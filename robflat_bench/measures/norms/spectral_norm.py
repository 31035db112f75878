r"""The product of the operator norms of all layers, on the log scale:

    sum_l log || A_l ||_2    over convolutions (batch normalisation folded in) and linear layers

A_l is the layer as a linear map of the whole image, with its actual input size, padding and stride, without bias; its
norm differs from the norm of the reshaped kernel. In a network without shortcuts the value bounds the logarithm of the
Lipschitz constant; in a residual network it bounds nothing. Layers of zero norm, whose log is -inf, and batch
normalisation that no convolution absorbs are left out; the details `zero_layers` and `unfolded_norms` count them.
Bartlett et al.: NeurIPS 2017; Jiang et al.: ICLR 2020; operator norms of convolutions: Sedghi et al.: ICLR 2019.

Norms come from power iteration on A'A, from a start keyed by the layer's name and shape. The detail `residual` is the
largest ||A'A v - s^2 v|| / s^2 of a layer; some squared singular value lies that close to s^2, relative to it.
Invariant to scaling a convolution that its normalisation undoes, and to scaling consecutive layers around a ReLU by a
and 1/a. Multiplying the logits by c adds log c.
Standard error: None, because no example is read, only the shape of the images.
Cost: `iterations` forward and backward passes of one image through each convolution.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field, PositiveInt

from robflat_bench.core import (
    Examples,
    Measure,
    MeasureInfo,
    Measurement,
    Number,
    Params,
    Passes,
    Workspace,
    lazy_imports,
)

if TYPE_CHECKING:
    Layer: TypeAlias = "nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear"

with lazy_imports():
    import numpy as np
    import torch
    from torch import nn

    from robflat_bench.core.randomness import generator
    from robflat_bench.measures.recording import recorded
    from robflat_bench.measures.units import unit
    from robflat_bench.numerics.folding import BATCH_NORMS, fold


class SpectralNormParams(Params):
    iterations: PositiveInt = Field(default=100, description="Power iterations for each layer, at most.")
    tolerance: Number = Field(default=1e-4, ge=0, description="Residual at which the iteration of a layer ends.")


INFO = MeasureInfo(
    name="spectral-norm",
    summary="log-sum of the operator norms of convolutions (normalisation folded in) and linear layers",
    factory=f"{__name__}:SpectralNorm",
    params=SpectralNormParams,
    citation="Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020",
    title="log-sum of operator norms",
    example={"iterations": 20},
    passes={"": Passes()},
    powers={"layers": 0, "filters": 0},
)


class SpectralNorm(Measure):
    """Arrays: `operator_norms` [layers], in the order of the model's modules.

    Details: `residual`, and the counts `layers`, `zero_layers`, `unfolded_norms`.
    """

    params: SpectralNormParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        network = fold(model, examples.x)
        kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
        layers = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
        with recorded(layers.values()) as calls, torch.no_grad():
            network(examples.x[:1])
        seen = {layer: x.shape for layer, x, _ in calls}
        shapes = {name: seen[layer] for name, layer in layers.items() if layer in seen}
        network.double()

        def norm_of(name: str) -> np.ndarray:
            def compute() -> dict[str, np.ndarray]:
                key = (workspace.seed, INFO.name, name)
                return {"norm": np.array(self._operator_norm(layers[name], shapes[name], *key))}

            return unit(workspace.journal, f"layer-{name}", compute)["norm"]

        found = [norm_of(name) for name in shapes]
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
                "unfolded_norms": float(sum(isinstance(module, BATCH_NORMS) for module in network.modules())),
            },
            arrays={"operator_norms": norms},
        )

    def _operator_norm(self, layer: Layer, shape: torch.Size, *key: int | str) -> tuple[float, float]:
        """The norm of a layer with inputs of this shape, and its residual; exact for a linear layer."""
        weight = layer.weight.detach()
        if isinstance(layer, nn.Linear):
            return float(torch.linalg.matrix_norm(weight, 2)), 0.0
        start = torch.randn(shape, generator=generator(*key, *shape), dtype=torch.float64)
        v, squared, residual = (start / start.norm()).to(weight.device), 0.0, 0.0
        for _ in range(self.params.iterations):
            variable = v.requires_grad_()
            with torch.enable_grad():
                image = layer._conv_forward(variable, weight, None)
            (back,) = torch.autograd.grad(image, variable, image.detach())
            squared, length = float(image.detach().square().sum()), float(back.norm())
            if length == 0:
                return 0.0, 0.0
            residual = float((back - squared * v.detach()).norm()) / squared
            v = back / length
            if residual < self.params.tolerance:
                break
        return math.sqrt(squared), residual
