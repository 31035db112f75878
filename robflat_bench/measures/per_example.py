"""Values per example: their mean with its standard error, and gradients of the loss at images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked, gradient_at
from robflat_bench.core import Measurement
from robflat_bench.core.estimates import estimated


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
    return estimated("examples", {**(arrays or {}), "per_example": per_example}, details)


def image_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """d loss_i / dx_i of images x [B,...] with losses [B], float64 [B,D]; the model is in eval mode."""
    with attacked(model):
        return gradient_at(x, loss).flatten(1).double()
