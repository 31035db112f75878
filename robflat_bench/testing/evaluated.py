"""What attacks and measures both promise, on a network that was trained adversarially."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from robflat_bench.config.cost import declared_passes, passes_of
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import (
    Check,
    Skipped,
    Watched,
    deterministic,
    expect_passes,
    expect_same_model,
    expect_same_tensors,
    keeps_random_state,
    remembered,
    watch,
)
from robflat_bench.testing.fixtures import World
from robflat_bench.testing.trial_training import trained_world

Use = Callable[[Component[Any], World], Any]
"""Runs an attack or a measure on the network and the examples of a world."""


def watched_on_trained_network(use: Use) -> Callable[[Component[Any]], Watched]:
    """`use` on the trained network, watched; its result is kept for the checks that follow."""
    return remembered(lambda component: watch(trained_world, functools.partial(use, component)))


def evaluation_checks(
    use: Use, watched: Callable[[Component[Any]], Watched], equal: Callable[[Any, Any], bool]
) -> tuple[Check, ...]:
    """The shared checks of a kind: how it is used, what that gave, and when two results are equal."""

    def check_model_restored(component: Component) -> None:
        """Weights, running statistics and modes are as before, bit for bit, and no gradient is left behind."""
        expect_same_model(watched(component))

    def check_examples_untouched(component: Component) -> None:
        """The images, labels and indices that it receives stay unchanged."""
        seen = watched(component)
        expect_same_tensors(seen.place.examples, seen.before.examples)

    def check_declared_passes(component: Component[Any]) -> None:
        """It makes as many image passes as its row declares, or at most as many where that is an upper bound."""
        declared, passes = declared_passes(component), passes_of(component)
        if declared is None or passes is None:
            raise Skipped("its row declares no passes: a search decides how many it makes")
        seen = watched(component)
        expect_passes((seen.forward, seen.backward), passes, declared.at_most)

    return (
        check_model_restored,
        check_examples_untouched,
        keeps_random_state(watched),
        deterministic(lambda part: watched(part).made, lambda part: use(part, trained_world()), equal),
        check_declared_passes,
    )
