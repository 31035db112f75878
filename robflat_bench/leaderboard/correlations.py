"""Flatness against robustness: every measure with every robustness target, over the methods of a board."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict

from robflat_bench.analysis.correlation import statistics
from robflat_bench.analysis.models import Model
from robflat_bench.leaderboard.model import BoardColumn, BoardRow, Correlation, CorrelationValue
from robflat_bench.leaderboard.rows import CHECKPOINTS, SeedGroup
from robflat_bench.records.quantities import MEASURE
from robflat_bench.registry.grammar import members, parse

TARGETS = ("robust_loss", "robust_error", "gap_robust_loss", "gap_robust_error")
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
            Model(
                group.label,
                group.values(checkpoint, measure).tolist(),
                group.values(checkpoint, target).tolist(),
                axes(row),
                [each[checkpoint].confidence for each in group.networks],
            )
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
