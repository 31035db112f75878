"""Values per example: their mean with its standard error, random images, and gradients of the loss at images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked, gradient_at
from robflat_bench.attacks.norms import climbed
from robflat_bench.core import Examples, Measurement, Threat
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


def random_images(part: Examples, threat: Threat, *key: int | str) -> Tensor:
    """An image for each example, [B,C,H,W]: uniform in the threat's ball, then clipped to [0,1]; keyed by the index."""
    return (part.x + threat.epsilon * climbed(threat.norm).noise(part.x, part.index, *key)).clamp(0, 1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of gradients [B,D], and whether either vanished, [B,2]. 1 where both vanish, 0 where one alone does."""
    lengths = torch.stack([a.norm(dim=1), b.norm(dim=1)])
    gone = lengths == 0
    lengths = lengths.masked_fill(gone, 1.0)
    # Each gradient is divided by its own length, because the product of two small lengths may underflow.
    cosine = ((a / lengths[0, :, None]) * (b / lengths[1, :, None])).sum(1)
    return torch.stack([torch.where(gone.all(0), 1.0, cosine), gone.any(0).double()], 1)
