r"""Random moves of the weights, and the losses at the moved weights.

    \nu_l = s(z_l, w_l),   z_l ~ N(0, I) or U(-1, 1),   one z_l per layer l of the `WeightSpace`

z is keyed by (seed, measure, draw, the layer's name and shape), not by the scale s. So models of one architecture meet
common random numbers, and so do moves of different sizes. Layers of zero norm stay.

With `full_draws` = m of K draws, `reattack` reads each example's loss at draw k by a short attack, s_k, and corrects it
by the full attack's losses f_j at the first m draws:

    s_k + 1/m \sum_{j <= m} (f_j - s_j)

Its mean over the draws has the expectation of the full attack's (two levels of multilevel Monte Carlo: Giles,
Operations Research 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def by_filter(tensor: Tensor) -> Tensor:
    """||w_f||_2 / sqrt(n_f) of each filter f of n_f weights, shaped to multiply the tensor."""
    each = filters(tensor.detach())
    scale: Tensor = torch.linalg.vector_norm(each, dim=1, dtype=torch.float64) / math.sqrt(each.shape[1])
    return scale.to(tensor.dtype).reshape(tensor.shape[:1] + (1,) * (tensor.ndim - 1))


def losses_after(
    measure: Measure,
    space: WeightSpace,
    examples: Examples,
    workspace: Workspace,
    move: Callable[[int], Direction],
) -> dict[str, np.ndarray]:
    """Losses of a measure with `DrawsParams`; `move(k)` is the move of draw k, from w.

    Returns
    -------
    dict
        `reference` [N], the losses at w; `losses` [draws, N], those after each move; where short attacks are corrected,
        `shortfall` [full_draws, N], what they miss.
    """
    model, params = space.model, measure.params
    oracle = Oracle.of(measure, model, examples, workspace)
    reference = oracle.reference(model, examples, workspace)
    shortened = oracle.coupling == "reattack" and (params.full_draws or params.draws) < params.draws
    shorter = oracle.short()

    def after(draw: int) -> dict[str, Tensor]:
        """Losses of the full and of the short attack, where it sees this draw."""
        here, found = section(workspace, f"draw-{draw}"), {}
        with space.moved(move(draw)):
            if not shortened or draw < params.full_draws:
                found["full"] = oracle.losses(model, examples, here)
            if shortened:
                found["short"] = shorter.losses(model, examples, section(here, "short"))
        return found

    draws = workspace.journal.each(params.draws, after)
    losses, arrays = torch.stack([draw["full"] for draw in draws if "full" in draw]), {"reference": reference}
    if shortened:
        short = torch.stack([draw["short"] for draw in draws])
        arrays["shortfall"] = losses - short[: len(losses)]
        losses = short + arrays["shortfall"].mean(0)
    return {name: array.cpu().numpy() for name, array in (arrays | {"losses": losses}).items()}


def mean_rise(arrays: Mapping[str, np.ndarray], further: Mapping[str, float] | None = None) -> Measurement:
    """Mean rise of `losses` over `reference` (`losses_after`); the standard error is over draws and examples."""
    rise = (arrays["losses"] - arrays["reference"]).mean(0)
    return estimated("draws and examples", {**arrays, "per_example": rise}, further)
