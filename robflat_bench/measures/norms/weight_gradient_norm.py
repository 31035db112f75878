r"""How steep the loss is in the weights:

    || \nabla_w mean_i \ell(f(x_i; w), y_i) ||_2   at the clean images, or at adversarial ones found at w (frozen)

over the layers of `WeightSpace` (biases too, normalisation not, tensors of zero norm not). Details: `squared`, and
`adaptive` = || w (.) g ||_1, the slope of adaptive l-inf sharpness: its rise over rho as rho -> 0.
Jiang et al.: ICLR 2020; Kwon et al.: ICML 2021 (adaptive); of robust losses: Kim et al.: NeurIPS 2023.

Scaling a convolution by c where normalisation undoes it scales its part of the gradient by 1/c; the adaptive form
is invariant to that and to every element-wise rescaling that keeps the function. Scaling logits moves all, by no
fixed power, unless they are normalised. The norm of a mean is biased upwards by noise, as is that of every sample.

The standard error is a jackknife that leaves out one of ten groups of examples at a time. Only products of group
gradients with their mean are needed, so two passes do, not ten kept gradients: two forward and two backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.measures.shared import FixedImagesParams, differentiate

with lazy_imports():
    import numpy as np
    from torch import Tensor, nn

    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.numerics.weight_space import WeightSpace


class WeightGradientNormParams(FixedImagesParams):
    """The mean loss is that of the images at which `coupling` reads it."""


INFO = MeasureInfo(
    name="weight-gradient-norm",
    summary="length of the loss's gradient in the weights",
    factory=f"{__name__}:WeightGradientNorm",
    params=WeightGradientNormParams,
    citation="Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020",
    title="weight-gradient norm ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=differentiate("2", "2"),
    powers={"layers": -1},
)


GROUPS = 10


class WeightGradientNorm(Measure):
    """Arrays: `leave_one_group_out`, the norm without each group."""

    params: WeightGradientNormParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle = Oracle(self.threat, self.params)
        oracle.freeze(model, examples, workspace)
        found = workspace.journal.unit("norms", lambda: self._norms(model, oracle.points(examples)))
        value, without = math.sqrt(float(found["squared"])), found["leave_one_group_out"]
        groups = len(without)
        return Measurement(
            value=value,
            standard_error=math.sqrt((groups - 1) * without.var()) if groups > 1 else None,
            n=len(examples),
            details={"squared": value**2, "adaptive": float(found["adaptive"])},
            arrays={"leave_one_group_out": without},
        )

    def _norms(self, model: nn.Module, points: Examples) -> dict[str, np.ndarray]:
        layers = WeightSpace(model).layers
        reader = Oracle(self.threat, self.params.model_copy(update={"coupling": "clean"}))
        groups = [points[slice(at, None, GROUPS)] for at in range(min(GROUPS, len(points)))]
        shares = np.array([len(group) for group in groups]) / len(points)

        def gradients() -> Iterator[dict[str, Tensor]]:
            return (reader.gradient(model, group, layers)[1] for group in groups)

        mean: dict[str, Tensor] = {}
        for share, gradient in zip(shares, gradients(), strict=True):
            mean = {name: mean.get(name, 0.0) + share * part for name, part in gradient.items()}
        squared = _dot(mean, mean)
        products = np.array([[_dot(gradient, mean), _dot(gradient, gradient)] for gradient in gradients()])
        # || (mean - s g) / (1 - s) ||^2 of each group, whose gradient is g and whose share is s.
        remaining = squared - 2 * shares * products[:, 0] + shares**2 * products[:, 1]
        without = np.sqrt(np.maximum(remaining, 0)) / (1 - shares) if len(groups) > 1 else np.zeros(0)
        adaptive = sum(float((layer.detach().double() * mean[name]).abs().sum()) for name, layer in layers.items())
        return {"squared": np.array(squared), "adaptive": np.array(adaptive), "leave_one_group_out": without}


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)
