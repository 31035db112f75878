"""What methods promise, beside what `methods_and_modifiers` holds."""

from __future__ import annotations

import torch

from robflat_bench.core import MethodInfo
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import Probe, expect, gradient_reaches
from robflat_bench.testing.fixtures import COUNT, training_world
from robflat_bench.testing.methods_and_modifiers import outcome_of, step, stepped


def check_loss_of_each_example(component: Component[MethodInfo]) -> None:
    """Its loss is finite, one number for each example."""
    loss = stepped(component).made.loss
    expect(loss.shape == (COUNT,), f"the loss has the shape {tuple(loss.shape)}, not that of the batch, [B]")
    expect(bool(torch.isfinite(loss).all()), "the loss is not finite")


def _mean_loss(component: Component[MethodInfo]) -> Probe:
    place = training_world()
    made = step(component, place)
    parameters = dict(place.model.named_parameters())
    for owner, part in made.composition.parts().items():
        parameters |= {f"{owner}.{name}": parameter for name, parameter in part.named_parameters()}
    return made.loss.mean(), parameters, component.info.untrained


check_gradient_reaches_every_module = gradient_reaches(_mean_loss)


def check_loss_falls(component: Component[MethodInfo]) -> None:
    """On fourteen images, its training loss is lower in the last epoch than in the first."""
    losses = [row.train_loss for row in outcome_of(component).state.history]
    expect(losses[-1] < losses[0], f"the training loss goes from {losses[0]:.4g} to {losses[-1]:.4g}")
