r"""Random moves of the weights, and the losses at the moved weights.

    \nu_l = s(z_l, w_l),   z_l ~ N(0, I) or U(-1, 1),   one z_l per layer l of the `WeightSpace`

z is keyed by (seed, measure, draw, the layer's name and shape), not by the scale s. So models of one architecture meet
common random numbers, and so do moves of different sizes. Layers of zero norm stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from robflat_bench.core import Examples, Measure, Measurement, Workspace
from robflat_bench.core.estimates import estimated
from robflat_bench.core.randomness import generator, normal_like
from robflat_bench.measures.oracle import Oracle
from robflat_bench.measures.units import section
from robflat_bench.numerics.weight_space import Direction, WeightSpace, filters

Scale: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(z, w) of one layer -> its move."""
Noise: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def random_move(space: WeightSpace, scale: Scale, *key: int | str, noise: Noise = normal_like) -> Direction:
    """scale(z, w) of every layer, z independent random numbers of unit size."""
    return {
        name: scale(noise(layer, generator(*key, name, *layer.shape)), layer.detach())
        for name, layer in space.layers.items()
    }


def random_moves(
    space: WeightSpace, scale: Scale, draws: int, *key: int | str, noise: Noise = normal_like
) -> Iterator[Direction]:
    """One `random_move` after another, draw by draw."""
    return (random_move(space, scale, *key, draw, noise=noise) for draw in range(draws))


def by_filter(tensor: Tensor) -> Tensor:
    """||w_f||_2 / sqrt(n_f) of each filter f of n_f weights, shaped to multiply the tensor."""
    each = filters(tensor.detach())
    scale: Tensor = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64) / math.sqrt(each.shape[1])
    return scale.to(tensor.dtype).reshape(tensor.shape[:1] + (1,) * (tensor.ndim - 1))


def losses_after(
    measure: Measure, space: WeightSpace, examples: Examples, workspace: Workspace, moves: Iterable[Direction]
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the measure's oracle at w, [N], and after each move, [moves, N]. Every move starts at w."""
    model = space.model
    oracle = Oracle.of(measure, model, examples, section(workspace, "images"))
    reference = oracle.reference(model, examples, workspace)
    losses = []
    for number, move in enumerate(moves):
        with space.moved(move):
            losses.append(oracle.losses(model, examples, section(workspace, f"draw-{number}")))
    return reference.cpu().numpy(), torch.stack(losses).cpu().numpy()


def mean_rise(reference: np.ndarray, losses: np.ndarray, further: Mapping[str, float] | None = None) -> Measurement:
    """Mean rise of losses [draws, N] over the reference [N]; the standard error is over draws and examples."""
    return estimated(
        "draws and examples",
        {"losses": losses, "reference": reference, "per_example": (losses - reference).mean(0)},
        further,
    )
