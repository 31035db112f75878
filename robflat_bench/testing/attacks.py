"""What attacks promise, on a network that was trained adversarially."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from robflat_bench.core import Attack, Examples, Threat, Workspace
from robflat_bench.registry.components import Component
from robflat_bench.testing.evaluated import evaluation_checks, watched_on_trained_network
from robflat_bench.testing.expectations import TOLERANCE, Skipped, expect, expect_within, same, watch, within_image_box
from robflat_bench.testing.fixtures import COUNT, World
from robflat_bench.testing.trial_training import trained_world

THREAT = Threat(epsilon=0.3)
"""Large enough to break most examples: an attack that goes on only with the others soon ends."""

WORKSPACE = Workspace(batch=8)
CLOSE = 1e-3
"""Pixels that differ by more are different: several roundings stay below, two random draws within the ball do not."""


def _run(component: Component, place: World, workspace: Workspace = WORKSPACE) -> Tensor:
    attack: Attack = component.build(THREAT)
    return attack.run(place.model, place.examples, workspace)


_watched = watched_on_trained_network(_run)


def _otherwise(component: Component, examples: Examples, workspace: Workspace) -> Tensor:
    """x_adv of other examples or under another workspace; all else is as in `_watched`."""
    use = functools.partial(_run, component, workspace=workspace)
    made: Tensor = watch(lambda: replace(trained_world(), examples=examples), use).made
    return made


def _skip_if_parameter(component: Component, name: str) -> None:
    """Skipped where the attack has a parameter of its own for what the workspace provides."""
    if name in component.info.params.model_fields:
        raise Skipped(f"its {name} is a parameter, part of its definition")


def check_within_the_ball(component: Component) -> None:
    """x_adv is shaped as x and lies within the threat's radius of it."""
    watched = _watched(component)
    expect_within(watched.made, watched.before.examples.x, THREAT.epsilon)


def check_dtype(component: Component) -> None:
    """x_adv has the dtype of x and carries no graph."""
    watched = _watched(component)
    expect(watched.made.dtype == watched.before.examples.x.dtype, f"x_adv is {watched.made.dtype}")
    expect(not watched.made.requires_grad, "x_adv carries a graph")


def check_examples_are_alone(component: Component) -> None:
    """In another order and in other memory batches, x_adv of each example is the same up to rounding."""
    _skip_if_parameter(component, "batch")
    made, order = _watched(component).made, torch.arange(COUNT).flip(0)
    other = _otherwise(component, trained_world().examples[order], replace(WORKSPACE, batch=COUNT))[order]
    moved = int(((other - made).abs().flatten(1).amax(1) > CLOSE).sum())
    # Where a gradient is almost zero, rounding may turn its sign: for a few examples, not for many.
    expect(moved <= COUNT // 4, f"in other memory batches, x_adv of {moved} examples of {COUNT} differs")


def check_seed(component: Component) -> None:
    """If it draws random numbers, another seed gives other images."""
    _skip_if_parameter(component, "seed")
    made, examples = _watched(component).made, trained_world().examples
    if same(made, _otherwise(component, examples, replace(WORKSPACE, seed=1))):
        elsewhere = replace(examples, index=examples.index + COUNT)
        drawn = not same(made, _otherwise(component, elsewhere, WORKSPACE))
        expect(not drawn, "its random numbers depend on the index of an example, but not on the seed")
        raise Skipped("it draws no random numbers: neither the seed nor an example's index changes its images")


def check_no_weaker_than_nothing(component: Component) -> None:
    """The mean loss at x_adv is not lower than at x."""
    watched = _watched(component)
    model, examples = watched.before.model, watched.before.examples
    with torch.no_grad():
        clean, adversarial = (
            float(nn.functional.cross_entropy(model(x).double(), examples.y))
            for x in (examples.x, watched.made.to(examples.x))
        )
    expect(adversarial >= clean - TOLERANCE, f"the mean loss falls from {clean:.4g} to {adversarial:.4g}")


CHECKS = (
    check_within_the_ball,
    within_image_box(lambda component: _watched(component).made),
    check_dtype,
    *evaluation_checks(_run, _watched, same),
    check_examples_are_alone,
    check_seed,
    check_no_weaker_than_nothing,
)
