"""Values per example: their mean with its standard error, and gradients of the loss at images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked, gradient_at
from robflat_bench.core import Measurement


def error_of_mean(values: np.ndarray) -> float | None:
    """Standard error of the mean, std / sqrt(count); None for a single value."""
    return standard_deviation(values) / math.sqrt(len(values)) if len(values) > 1 else None


def standard_deviation(values: np.ndarray) -> float:
    """Standard deviation of values [n]; 0 for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def best_start(losses: np.ndarray) -> int:
    """The row of losses [starts, N] with the highest mean."""
    return int(losses.mean(1).argmax())


def mean_of(
    per_example: np.ndarray,
    details: Mapping[str, float] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Measurement:
    """The mean of values [N] as a measurement. Its standard error is over examples; nothing else counts as random.

    `per_example` joins the `arrays`.
    """
    return Measurement(
        value=float(per_example.mean()),
        standard_error=error_of_mean(per_example),
        n=len(per_example),
        details=details or {},
        arrays={**(arrays or {}), "per_example": per_example},
    )


def image_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """d loss_i / dx_i of images x [B,...] with losses [B], float64 [B,D]; the model is in eval mode."""
    with attacked(model):
        return gradient_at(x, loss).flatten(1).double()
