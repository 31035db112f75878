"""Numbers of a submitted record that follow from the rest of it: from its spec, its protocol, the arrays of measures.

`results.record` checks the numbers that follow without a registry: totals, counts, the best epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from robflat_bench import NUMERICS
from robflat_bench.config.cost import passes_of_training
from robflat_bench.config.protocol import Protocol
from robflat_bench.core import MeasureInfo, RobflatError
from robflat_bench.core.estimates import contradictions
from robflat_bench.records.quantities import SPLITS, Outcomes
from robflat_bench.records.record import MeasureResult, Result, RunRecord, measure_path
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import Registry


def training_problems(registry: Registry, protocol: Protocol, record: RunRecord) -> Iterator[str]:
    """A budget below what the spec costs, and checks on held-out images at other epochs than the protocol's."""
    found = (record.budget.forward, record.budget.backward)
    least = _least_passes(registry, protocol, record)
    for direction, passes, needed in zip(("forward", "backward"), found, least, strict=True):
        if passes < needed:
            yield f"its training made {passes} {direction} passes; a run of this spec makes at least {needed}"
    last = len(record.history) - 1
    for row in record.history:
        checked = {row.heldout_clean_error is None, row.heldout_robust_error is None, row.heldout_robust_loss is None}
        due = row.epoch == last or (row.epoch + 1) % protocol.fixed.selection.every == 0
        if checked != {not due}:
            yield f"its history has {'no' if due else 'a'} check on held-out images after epoch {row.epoch}"
    best, end = (record.results[name] for name in ("best", "last"))
    if best.epoch == end.epoch and best.weights != end.weights:
        yield "its best and its last checkpoint are of one epoch, with other weights"


def _least_passes(registry: Registry, protocol: Protocol, record: RunRecord) -> tuple[int, int]:
    """Forward and backward passes below which no training of the spec ends.

    What its components declare, without the passes of some updates alone; those of a modifier's `setup` come on top.
    For a run of another version: each image in each epoch. For a method that is not installed here: one image in each
    update.
    """
    spec, images = record.spec, protocol.fixed.data.train.count
    try:
        method = compose(registry, spec.method)
    except RobflatError:
        updates = spec.recipe.epochs * -(-images // spec.recipe.batch_size)
        return updates, updates
    if spec.numerics != NUMERICS:
        return (images * spec.recipe.epochs,) * 2
    return passes_of_training(registry, method, spec.recipe, images, least=True)


def estimate_problems(registry: Registry, results: Mapping[Any, Result], outcomes: Outcomes) -> Iterator[str]:
    """Numbers of measures that differ from what their arrays give. The numbers of a measure that is not installed here
    are believed."""
    for checkpoint, result in results.items():
        for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
            for text, measured in measures.items():
                prefix = f"{measure_path(checkpoint, split, text)}/"
                arrays = {name.removeprefix(prefix): outcomes[name] for name in outcomes if name.startswith(prefix)}
                for problem in _measure_problems(registry, text, measured, arrays):
                    yield f"{checkpoint}: {text} on {split}: {problem}"


def _measure_problems(
    registry: Registry, text: str, measured: MeasureResult, arrays: Mapping[str, np.ndarray]
) -> list[str]:
    try:
        info = resolve(registry, "measure", text).info
    except RobflatError:
        return []
    if measured.value is None and not measured.reason:
        return ["it has no value, and no reason says why"]
    if not isinstance(info, MeasureInfo) or not info.estimate or measured.value is None:
        return []
    unbounded = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if unbounded and info.estimate != "changed examples":
        return [f"its array {unbounded[0]} has numbers that are not finite, and it has a value"]
    numbers = measured.model_dump(include={"value", "standard_error", "n"})
    return contradictions(info.estimate, arrays, measured.details | numbers)
