"""What attacks and measures both promise, on a network that was trained adversarially."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from robflat_bench.config.cost import Evaluated, passes_of
from robflat_bench.core import Attack, Measure, Measurement, NoValue, Threat, ThreatNorm, UsageError, Workspace
from robflat_bench.testing import expectations as kit
from robflat_bench.testing.expectations import Skipped, Watched
from robflat_bench.testing.fixtures import COUNT, THREAT, World, network
from robflat_bench.testing.trial_training import trained_world

STRONG: dict[ThreatNorm, Threat] = {"linf": Threat(0.3), "l2": Threat(1.5, "l2"), "l1": Threat(10.0, "l1")}
"""For attacks: they break most examples, so an attack that goes on only with the others soon ends."""
WORKSPACE = Workspace(batch=8)


def adversarial_images(
    component: Evaluated, place: World, workspace: Workspace = WORKSPACE, norm: ThreatNorm | None = None
) -> Tensor:
    """x_adv of a world's examples, in the first norm that the attack declares or in another one; Skipped where the
    attack does not take the examples."""
    attack: Attack = component.build(STRONG[norm or component.params.norms[0]])
    try:
        attack.admit(place.examples)
    except UsageError as reason:
        raise Skipped(f"it does not take the kit's images: {reason}") from None
    return attack.run(place.model, place.examples, workspace)


def measured(component: Evaluated, place: World) -> Measurement:
    """The measure of a world's network; Skipped where it has no value there."""
    measure: Measure = component.build(THREAT)
    try:
        return measure.measure(place.model, place.examples, Workspace(COUNT, initial=network().state_dict()))
    except NoValue as reason:
        raise Skipped(f"no value on the kit's network: {reason}") from None


def _use(component: Evaluated, place: World) -> Any:
    return adversarial_images(component, place) if component.info.kind == "attack" else measured(component, place)


@kit.remembered
def watched(component: Evaluated) -> Watched:
    """The attack or the measure on the trained network, watched."""
    return kit.watch(trained_world, functools.partial(_use, component))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return kit.same(one, other)
    numbers = [np.array([m.value, m.standard_error or 0.0, m.n, *m.details.values()]) for m in (one, other)]
    arrays = [(numbers[0], numbers[1]), *((one.arrays[name], other.arrays.get(name)) for name in one.arrays)]
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in arrays)


def check_model_restored(component: Evaluated) -> None:
    """Weights, running statistics and modes are as before, bit for bit, and no gradient is left behind."""
    kit.expect_same_model(watched(component))


def check_examples_untouched(component: Evaluated) -> None:
    """The images, labels and indices that it receives stay unchanged."""
    seen = watched(component)
    kit.expect_same_tensors(seen.place.examples, seen.before.examples)


check_random_state_untouched = kit.keeps_random_state(watched)
check_deterministic = kit.deterministic(
    lambda component: watched(component).made, lambda component: _use(component, trained_world()), _equal
)


def check_declared_passes(component: Evaluated) -> None:
    """It makes as many image passes as its row declares, or at most as many where that is an upper bound."""
    most, least = passes_of(component), passes_of(component, least=True)
    if most is None or least is None:
        raise Skipped("its row declares no passes: a search decides how many it makes")
    seen = watched(component)
    kit.expect_passes((seen.forward, seen.backward), most, least)
