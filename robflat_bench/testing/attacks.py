"""What attacks promise, on a network that was trained adversarially."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from robflat_bench.attacks.norms import NORMS
from robflat_bench.core import AttackInfo, Examples, ThreatNorm, Workspace
from robflat_bench.registry.components import Component
from robflat_bench.testing.evaluated import STRONG, WORKSPACE, adversarial_images, watched
from robflat_bench.testing.expectations import (
    TOLERANCE,
    Skipped,
    expect,
    expect_within,
    remembered,
    same,
    watch,
    within_image_box,
)
from robflat_bench.testing.fixtures import COUNT
from robflat_bench.testing.trial_training import trained_world

CLOSE = 1e-3
"""Pixels that differ by more are different: several roundings stay below, two random draws within the ball do not."""


def _otherwise(component: Component[AttackInfo], examples: Examples, workspace: Workspace) -> Tensor:
    """x_adv of other examples or under another workspace; all else is as in `watched`."""
    use = functools.partial(adversarial_images, component, workspace=workspace)
    made: Tensor = watch(lambda: replace(trained_world(), examples=examples), use).made
    return made


def _skip_if_parameter(component: Component[AttackInfo], name: str) -> None:
    """Skipped where the attack has a parameter of its own for what the workspace provides."""
    if name in component.info.params.model_fields:
        raise Skipped(f"its {name} is a parameter, part of its definition")


@remembered
def _under_each_norm(component: Component[AttackInfo]) -> dict[ThreatNorm, Tensor]:
    """x_adv by each norm of the threat that the attack declares."""
    place = trained_world()
    others = {norm: adversarial_images(component, place, norm=norm) for norm in component.params.norms[1:]}
    return {component.params.norms[0]: watched(component).made, **others}


def check_within_the_ball(component: Component[AttackInfo]) -> None:
    """x_adv is shaped as x and lies within the threat's radius of it, under each norm that the attack declares."""
    for norm, x_adv in _under_each_norm(component).items():
        expect_within(x_adv, trained_world().examples.x, STRONG[norm].epsilon, NORMS[norm])


check_within_image_box = within_image_box(lambda component: torch.cat([*_under_each_norm(component).values()]))


def check_dtype(component: Component[AttackInfo]) -> None:
    """x_adv has the dtype of x and carries no graph."""
    seen = watched(component)
    expect(seen.made.dtype == seen.before.examples.x.dtype, f"x_adv is {seen.made.dtype}")
    expect(not seen.made.requires_grad, "x_adv carries a graph")


def check_examples_are_alone(component: Component[AttackInfo]) -> None:
    """In another order and in other memory batches, x_adv of each example is the same up to rounding."""
    _skip_if_parameter(component, "batch")
    made, order = watched(component).made, torch.arange(COUNT).flip(0)
    other = _otherwise(component, trained_world().examples[order], replace(WORKSPACE, batch=COUNT))[order]
    moved = int(((other - made).abs().flatten(1).amax(1) > CLOSE).sum())
    # Where a gradient is almost zero, rounding may turn its sign: for a few examples, not for many.
    expect(moved <= COUNT // 4, f"in other memory batches, x_adv of {moved} examples of {COUNT} differs")


def check_seed(component: Component[AttackInfo]) -> None:
    """If it draws random numbers, another seed gives other images."""
    _skip_if_parameter(component, "seed")
    made, examples = watched(component).made, trained_world().examples
    if same(made, _otherwise(component, examples, replace(WORKSPACE, seed=1))):
        elsewhere = replace(examples, index=examples.index + COUNT)
        drawn = not same(made, _otherwise(component, elsewhere, WORKSPACE))
        expect(not drawn, "its random numbers depend on the index of an example, but not on the seed")
        raise Skipped("it draws no random numbers: neither the seed nor an example's index changes its images")


def check_no_weaker_than_nothing(component: Component[AttackInfo]) -> None:
    """The mean loss at x_adv is not lower than at x, under each norm that the attack declares."""
    before = watched(component).before
    model, examples = before.model, before.examples
    for norm, x_adv in _under_each_norm(component).items():
        with torch.no_grad():
            clean, adversarial = (
                float(nn.functional.cross_entropy(model(x).double(), examples.y))
                for x in (examples.x, x_adv.to(examples.x))
            )
        lower = f"under {norm} the mean loss falls from {clean:.4g} to {adversarial:.4g}"
        expect(adversarial >= clean - TOLERANCE, lower)
