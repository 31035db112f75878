"""How a check watches a component, what it expects, and the checks that several kinds share."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import SkipTest

import torch
from torch import Tensor

from robflat_bench.attacks.norms import NORMS, Norm
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import Component
from robflat_bench.testing.fixtures import COUNT, World

TOLERANCE = 1e-6
"""Rounding that is allowed in distances (pixels of [0,1]) and in losses."""

Made = TypeVar("Made")
Check = Callable[[Component[Any]], str | None]
"""Raises where the component breaks its promise. It may return a note about exemptions."""


class Skipped(SkipTest):
    """The check does not apply to this component or cannot run here; the text says why. pytest shows it as a skip."""


class CheckFailure(AssertionError):
    """The component breaks its promise; the text says how."""


def expect(promise: bool, text: str) -> None:
    """CheckFailure(text) unless the promise holds."""
    if not promise:
        raise CheckFailure(text)


# ---------------------------------------------------------------------------------------------------------
# Watching a component while it works
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """The result of a component's use, and its side effects on the world.

    Parameters
    ----------
    made : Any
        What it returned.
    place, before : World
        The world after its use, and an equal world that it did not touch.
    random_state_kept : bool
        Whether torch's global random state is as it was.
    forward, backward : int
        Image passes through the network.
    """

    made: Any
    place: World
    before: World
    random_state_kept: bool
    forward: int
    backward: int


def watch(make: Callable[[], World], use: Callable[[World], Any]) -> Watched:
    """Call `use(make())`, count its passes and look for side effects."""
    place = make()
    counter = PassCounter(place.model)
    try:
        with global_state(generator("kit", 1)):
            random_state = torch.get_rng_state()
            made = use(place)
            kept = torch.equal(torch.get_rng_state(), random_state)
    finally:
        counter.remove()
    return Watched(made, place, make(), kept, counter.forward, counter.backward)


def remembered(compute: Callable[[Component[Any]], Made]) -> Callable[[Component[Any]], Made]:
    """Keep what was computed for the last component: the checks of one component share it."""
    last: list[Any] = [None, None, None]

    @functools.wraps(compute)
    def recall(component: Component) -> Made:
        if last[0] is not component.offer or last[1] != component.params:
            last[:] = component.offer, component.params, compute(component)
        made: Made = last[2]
        return made

    return recall


# ---------------------------------------------------------------------------------------------------------
# Expectations
# ---------------------------------------------------------------------------------------------------------


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN counting as equal to NaN."""
    return torch.equal(one, other) or (
        one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    )


def expect_same_model(watched: Watched) -> None:
    """Weights, buffers, modes and gradients are as before."""
    model, state = watched.place.model, watched.before.state
    for name, parameter in model.named_parameters():
        expect(torch.equal(parameter, state[name]), f"weight '{name}' is changed")
        expect(parameter.requires_grad and parameter.grad is None, f"'{name}' is frozen or has a gradient left")
    changed = [name for name, buffer in model.named_buffers() if name in state and not same(buffer, state[name])]
    expect(not changed, f"buffers {changed[:3]} are changed")
    modes = [module.training for module in watched.before.model.modules()]
    left = [name for (name, module), mode in zip(model.named_modules(), modes, strict=True) if module.training != mode]
    expect(not left, f"left in another mode: {', '.join(name or 'the network itself' for name in left[:3])}")


def expect_same_tensors(given: Any, before: Any) -> None:
    """Every tensor of the examples or of the batch is as before."""
    for name, tensor in vars(before).items():
        if isinstance(tensor, Tensor):
            expect(same(getattr(given, name), tensor), f"it changed '{name}' of its input")


def expect_passes(made: tuple[int, int], most: tuple[int, int], least: tuple[int, int], where: str = "") -> None:
    """Forward and backward passes of `COUNT` images lie between those that the row declares for each."""
    low, high = ([COUNT * passes for passes in bound] for bound in (least, most))
    right = all(a <= b <= c for a, b, c in zip(low, made, high, strict=True))
    bounds = f"{tuple(high)} are declared" if low == high else f"{tuple(low)} to {tuple(high)} are declared"
    expect(right, f"{where}{COUNT} images make {made} forward and backward passes, {bounds}")


def expect_within(x_adv: Tensor, x: Tensor, radius: float, norm: Norm = NORMS["linf"]) -> None:
    """x_adv is shaped as x and lies in the ball around it."""
    expect(x_adv.shape == x.shape, f"x_adv has the shape {tuple(x_adv.shape)}, x has {tuple(x.shape)}")
    distance, rounding = (float(norm.size(move).max()) for move in (x_adv - x, torch.full_like(x, TOLERANCE)))
    away = f"x_adv is {distance:.4g} away in the {norm.p:g}-norm, the radius is {radius:.4g}"
    expect(not distance > radius + rounding, away)


def expect_in_box(x_adv: Tensor) -> None:
    """Every pixel is a number in [0,1]."""
    expect(bool((x_adv >= 0).all() and (x_adv <= 1).all()), "x_adv leaves [0,1]")


# ---------------------------------------------------------------------------------------------------------
# Checks that several kinds share
# ---------------------------------------------------------------------------------------------------------


def keeps_random_state(watched: Callable[[Component[Any]], Any]) -> Check:
    """The check on what `watched` returns, which has `random_state_kept`."""

    def check_random_state_untouched(component: Component) -> None:
        """The global random state is as before: nobody else's random numbers change."""
        expect(watched(component).random_state_kept, "the global random state has moved")

    return check_random_state_untouched


def deterministic(
    once: Callable[[Component[Any]], Made],
    again: Callable[[Component[Any]], Made],
    equal: Callable[[Made, Made], bool],
) -> Check:
    """The check that two uses have equal results."""

    def check_deterministic(component: Component) -> None:
        """Used twice with equal inputs, it gives equal results, bit for bit, whatever the global random state."""
        first = once(component)
        with global_state(generator("kit", 2)):
            expect(equal(first, again(component)), "two uses differ")

    return check_deterministic


def within_image_box(x_adv: Callable[[Component[Any]], Tensor]) -> Check:
    """The check of what makes adversarial images."""

    def check_within_image_box(component: Component) -> None:
        """Its adversarial images lie in [0,1]."""
        expect_in_box(x_adv(component))

    return check_within_image_box


Probe = tuple[Tensor, Mapping[str, Tensor], Mapping[str, str]]
"""An objective, the tensors that it should depend on, and exemptions: shell pattern of names -> reason."""


def gradient_reaches(probe: Callable[[Component[Any]], Probe]) -> Check:
    """The check that an objective depends on every tensor of the probe."""

    def check_gradient_reaches_every_module(component: Component) -> str | None:
        """A gradient reaches every parameter of the network, except those that a method declares as untrained."""
        objective, tensors, exempt = probe(component)
        found = torch.autograd.grad(objective, list(tensors.values()), allow_unused=True)
        blind = {name for name, grad in zip(tensors, found, strict=True) if grad is None or not grad.abs().sum() > 0}
        excused = {name for name in blind if any(fnmatch.fnmatchcase(name, pattern) for pattern in exempt)}
        expect(blind == excused, f"no gradient reaches {', '.join(sorted(blind - excused)[:3])}")
        idle = [pattern for pattern in exempt if not fnmatch.filter(blind, pattern)]
        expect(not idle, f"declared as untrained, but a gradient reaches it: {', '.join(idle)}")
        return "; ".join(f"{pattern} is exempt: {reason}" for pattern, reason in exempt.items()) or None

    return check_gradient_reaches_every_module
