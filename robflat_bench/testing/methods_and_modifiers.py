"""What methods and modifiers promise: about one update, and about a training by the real loop.

A modifier is tried on top of the method `at`.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robflat_bench.config.cost import passes_per_image
from robflat_bench.core import Batch, MethodInfo, ModifierInfo, RunFailed, UsageError
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import load_weights
from robflat_bench.registry.components import Component
from robflat_bench.testing import expectations as kit
from robflat_bench.testing.expectations import Skipped, Watched
from robflat_bench.testing.fixtures import THREAT, World, inner, network, training_world
from robflat_bench.testing.trial_training import (
    RECIPE,
    Outcome,
    Recorded,
    Replayed,
    composed,
    set_up,
    trained,
    untrained_helpers,
)
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
        Adversarial images, float [B,C,H,W]. Where the first ones carry a graph, the method changes them in its backward
        pass; then these are the images of a second attack.
    loss : Tensor
        [B].
    """

    composition: Composition
    given: Batch
    batch: Batch
    x_adv: Tensor
    loss: Tensor


def step(component: Component[Any], place: World) -> Step:
    """Attack a world's batch and compute its losses."""
    composition = set_up(composed(component), place)
    batch = composition.prepare(place.batch)
    given = copy.deepcopy(batch)
    x_adv = composition.attack(place.model, batch, inner())
    if x_adv.requires_grad:
        composition.method.loss(place.model, batch, x_adv).mean().backward(inputs=[x_adv])
        x_adv = composition.attack(place.model, batch, inner())
    return Step(composition, given, batch, x_adv.detach(), composition.method.loss(place.model, batch, x_adv))


@kit.remembered
def stepped(component: Component[Any]) -> Watched:
    """The step of the untrained network, watched."""
    return kit.watch(training_world, lambda place: step(component, place))


def check_within_training_radius(component: Component[Any]) -> None:
    """Its adversarial images are shaped as x and lie within the method's training radius of it."""
    made = stepped(component).made
    kit.expect_within(made.x_adv, made.given.x, made.composition.method.radius(THREAT.epsilon))


check_within_image_box = kit.within_image_box(lambda component: stepped(component).made.x_adv)
check_random_state_untouched = kit.keeps_random_state(stepped)


def check_batch_untouched(component: Component[Any]) -> None:
    """The images, labels, targets and weights of the batch that it receives stay unchanged."""
    watched = stepped(component)
    kit.expect_same_tensors(watched.place.batch, watched.before.batch)
    kit.expect_same_tensors(watched.made.batch, watched.made.given)


def check_attack_leaves_the_model(component: Component[Any]) -> None:
    """Its attack leaves weights, running statistics, modes and gradients of the model as they were."""

    def attack(place: World) -> Tensor:  # alone: the loss may change running statistics
        composition = set_up(composed(component), place)
        return composition.attack(place.model, composition.prepare(place.batch), inner())

    kit.expect_same_model(kit.watch(training_world, attack))


def check_declared_passes(component: Component[MethodInfo | ModifierInfo]) -> None:
    """An update makes as many image passes as its row declares. Where that is an upper bound, because data or time
    decide, it makes no more, and no fewer than the row declares as the least."""
    whole = composed(component)
    by_data = component.info.attack.at_most or component.info.loss.at_most
    for steps, progress in ((1, 0.999), (3, 0.999), (3, 0.0)):
        place, helpers = training_world(), untrained_helpers(whole)
        place.batch.moment = replace(place.batch.moment, progress=progress)
        composition = set_up(whole, place, helpers)
        optimizer = torch.optim.SGD(composition.parameters(place.model), lr=0.05)
        counter = PassCounter(place.model, *helpers.values())
        composition.update(place.model, composition.prepare(place.batch), inner(steps), optimizer)
        counter.remove()
        most, least = (passes_per_image(whole, steps, least) for least in (False, True))
        lower = least if by_data or progress == 0 else most
        made = counter.forward, counter.backward
        kit.expect_passes(made, most, lower, where=f"with T={steps}, after {progress:g} of training, ")


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------

MIDDLE = 5
"""Updates before the interruption, of six or more: within an epoch, after averages have begun."""


@kit.remembered
def _once(component: Component[Any]) -> Outcome | RunFailed:
    try:
        with global_state(generator("kit", 1)):
            return trained(component)
    except WrongShape:
        raise
    except (RunFailed, UsageError) as error:
        return RunFailed(str(error))


def outcome_of(component: Component[Any]) -> Outcome:
    """The training that the checks share; Skipped where it fails, which `check_trains` reports."""
    outcome = _once(component)
    if isinstance(outcome, RunFailed):
        raise Skipped(f"training fails, see check_trains: {outcome}")
    return outcome


def _equal(one: Outcome, other: Outcome) -> bool:
    weights = (
        kit.same(tensor, other.weights[checkpoint].get(name, torch.empty(0)))
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
        kit.expect(all(bool(torch.isfinite(t).all()) for t in tensors.values()), f"{checkpoint} weights are not finite")


def check_same_seed_same_weights(component: Component[Any]) -> None:
    """Two trainings of a network with dropout, with one seed, end with the same weights, bit for bit, whatever the
    global random state."""
    outcome = outcome_of(component)
    with global_state(generator("kit", 2)):
        again = trained(component)
    kit.expect(_equal(outcome, again), "two trainings with one seed differ")


def check_other_seed_other_weights(component: Component[Any]) -> None:
    """Two trainings with different seeds end with different weights: it learns from the batches that it receives."""
    outcome_of(component)  # Skipped where training fails
    one, other = (trained(component, model=network, seed=seed) for seed in (1, 2))  # dropout would differ anyway
    kit.expect(not _equal(one, other), "two seeds train the same weights")


def check_resume_is_bitwise(component: Component[Any]) -> None:
    """Training that is interrupted and resumed with objects built anew ends with the same weights, bit for bit."""
    if threading.current_thread() is not threading.main_thread():
        raise Skipped("only a training in the main thread can be interrupted")
    outcome = outcome_of(component)
    with global_state(generator("kit", 1)):
        resumed = trained(component, stop_at=MIDDLE)
    why = "a resumed training ends with other weights: return what it remembers between batches from state_dict()"
    kit.expect(_equal(outcome, resumed), why)


def check_shards_train_apart(component: Component[MethodInfo | ModifierInfo]) -> None:
    """Where its row declares sharded=True: in two shards of each batch, two processes compute the losses and gradients
    that one process computes, bit for bit."""
    if component.info.sharded is not True:
        raise Skipped(f"it is not trained in shards: {component.info.sharded or 'its row does not declare it'}")
    outcome_of(component)  # Skipped where training fails
    recipe, whole = RECIPE.model_copy(update={"shards": 2}), Recorded()
    weights = trained(component, recipe=recipe, processes=whole).weights
    for rank in (0, 1):
        found = trained(component, recipe=recipe, processes=Replayed(rank, 2, recorded=iter(whole.rows))).weights
        same = (kit.same(tensor, weights[name][key]) for name in found for key, tensor in found[name].items())
        kit.expect(all(same), "one process and two train other weights")


def check_weights_load_without_plugin(component: Component[Any]) -> None:
    """The weights that are evaluated load into the plain backbone, without the plugin."""
    load_weights(network(), outcome_of(component).weights["last"], "the trained weights")
