"""What methods and modifiers promise: about one update, and about a training by the real loop.

A modifier is tried on top of the method `at`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from robflat_bench.config.cost import passes_per_image
from robflat_bench.core import Batch, Joint, MethodInfo, Modifier, ModifierInfo, Moment, RunFailed, UsageError
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.testing.expectations import (
    Probe,
    Skipped,
    Watched,
    expect,
    expect_in_box,
    expect_passes,
    expect_same_model,
    expect_same_tensors,
    expect_within,
    gradient_reaches,
    keeps_random_state,
    remembered,
    same,
    watch,
    within_image_box,
)
from robflat_bench.testing.fixtures import COUNT, THREAT, World, inner, network, training_world
from robflat_bench.testing.trial_training import Outcome, composed, set_up, trained, untrained_helpers
from robflat_bench.training.composition import Composition, WrongShape

# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One attack and the loss of each example.

    Parameters
    ----------
    composition : Composition
        The method and modifiers that made them.
    given, batch : Batch
        The prepared batch before and after.
    x_adv : Tensor
        Adversarial images, float [B,C,H,W]; of the second attack where the first one carries a graph, for such a method
        moves its images in the backward pass.
    loss : Tensor
        [B].
    """

    composition: Composition
    given: Batch
    batch: Batch
    x_adv: Tensor
    loss: Tensor


def _step(component: Component[Any], place: World) -> Step:
    composition = set_up(composed(component), place)
    batch = composition.prepare(place.batch)
    given = copy.deepcopy(batch)
    x_adv = composition.attack(place.model, batch, inner())
    if x_adv.requires_grad:
        composition.method.loss(place.model, batch, x_adv).mean().backward(inputs=[x_adv])
        x_adv = composition.attack(place.model, batch, inner())
    return Step(composition, given, batch, x_adv.detach(), composition.method.loss(place.model, batch, x_adv))


@remembered
def _stepped(component: Component[Any]) -> Watched:
    return watch(training_world, lambda place: _step(component, place))


def _composition(component: Component[Any]) -> tuple[Composition, World]:
    place = training_world()
    return set_up(composed(component), place), place


def check_loss_of_each_example(component: Component[Any]) -> None:
    """Its loss is finite, one number for each example."""
    loss = _stepped(component).made.loss
    expect(loss.shape == (COUNT,), f"the loss has the shape {tuple(loss.shape)}, not that of the batch, [B]")
    expect(bool(torch.isfinite(loss).all()), "the loss is not finite")


def _mean_loss(component: Component[MethodInfo]) -> Probe:
    place = training_world()
    step = _step(component, place)
    parameters = dict(place.model.named_parameters())
    for owner, part in step.composition.parts().items():
        parameters |= {f"{owner}.{name}": parameter for name, parameter in part.named_parameters()}
    return step.loss.mean(), parameters, component.info.untrained


def check_within_training_radius(component: Component[Any]) -> None:
    """Its adversarial images are shaped as x and lie within the method's training radius of it."""
    step = _stepped(component).made
    expect_within(step.x_adv, step.given.x, step.composition.method.radius(THREAT.epsilon))


def check_batch_untouched(component: Component[Any]) -> None:
    """The images, labels, targets and weights of the batch that it receives stay unchanged."""
    watched = _stepped(component)
    expect_same_tensors(watched.place.batch, watched.before.batch)
    expect_same_tensors(watched.made.batch, watched.made.given)


def check_attack_leaves_the_model(component: Component[Any]) -> None:
    """Its attack leaves weights, running statistics, modes and gradients of the model as they were."""

    def attack(place: World) -> Tensor:  # alone: the loss may change running statistics
        composition = set_up(composed(component), place)
        return composition.attack(place.model, composition.prepare(place.batch), inner())

    expect_same_model(watch(training_world, attack))


def check_declared_passes(component: Component[MethodInfo | ModifierInfo]) -> None:
    """An update makes as many image passes as its row declares, or at most as many where that is an upper bound."""
    whole = composed(component)
    for steps in (1, 3):
        place, helpers = training_world(), untrained_helpers(whole)
        composition = set_up(whole, place, helpers)
        optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
        counter = PassCounter(place.model, *helpers.values())
        composition.update(place.model, composition.prepare(place.batch), inner(steps), optimizer)
        counter.remove()
        at_most = component.info.attack.at_most or component.info.loss.at_most
        made = counter.forward, counter.backward
        expect_passes(made, passes_per_image(whole, steps), at_most, where=f"with T={steps}, ")


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------

MIDDLE = 5
"""Updates before the interruption, of six or more: within an epoch, after averages have begun."""


@remembered
def _once(component: Component[Any]) -> Outcome | RunFailed:
    try:
        with global_state(generator("kit", 1)):
            return trained(component)
    except WrongShape:
        raise
    except (RunFailed, UsageError) as error:
        return RunFailed(str(error))


def _outcome(component: Component[Any]) -> Outcome:
    outcome = _once(component)
    if isinstance(outcome, RunFailed):
        raise Skipped(f"training fails, see check_trains: {outcome}")
    return outcome


def _equal(one: Outcome, other: Outcome) -> bool:
    weights = (
        same(tensor, other.weights[checkpoint].get(name, torch.empty(0)))
        for checkpoint, tensors in one.weights.items()
        for name, tensor in tensors.items()
    )
    losses = ([row.train_loss for row in outcome.state.history] for outcome in (one, other))
    return all(weights) and next(losses) == next(losses)


def check_trains(component: Component[Any]) -> None:
    """Training on fourteen images ends, with finite losses and with finite weights that fit the network."""
    outcome = _once(component)
    if isinstance(outcome, RunFailed):
        raise outcome
    for checkpoint, tensors in outcome.weights.items():
        expect(all(bool(torch.isfinite(t).all()) for t in tensors.values()), f"{checkpoint} weights are not finite")


def check_loss_falls(component: Component[Any]) -> None:
    """On fourteen images, its training loss is lower in the last epoch than in the first."""
    losses = [row.train_loss for row in _outcome(component).state.history]
    expect(losses[-1] < losses[0], f"the training loss goes from {losses[0]:.4g} to {losses[-1]:.4g}")


def check_same_seed_same_weights(component: Component[Any]) -> None:
    """Two trainings with one seed end with the same weights, bit for bit, whatever the global random state."""
    outcome = _outcome(component)
    with global_state(generator("kit", 2)):
        again = trained(component)
    expect(_equal(outcome, again), "two trainings with one seed differ")


def check_other_seed_other_weights(component: Component[Any]) -> None:
    """Two trainings with different seeds end with different weights: it learns from the batches that it receives."""
    expect(not _equal(_outcome(component), trained(component, seed=2)), "two seeds train the same weights")


def check_resume_is_bitwise(component: Component[Any]) -> None:
    """Training that is interrupted and resumed with objects built anew ends with the same weights, bit for bit."""
    outcome = _outcome(component)
    with global_state(generator("kit", 1)):
        resumed = trained(component, stop_at=MIDDLE)
    why = "a resumed training ends with other weights: return what it remembers between batches from state_dict()"
    expect(_equal(outcome, resumed), why)


def check_weights_load_without_plugin(component: Component[Any]) -> None:
    """The weights that are evaluated load into the plain backbone, without the plugin."""
    load_weights(network(), _outcome(component).weights["last"], "what it trained")


# ---------------------------------------------------------------------------------------------------------
# Modifiers only
# ---------------------------------------------------------------------------------------------------------


def check_joints(component: Component[Any]) -> None:
    """It overrides exactly the joints that it declares."""
    made, declared = type(component.build()), {*component.info.joints}
    taken = {joint for joint in get_args(Joint) if getattr(made, joint) is not getattr(Modifier, joint)}
    expect(taken == declared, f"it overrides {sorted(taken)}, and declares {sorted(declared)}")


def check_augmented_images(component: Component[Any]) -> None:
    """Images that it augments stay uint8 [B,C,H,W], and equal random numbers give equal images."""
    made = []
    for _ in range(2):
        composition, place = _composition(component)
        images = (255 * place.batch.x).to(torch.uint8)
        made.append(composition.augment(images, torch.Generator().manual_seed(3)))
    expect(made[0].shape == images.shape and made[0].dtype == torch.uint8, "augmented images are not uint8 [B,C,H,W]")
    expect(torch.equal(*made), "equal random numbers give other images")


def check_prepared_batch(component: Component[Any]) -> None:
    """The batch that it makes has the given size, images in [0,1], targets whose rows sum to 1, and weights >= 0."""
    composition, place = _composition(component)
    made = composition.prepare(place.batch)
    expect(made.x.shape == place.batch.x.shape, "the images have another shape")
    sizes = {len(part) for part in (made.y, made.index, made.weight, made.target)}
    expect(sizes == {COUNT}, "the batch has another size")
    expect_in_box(made.x)
    expect(torch.allclose(made.target.sum(1), torch.ones(COUNT)), "a row of the targets does not sum to 1")
    expect(bool((made.weight >= 0).all()), "a weight is negative")


def check_choosing_weights_moves_none(component: Component[Any]) -> None:
    """Choosing the weights to evaluate leaves the network's own weights unchanged."""
    composition, place = _composition(component)
    optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
    composition.update(place.model, composition.prepare(place.batch), inner(), optimizer)
    before = place.state
    composition.evaluated(place.model, Moment(update=1, progress=1.0))
    kept = all(same(tensor, before[name]) for name, tensor in place.model.state_dict().items())
    expect(kept, "choosing the weights to evaluate changes the network's own")


UPDATE = (
    check_within_training_radius,
    within_image_box(lambda component: _stepped(component).made.x_adv),
    check_batch_untouched,
    check_attack_leaves_the_model,
    keeps_random_state(_stepped),
    check_declared_passes,
)
TRAINING = (
    check_trains,
    check_same_seed_same_weights,
    check_other_seed_other_weights,
    check_resume_is_bitwise,
    check_weights_load_without_plugin,
)
METHOD = (check_loss_of_each_example, gradient_reaches(_mean_loss), *UPDATE, check_loss_falls, *TRAINING)
MODIFIER = (
    check_joints,
    check_augmented_images,
    check_prepared_batch,
    *UPDATE,
    check_choosing_weights_moves_none,
    *TRAINING,
)
