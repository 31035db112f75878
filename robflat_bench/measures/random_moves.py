r"""Random moves of the weights and what the oracle reads after each of them.

    \nu_l = c_l (.) z_l,   z_l ~ N(0, I) or U(-1, 1),  one z_l per layer of the `WeightSpace`

z is keyed by (seed, measure, draw, the layer's name and shape) and not by its scale c: models of one architecture
meet common random numbers, and so do all sizes of a move. Layers of zero norm stay, as everywhere in this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.core import Examples, Measurement, Workspace
from robflat_bench.core.randomness import generator, normal_like
from robflat_bench.measures.oracle import Oracle
from robflat_bench.numerics.weight_space import Direction, WeightSpace, rows


def noise(
    space: WeightSpace, *key: int | str, draw: Callable[[Tensor, torch.Generator], Tensor] = normal_like
) -> Direction:
    """z: independent numbers of unit scale for every weight of every layer."""
    return {name: draw(layer, generator(*key, name, *layer.shape)) for name, layer in space.layers.items()}


def by_filter(tensor: Tensor) -> Tensor:
    """||w_f||_2 / sqrt(n_f) of each filter, shaped to multiply the tensor."""
    each = rows(tensor.detach())
    scale: Tensor = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64) / math.sqrt(each.shape[1])
    return scale.to(tensor.dtype).reshape(tensor.shape[:1] + (1,) * (tensor.ndim - 1))


def section(workspace: Workspace, name: str) -> Workspace:
    """The workspace with a journal of its own for one part of the work."""
    return replace(workspace, journal=workspace.journal.section(name))


def losses_after(
    oracle: Oracle,
    space: WeightSpace,
    model: nn.Module,
    examples: Examples,
    workspace: Workspace,
    moves: Iterable[Direction],
) -> tuple[np.ndarray, np.ndarray]:
    """Losses at w, [N], and after each move, [moves, N]; moves are taken one at a time, at w: each is as large."""
    oracle.freeze(model, examples, section(workspace, "images"))
    reference = oracle.losses(model, examples, section(workspace, "reference"))
    losses = []
    for number, move in enumerate(moves):
        with space.moved(move):
            losses.append(oracle.losses(model, examples, section(workspace, f"draw-{number}")))
    return reference.cpu().numpy(), torch.stack(losses).cpu().numpy()


def mean_rise(reference: np.ndarray, losses: np.ndarray, further: Mapping[str, float] | None = None) -> Measurement:
    """The mean of losses [draws, N] over the reference [N], draws and examples crossed and both random."""
    difference = losses - reference
    details = {**crossed_errors(difference), **(further or {})}
    value, before = float(difference.mean()), float(reference.mean())
    if before > 0:
        details["relative"] = value / before
    return Measurement(
        value=value,
        standard_error=details.pop("standard_error"),
        n=len(reference),
        details={"loss": before, "loss_moved": float(losses.mean()), **details},
        arrays={"losses": losses, "reference": reference, "per_example": difference.mean(0)},
    )


def crossed_errors(difference: np.ndarray) -> dict[str, float]:
    """Standard errors of the grand mean of [draws, N] values, draws and examples both random and crossed.

    The variance over draws and the variance over examples each contain the interaction once; the combined
    standard error counts it once.
    """
    draws, n = difference.shape
    over_draws = difference.mean(1).var(ddof=1) / draws
    over_examples = difference.mean(0).var(ddof=1) / n if n > 1 else 0.0
    residual = difference - difference.mean(1, keepdims=True) - difference.mean(0) + difference.mean()
    interaction = (residual**2).sum() / max((draws - 1) * (n - 1), 1) / (draws * n)
    combined = max(over_draws + over_examples - interaction, over_draws, over_examples)
    return {
        "standard_error": math.sqrt(combined),
        "standard_error_draws": math.sqrt(over_draws),
        "standard_error_examples": math.sqrt(over_examples),
    }
