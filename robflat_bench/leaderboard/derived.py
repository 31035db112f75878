"""Numbers of a submitted record that follow from the rest of it: from its spec, its protocol, the arrays of measures.

`results.record` checks the numbers that follow without a registry: totals, counts, the best epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from robflat_bench import NUMERICS
from robflat_bench.config.cost import passes_of_training
from robflat_bench.config.protocol import Measured, Protocol
from robflat_bench.core import MeasureInfo, RobflatError
from robflat_bench.core.estimates import contradictions, counted_examples, miscounted
from robflat_bench.records.quantities import SPLITS, Outcomes
from robflat_bench.records.record import MeasureResult, Result, RunRecord, measure_path
from robflat_bench.registry.components import Component, compose, resolve
from robflat_bench.registry.registry import Registry

FEWER = ("changed examples", "batches")
"""Estimates that may leave some of the examples out."""


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
    """Numbers of measures that differ from what their arrays give, and arrays that are not of the draws their
    parameters ask for. The numbers of a measure that is not installed here are believed."""
    for checkpoint, result in results.items():
        for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
            for text, measured in measures.items():
                arrays = _arrays_of(outcomes, checkpoint, split, text)
                for problem in _measure_problems(registry, text, measured, arrays):
                    yield f"{checkpoint}: {text} on {split}: {problem}"


def _installed(registry: Registry, text: str) -> Component[MeasureInfo] | None:
    """The measure of that text; None where it is not installed here."""
    try:
        return resolve(registry, "measure", text)
    except RobflatError:
        return None


def _arrays_of(outcomes: Outcomes, checkpoint: str, split: str, text: str) -> dict[str, np.ndarray]:
    prefix = f"{measure_path(checkpoint, split, text)}/"
    return {name.removeprefix(prefix): outcomes[name] for name in outcomes if name.startswith(prefix)}


def _measure_problems(
    registry: Registry, text: str, measured: MeasureResult, arrays: Mapping[str, np.ndarray]
) -> list[str]:
    if (component := _installed(registry, text)) is None:
        return []
    estimate = component.info.estimate
    if measured.value is None and not measured.reason:
        return ["it has no value, and no reason says why"]
    if not estimate or measured.value is None:
        return []
    unbounded = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if unbounded and estimate != "changed examples":
        return [f"its array {unbounded[0]} has numbers that are not finite, and it has a value"]
    numbers = measured.model_dump(include={"value", "standard_error", "n"})
    return [
        *contradictions(estimate, arrays, measured.details | numbers),
        *miscounted(estimate, arrays, component.params.model_dump()),
    ]


def example_problems(
    registry: Registry, checkpoint: str, result: Result, outcomes: Outcomes, asked: Iterable[Measured]
) -> Iterator[str]:
    """Measures of a protocol that read another number of examples than it asks for. One without a value, or not
    installed here, has no such number; one that reads no examples has an n of 0."""
    for row in asked:
        if (component := _installed(registry, row.measure)) is None:
            continue
        info, params = component.info, component.params.model_dump()
        for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
            measured, examples = measures.get(row.measure), getattr(row, split)
            if measured is None or measured.value is None or not examples:
                continue
            arrays = _arrays_of(outcomes, checkpoint, split, row.measure)
            problems = [*miscounted(info.estimate, arrays, counted_examples(examples, params))]
            least = examples if info.couplings and info.estimate not in FEWER else 0
            if not least <= measured.n <= examples:
                problems.append(f"its n is {measured.n}, and the protocol asks for {examples}")
            yield from (f"{checkpoint}: {row.measure} on {split}: {problem}" for problem in problems)
