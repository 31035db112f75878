"""Flatness against robustness: every measure with every robustness target, over the methods of a board."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robflat_bench.analysis.correlation import statistics
from robflat_bench.analysis.models import Model
from robflat_bench.config.protocol import Checkpoint
from robflat_bench.leaderboard.model import BoardColumn, BoardRow, Correlation, CorrelationValue
from robflat_bench.leaderboard.rows import CHECKPOINTS, SeedGroup
from robflat_bench.records.quantities import MEASURE, column_id
from robflat_bench.registry.grammar import members, parse

TARGETS = ("robust_loss", "robust_error", "gap_robust_loss", "gap_robust_error")
EMPTY: Mapping[str, Hashable] = MappingProxyType({})
PAIRS = 10_000_000
"""Limit of pairs of models times resamples in one interval: boards with hundreds of rows take fewer resamples."""
RESAMPLES = (100, 1000)
"""Fewest and most resamples of an interval."""


def axes(row: BoardRow) -> dict[str, str]:
    """The hyperparameters of a row: method, its parameters, each modifier, each change of the recipe. A row without
    an axis has the default there."""
    method, *modifiers = members(row.method)
    name, parameters = parse(method)
    found = {"method": name} | {f"{name}.{key}": str(value) for key, value in parameters.items()}
    found |= {f"+{parse(modifier)[0]}": modifier for modifier in modifiers}
    return found | {f"recipe.{key}": str(value) for key, value in row.changes.items()}


def logit_scale(clean_losses: NDArray[Any]) -> float:
    """Median of |log(p / (1 - p))|, p = exp(-loss) the probability of the true class on a clean image.

    With two classes it is the median size of the difference of logits, so it scales with the logits. Losses below
    1e-7, which single precision cannot tell from 0, count as 1e-7."""
    losses = np.maximum(clean_losses.astype(float), 1e-7)
    return float(np.median(np.abs(losses + np.log(-np.expm1(-losses)))))


def train_losses(group: SeedGroup, checkpoint: Checkpoint) -> list[float] | None:
    """Robust loss on training images, one per seed; None where no training image was attacked."""
    found = group.tables(checkpoint, column_id("gap_robust_loss"))
    return found[1].mean(1).tolist() if found else None


def board_model(
    group: SeedGroup, checkpoint: Checkpoint, measure: str, target: str, axes: Mapping[str, Hashable] = EMPTY
) -> Model:
    """A row as a model: its values in two columns, and what may explain both. Every seed must have both."""
    return Model(
        group.label,
        group.values(checkpoint, measure).tolist(),
        group.values(checkpoint, target).tolist(),
        axes,
        confidence=[each[checkpoint].confidence for each in group.networks],
        logit_scale=[logit_scale(run.outcomes[f"{checkpoint}/test/clean/loss"]) for run in group.runs],
        train_loss=train_losses(group, checkpoint),
    )


def correlations(
    groups: Sequence[SeedGroup], rows: Sequence[BoardRow], columns: Sequence[BoardColumn]
) -> tuple[Correlation, ...]:
    """Every measure with every target, over the ranked rows that have both.

    Where no row is ranked, over all rows: the correlation is then between single networks, not between methods.
    """
    ranked = any(group.ranked for group in groups)
    few, many = RESAMPLES
    measures = [each.id for each in columns if each.id.startswith(MEASURE)]
    found = []
    for checkpoint, measure, target in itertools.product(CHECKPOINTS, measures, TARGETS):
        models = [
            board_model(group, checkpoint, measure, target, axes(row))
            for group, row in zip(groups, rows, strict=True)
            if group.ranked == ranked and {measure, target} <= {*row.values[checkpoint]}
        ]
        if not models:
            continue
        resamples = max(few, min(many, PAIRS // len(models) ** 2))
        values = tuple(CorrelationValue(**asdict(one)) for one in statistics(models, resamples))
        found.append(
            Correlation(quantity=measure, target=target, checkpoint=checkpoint, models=len(models), statistics=values)
        )
    return tuple(found)
