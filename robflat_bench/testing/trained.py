"""What methods and modifiers promise: one update, looked at closely, and training by the real loop.

A method is tried as it is, a modifier on top of AT.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from robflat_bench.config.cost import passes_per_image
from robflat_bench.core import Batch, Joint, MethodInfo, Modifier, ModifierInfo, Moment, RunFailed, UsageError
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.training import Outcome, composed, helpers, prepared, trained
from robflat_bench.testing.world import (
    COUNT,
    THREAT,
    Skipped,
    Watched,
    World,
    expect,
    expect_in_box,
    expect_same_model,
    expect_same_tensors,
    expect_within,
    inner,
    network,
    random_state_untouched,
    remembered,
    same,
    watch,
    world,
)
from robflat_bench.training.composition import Composition, WrongShape

# ---------------------------------------------------------------------------------------------------------
# One update
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """An attack and the loss of each example, on a prepared batch; of an attack that carries a graph (it moves its
    images in the backward pass), the second one. given: the batch as it was before."""

    composition: Composition
    given: Batch
    batch: Batch
    x_adv: Tensor
    loss: Tensor


def _step(component: Component, place: World) -> Step:
    composition = prepared(composed(component), place)
    batch = composition.prepare(place.batch)
    given = copy.deepcopy(batch)
    x_adv = composition.attack(place.model, batch, inner())
    if x_adv.requires_grad:
        composition.method.loss(place.model, batch, x_adv).mean().backward(inputs=[x_adv])
        x_adv = composition.attack(place.model, batch, inner())
    return Step(composition, given, batch, x_adv.detach(), composition.method.loss(place.model, batch, x_adv))


def _in_train_mode() -> World:
    place = world()
    place.model.train()
    return place


@remembered
def _stepped(component: Component, registry: Registry) -> Watched:
    return watch(_in_train_mode(), _in_train_mode(), functools.partial(_step, component))


@remembered
def _attacked(component: Component, registry: Registry) -> Watched:
    """The attack alone: it leaves the model as it was, whereas the loss moves running statistics."""

    def use(place: World) -> Tensor:
        composition = prepared(composed(component), place)
        return composition.attack(place.model, composition.prepare(place.batch), inner())

    return watch(_in_train_mode(), _in_train_mode(), use)


def check_loss_of_each_example(component: Component, registry: Registry) -> None:
    """Its loss is finite, one number for each example."""
    loss = _stepped(component, registry).made.loss
    expect(loss.shape == (COUNT,), f"the loss has the shape {tuple(loss.shape)}, not that of the batch, [B]")
    expect(bool(torch.isfinite(loss).all()), "the loss is not finite")


def check_gradient_reaches_every_module(component: Component, registry: Registry) -> str | None:
    """A gradient of its loss reaches every parameter of the network, but for those it declares as untrained."""
    assert isinstance(component.info, MethodInfo)
    place, exempt = _in_train_mode(), component.info.untrained
    step = _step(component, place)
    parameters = dict(place.model.named_parameters())
    for owner, part in step.composition.parts().items():
        parameters |= {f"{owner}.{name}": parameter for name, parameter in part.named_parameters()}
    found = torch.autograd.grad(step.loss.mean(), list(parameters.values()), allow_unused=True)
    blind = {name for name, grad in zip(parameters, found, strict=True) if grad is None or not grad.abs().sum() > 0}
    excused = {name for name in blind if any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt)}
    expect(blind == excused, f"no gradient reaches {', '.join(sorted(blind - excused)[:3])}")
    idle = [pattern for pattern in exempt if not fnmatch.filter(blind, pattern)]
    expect(not idle, f"declared as untrained, but a gradient reaches it: {', '.join(idle)}")
    return "; ".join(f"{pattern} is exempt: {reason}" for pattern, reason in exempt.items()) or None


def check_within_training_radius(component: Component, registry: Registry) -> None:
    """Its adversarial images are shaped as x and within the method's training radius of it."""
    step = _stepped(component, registry).made
    expect_within(step.x_adv, step.given.x, step.composition.method.radius(THREAT.epsilon))


def check_within_image_box(component: Component, registry: Registry) -> None:
    """Its adversarial images lie in [0,1]."""
    expect_in_box(_stepped(component, registry).made.x_adv)


def check_batch_untouched(component: Component, registry: Registry) -> None:
    """Images, labels, targets and weights of the batch it is given stay as they are."""
    watched = _stepped(component, registry)
    expect_same_tensors(watched.place.batch, watched.before.batch)
    expect_same_tensors(watched.made.batch, watched.made.given)


def check_attack_leaves_the_model(component: Component, registry: Registry) -> None:
    """The attack leaves weights, running statistics, modes and gradients of the model as they were."""
    expect_same_model(_attacked(component, registry))


def check_declared_passes(component: Component, registry: Registry) -> None:
    """An update makes the image passes that are declared, whatever the attack's steps; no more where they are an
    upper bound."""
    assert isinstance(component.info, MethodInfo | ModifierInfo)
    whole = composed(component)
    bound = component.info.attack.at_most or component.info.loss.at_most
    for steps in (1, 3):
        place = _in_train_mode()
        lent = helpers(whole)
        composition = prepared(whole, place, lent)
        optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
        counter = PassCounter(place.model, *lent.values())
        composition.update(place.model, composition.prepare(place.batch), inner(steps), optimizer)
        counter.remove()
        declared = [COUNT * passes for passes in passes_per_image(whole, steps)]
        made = [counter.forward, counter.backward]
        right = all(m <= d for m, d in zip(made, declared, strict=True)) if bound else made == declared
        told = f"{made} forward and backward passes, {declared} are declared"
        expect(right, f"with T={steps}, {COUNT} images make {told}")


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------

MIDDLE = 5
"""Updates (of six, or of more) before the interruption: within an epoch, after averages have begun."""


@remembered
def _once(component: Component, registry: Registry) -> Outcome | RunFailed:
    try:
        with global_state(generator("kit", 1)):
            return trained(component)
    except WrongShape:
        raise
    except (RunFailed, UsageError) as error:
        return RunFailed(str(error))


def _outcome(component: Component, registry: Registry) -> Outcome:
    outcome = _once(component, registry)
    if isinstance(outcome, RunFailed):
        raise Skipped(f"training fails, as check_trains tells: {outcome}")
    return outcome


def _equal(one: Outcome, other: Outcome) -> bool:
    weights = (
        same(tensor, other.weights[checkpoint].get(name, torch.empty(0)))
        for checkpoint, tensors in one.weights.items()
        for name, tensor in tensors.items()
    )
    losses = ([row.train_loss for row in outcome.state.history] for outcome in (one, other))
    return all(weights) and next(losses) == next(losses)


def check_trains(component: Component, registry: Registry) -> None:
    """Training on fourteen images comes to its end, with finite losses, and finite weights that fit the network."""
    outcome = _once(component, registry)
    if isinstance(outcome, RunFailed):
        raise outcome
    for checkpoint, tensors in outcome.weights.items():
        expect(all(bool(torch.isfinite(t).all()) for t in tensors.values()), f"{checkpoint} weights are not finite")


def check_loss_falls(component: Component, registry: Registry) -> None:
    """Its training loss is lower in the last epoch on fourteen images than in the first."""
    losses = [row.train_loss for row in _outcome(component, registry).state.history]
    expect(losses[-1] < losses[0], f"the training loss goes from {losses[0]:.4g} to {losses[-1]:.4g}")


def check_same_seed_same_weights(component: Component, registry: Registry) -> None:
    """Trained with the same seed, the same weights, bit for bit, whatever the global random state."""
    outcome = _outcome(component, registry)
    with global_state(generator("kit", 2)):
        again = trained(component)
    expect(_equal(outcome, again), "two trainings with one seed differ")


def check_other_seed_other_weights(component: Component, registry: Registry) -> None:
    """Trained with another seed, other weights: it learns from the batches that it is given."""
    expect(not _equal(_outcome(component, registry), trained(component, seed=2)), "two seeds train the same weights")


def check_resume_is_bitwise(component: Component, registry: Registry) -> None:
    """Interrupted between two updates and resumed by objects built anew, it ends with the same weights, bit for bit."""
    outcome = _outcome(component, registry)
    with global_state(generator("kit", 1)):
        resumed = trained(component, stop_at=MIDDLE)
    expect(
        _equal(outcome, resumed),
        "a resumed training ends otherwise: what it remembers between batches belongs into state_dict()",
    )


def check_weights_load_without_plugin(component: Component, registry: Registry) -> None:
    """The weights it leaves to be evaluated fit the plain backbone, which knows nothing of the plugin."""
    load_weights(network(), _outcome(component, registry).weights["last"], "what it trained")


# ---------------------------------------------------------------------------------------------------------
# Modifiers only
# ---------------------------------------------------------------------------------------------------------


def check_joints(component: Component, registry: Registry) -> None:
    """It overrides the joints that it declares, and no others."""
    made, info = type(component.build()), component.info
    assert isinstance(info, ModifierInfo)
    taken = {joint for joint in get_args(Joint) if getattr(made, joint) is not getattr(Modifier, joint)}
    expect(taken == {*info.joints}, f"it takes hold at {sorted(taken)}, and declares {sorted(info.joints)}")


def _composition(component: Component) -> tuple[Composition, World]:
    place = _in_train_mode()
    return prepared(composed(component), place), place


def check_augmented_images(component: Component, registry: Registry) -> None:
    """Images that it augments stay uint8 [B,C,H,W], and are decided by the random numbers it is given."""
    made = []
    for _ in range(2):
        composition, place = _composition(component)
        images = (255 * place.batch.x).to(torch.uint8)
        made.append(composition.augment(images, torch.Generator().manual_seed(3)))
    expect(made[0].shape == images.shape and made[0].dtype == torch.uint8, "augmented images are no uint8 [B,C,H,W]")
    expect(torch.equal(*made), "equal random numbers give other images")


def check_prepared_batch(component: Component, registry: Registry) -> None:
    """The batch it makes is as large, its images lie in [0,1], its targets' rows sum to 1, its weights are not
    negative."""
    composition, place = _composition(component)
    made = composition.prepare(place.batch)
    expect(made.x.shape == place.batch.x.shape, "the images are of another shape")
    expect(
        len(made.y) == len(made.index) == len(made.weight) == len(made.target) == COUNT, "the batch changes its size"
    )
    expect_in_box(made.x)
    expect(torch.allclose(made.target.sum(1), torch.ones(COUNT)), "a row of the targets does not sum to 1")
    expect(bool((made.weight >= 0).all()), "a weight is negative")


def check_choosing_weights_moves_none(component: Component, registry: Registry) -> None:
    """While it chooses which weights are evaluated, the network keeps its own."""
    composition, place = _composition(component)
    optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
    composition.update(place.model, composition.prepare(place.batch), inner(), optimizer)
    before = place.state
    composition.evaluated(place.model, Moment(update=1, progress=1.0))
    kept = all(same(tensor, before[name]) for name, tensor in place.model.state_dict().items())
    expect(kept, "choosing the evaluated weights moves the network's own")


UPDATE = (
    check_within_training_radius,
    check_within_image_box,
    check_batch_untouched,
    check_attack_leaves_the_model,
    random_state_untouched(_stepped),
    check_declared_passes,
)
TRAINING = (
    check_trains,
    check_same_seed_same_weights,
    check_other_seed_other_weights,
    check_resume_is_bitwise,
    check_weights_load_without_plugin,
)
METHOD = (check_loss_of_each_example, check_gradient_reaches_every_module, *UPDATE, check_loss_falls, *TRAINING)
MODIFIER = (
    check_joints,
    check_augmented_images,
    check_prepared_batch,
    *UPDATE,
    check_choosing_weights_moves_none,
    *TRAINING,
)
