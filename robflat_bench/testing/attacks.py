"""What attacks promise, on a network that was trained adversarially."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from robflat_bench.config.cost import passes_of_attack
from robflat_bench.core import Attack, Examples, Threat, Workspace
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.training import trained_world
from robflat_bench.testing.world import (
    COUNT,
    TOLERANCE,
    Skipped,
    Watched,
    World,
    expect,
    expect_in_box,
    expect_passes,
    expect_within,
    leaves_no_trace,
    remembered,
    same,
    watch,
)

THREAT = Threat(epsilon=0.3)
"""Within it most examples fall: an attack that goes on with the others for long soon ends."""


WORKSPACE = Workspace(batch=8)
CLOSE = 1e-3
"""Between two pixels: more than rounding in one step or some, far less than another draw within the threat."""


def _run(component: Component, place: World, workspace: Workspace = WORKSPACE) -> Tensor:
    attack: Attack = component.build(THREAT)
    return attack.run(place.model, place.examples, workspace)


@remembered
def _watched(component: Component, registry: Registry) -> Watched:
    return watch(trained_world(), trained_world(), functools.partial(_run, component))


def _otherwise(component: Component, examples: Examples, workspace: Workspace) -> Tensor:
    """x_adv of examples given in another way, everything else being as it was for `_watched`."""
    place, use = replace(trained_world(), examples=examples), functools.partial(_run, component, workspace=workspace)
    made: Tensor = watch(place, trained_world(), use).made
    return made


def _expect_lent(component: Component, name: str) -> None:
    """Skipped where what the workspace lends is a parameter of the attack, and so part of what it is."""
    if name in component.info.params.model_fields:
        raise Skipped(f"its {name} is a parameter, part of its definition")


def check_within_the_ball(component: Component, registry: Registry) -> None:
    """x_adv is shaped as x and within the threat's radius of it."""
    watched = _watched(component, registry)
    expect_within(watched.made, watched.before.examples.x, THREAT.epsilon)


def check_within_image_box(component: Component, registry: Registry) -> None:
    """x_adv lies in [0,1]."""
    expect_in_box(_watched(component, registry).made)


def check_dtype(component: Component, registry: Registry) -> None:
    """x_adv has the dtype of x and carries no graph."""
    watched = _watched(component, registry)
    expect(watched.made.dtype == watched.before.examples.x.dtype, f"x_adv is {watched.made.dtype}")
    expect(not watched.made.requires_grad, "x_adv carries a graph")


def check_deterministic(component: Component, registry: Registry) -> None:
    """Equal inputs give equal bits, whatever the global random state."""
    watched = _watched(component, registry)
    with global_state(generator("kit", 2)):
        again = _run(component, trained_world())
    expect(same(watched.made, again), "two uses differ")


def check_examples_are_alone(component: Component, registry: Registry) -> None:
    """In another order and in other memory batches, x_adv of each example is the same, but for rounding."""
    _expect_lent(component, "batch")
    made, order = _watched(component, registry).made, torch.arange(COUNT).flip(0)
    other = _otherwise(component, trained_world().examples[order], replace(WORKSPACE, batch=COUNT))[order]
    moved = int(((other - made).abs().flatten(1).amax(1) > CLOSE).sum())
    # Where a gradient is almost zero, rounding may turn its sign: of a few examples, not of many.
    expect(moved <= COUNT // 4, f"in other memory batches, x_adv of {moved} examples of {COUNT} is another")


def check_seed(component: Component, registry: Registry) -> None:
    """Where it draws random numbers, another seed gives other images."""
    _expect_lent(component, "seed")
    made, examples = _watched(component, registry).made, trained_world().examples
    if same(made, _otherwise(component, examples, replace(WORKSPACE, seed=1))):
        elsewhere = replace(examples, index=examples.index + COUNT)
        drawn = not same(made, _otherwise(component, elsewhere, WORKSPACE))
        expect(not drawn, "its random numbers follow the index of an example, and not the seed")
        raise Skipped("draws no random numbers: neither the seed nor the index of an example moves its images")


def check_no_weaker_than_nothing(component: Component, registry: Registry) -> None:
    """The mean loss at x_adv is not lower than at x."""
    watched = _watched(component, registry)
    model, examples = watched.before.model, watched.before.examples
    with torch.no_grad():
        clean, adversarial = (
            float(nn.functional.cross_entropy(model(x).double(), examples.y))
            for x in (examples.x, watched.made.to(examples.x))
        )
    expect(adversarial >= clean - TOLERANCE, f"the mean loss falls from {clean:.4g} to {adversarial:.4g}")


def check_declared_passes(component: Component, registry: Registry) -> None:
    """It makes the image passes that are declared; no more where they are an upper bound."""
    declared = passes_of_attack(component)
    if declared is None:
        raise Skipped("declares no passes: a search decides")
    expect_passes(_watched(component, registry), declared, component.info.passes.at_most)  # type: ignore[attr-defined]


CHECKS = (
    check_within_the_ball,
    check_within_image_box,
    check_dtype,
    *leaves_no_trace(_watched),
    check_deterministic,
    check_examples_are_alone,
    check_seed,
    check_no_weaker_than_nothing,
    check_declared_passes,
)
