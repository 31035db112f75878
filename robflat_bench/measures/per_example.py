"""What measures with one value per example share: their mean with its standard error, and gradients at images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.core import Measurement


def error_of_mean(values: np.ndarray) -> float | None:
    """std / sqrt(count); one value has none."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def mean_of(per_example: np.ndarray, details: Mapping[str, float] | None = None) -> Measurement:
    """Mean over examples, float64 [N]; examples are the only thing drawn, so its error is std / sqrt(N)."""
    return Measurement(
        value=float(per_example.mean()),
        standard_error=error_of_mean(per_example),
        n=len(per_example),
        details=details or {},
        arrays={"per_example": per_example},
    )


def input_gradient(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """d loss_i / dx_i, float64 [B,D], of the losses [B] of the images; the weights as an attack sees them."""
    with attacked(model):
        variable = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(variable).sum(), variable)
    found: Tensor = gradient.flatten(1).double()
    return found
