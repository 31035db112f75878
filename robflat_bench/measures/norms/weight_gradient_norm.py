r"""The norm of the gradient of the mean loss with respect to the weights:

    || \nabla_w mean_i \ell(f(x_i; w), y_i) ||_2   at the clean images, or at adversarial ones found at w (frozen)

over the layers of `WeightSpace`: biases, but no normalisation layers and no tensors of zero norm. Details: `squared`,
and `adaptive` = || w (.) g ||_1, the slope of adaptive l-inf sharpness (its rise over rho as rho -> 0).
Jiang et al.: ICLR 2020; Kwon et al.: ICML 2021 (adaptive); of robust losses: Kim et al.: NeurIPS 2023.

Scaling a convolution by c, where normalisation undoes it, scales its part of the gradient by 1/c. `adaptive` is
invariant to that and to every element-wise rescaling that keeps the function. Scaling the logits changes both, by no
fixed power, unless they are normalised. Noise biases the norm of a mean upwards, as for every sample.

Standard error: a jackknife that leaves out one of ten groups of examples at a time. It needs only the products of the
group gradients with their mean, so the gradients are computed twice instead of kept.
Cost: two forward and two backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import SlopesParams, passes_at_fixed_images

with lazy_imports():
    import numpy as np
    from torch import Tensor, nn

    from robflat_bench.core.estimates import jackknife
    from robflat_bench.measures.oracle import Oracle, given_images
    from robflat_bench.measures.units import unit
    from robflat_bench.numerics.weight_space import WeightSpace


INFO = MeasureInfo(
    name="weight-gradient-norm",
    summary="length of the loss's gradient in the weights",
    factory=f"{__name__}:WeightGradientNorm",
    params=SlopesParams,
    citation=cite("jiang2020fantastic"),
    title="weight-gradient norm ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("2", "2"),
    powers={"layers": -1},
    estimate="groups",
)

GROUPS = 10
"""Groups of the jackknife."""


class WeightGradientNorm(Measure):
    """Arrays: `leave_one_group_out` [groups], the norm without each group. Details: `squared`, `adaptive`."""

    params: SlopesParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)
        space = WeightSpace(model, exclude=self.params.exclude)
        found = unit(workspace.journal, "norms", lambda: _norms(space, oracle, images))
        value, without = math.sqrt(float(found["squared"])), found["leave_one_group_out"]
        return Measurement(
            value=value,
            standard_error=jackknife({"leave_one_group_out": without})["standard_error"],
            n=len(examples),
            details={"squared": value**2, "adaptive": float(found["adaptive"])},
            arrays={"leave_one_group_out": without},
        )


def _norms(space: WeightSpace, oracle: Oracle, images: Examples) -> dict[str, np.ndarray | float]:
    """The squared norm, the adaptive form, and the norm without each group."""
    layers = space.layers
    groups = [images[slice(at, None, GROUPS)] for at in range(min(GROUPS, len(images)))]
    shares = np.array([len(group) for group in groups]) / len(images)

    def gradients() -> Iterator[dict[str, Tensor]]:
        return (oracle.gradient(space.model, group, layers)[1] for group in groups)

    mean: dict[str, Tensor] = {}
    for share, gradient in zip(shares, gradients(), strict=True):
        mean = {name: mean.get(name, 0.0) + share * part for name, part in gradient.items()}
    squared = _dot(mean, mean)
    along, own = np.array([[_dot(gradient, mean), _dot(gradient, gradient)] for gradient in gradients()]).T
    # || (mean - s g) / (1 - s) ||^2 of each group with gradient g and share s.
    remaining = squared - 2 * shares * along + shares**2 * own
    without = np.sqrt(np.maximum(remaining, 0)) / (1 - shares) if len(groups) > 1 else np.zeros(0)
    adaptive = sum(float((layer.detach().double() * mean[name]).abs().sum()) for name, layer in layers.items())
    return {"squared": squared, "adaptive": adaptive, "leave_one_group_out": without}


def _dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] * b[name]).sum()) for name in a)
