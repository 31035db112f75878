"""The tiny world in which components are tried: a network of a few hundred weights, a dozen real digits.

Everything is made anew for each use and always the same, so that what a component left behind is a comparison away.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.backbones.parts import initialize
from robflat_bench.core import Batch, Examples, ImageShape, Pool, Threat
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.data.digits import load as load_digits
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import Component, resolve
from robflat_bench.registry.plugins import built_in
from robflat_bench.registry.registry import Registry

THREAT = Threat(epsilon=0.1)
TOLERANCE = 1e-6
COUNT = 12
SHAPE = ImageShape(channels=1, size=8, classes=10, mean=(0.3,), std=(0.4,))

Made = TypeVar("Made")
Check = Callable[[Component, Registry], str | None]
"""Raises where the component breaks its promise; the note it may return says what is exempt, and why."""


class Skipped(Exception):
    """This check does not apply here, or cannot run; says why."""


class Broken(AssertionError):
    """The component does not keep its promise; says which."""


def expect(promise: bool, text: str) -> None:
    """Broken(text) unless the promise holds."""
    if not promise:
        raise Broken(text)


@dataclass
class World:
    """A network, and digits as examples and as a batch."""

    model: nn.Module
    examples: Examples
    batch: Batch

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@functools.cache
def built_ins() -> Registry:
    """A registry without any plugin: what the world is made of, and where weights must be of use."""
    return Registry(built_in())


def network() -> nn.Module:
    """resnet8(width=2), always with the same weights."""
    model: nn.Module = resolve(built_ins(), "backbone", "resnet8(width=2)").build(SHAPE, "relu")
    initialize(model, generator("kit"))
    return model


def world() -> World:
    """An untrained network and twelve digits."""
    pool = digits(0, COUNT)
    x = torch.from_numpy(pool.x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    y = torch.from_numpy(pool.y.astype(np.int64))
    index = torch.arange(COUNT)
    target = nn.functional.one_hot(y, 10).float()
    batch = Batch(index, x.clone(), y.clone(), target, torch.ones(COUNT))
    return World(network(), Examples(x, y, index), batch)


def digits(start: int, stop: int) -> Pool:
    """These of the digits."""
    pool = _all_digits()
    return Pool(pool.x[start:stop], pool.y[start:stop], pool.index[start:stop])


@functools.cache
def _all_digits() -> Pool:
    return load_digits().pools["train"]


def inner(steps: int = 2) -> TrainingAttack:
    """A training attack of so many steps."""
    return TrainingAttack(
        epsilon=THREAT.epsilon, step=0.05, steps=steps, start="uniform", bn="eval", source=generator("kit")
    )


# ---------------------------------------------------------------------------------------------------------
# Looking at a component while it works
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """What a component made of a world, and all that tells what else it did. before: a world as this one was."""

    made: Any
    place: World
    before: World
    random_state_kept: bool
    forward: int
    backward: int


def watch(place: World, before: World, use: Callable[[World], Any]) -> Watched:
    """`use(place)`, with its passes counted."""
    counter = PassCounter(place.model)
    try:
        with global_state(generator("kit", 1)):
            random_state = torch.get_rng_state()
            made = use(place)
            kept = torch.equal(torch.get_rng_state(), random_state)
    finally:
        counter.remove()
    return Watched(made, place, before, kept, counter.forward, counter.backward)


def remembered(compute: Callable[[Component, Registry], Made]) -> Callable[[Component, Registry], Made]:
    """What was computed for the component asked about last is kept: the checks of one component share it."""
    last: list[Any] = []

    @functools.wraps(compute)
    def recall(component: Component, registry: Registry) -> Made:
        if not last or last[0] is not component.offer or last[1] != component.params or last[2] is not registry:
            last[:] = [component.offer, component.params, registry, compute(component, registry)]
        made: Made = last[3]
        return made

    return recall


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, NaN being itself."""
    return torch.equal(one, other) or (
        one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    )


# ---------------------------------------------------------------------------------------------------------
# What several kinds promise
# ---------------------------------------------------------------------------------------------------------


def expect_same_model(watched: Watched, *, buffers: bool = True) -> None:
    """Weights, buffers, modes and gradients as before."""
    model, state = watched.place.model, watched.before.state
    for name, parameter in model.named_parameters():
        expect(torch.equal(parameter, state[name]), f"weight '{name}' is changed")
        expect(parameter.requires_grad and parameter.grad is None, f"'{name}' is frozen or has a gradient left")
    if buffers:
        changed = [name for name, buffer in model.named_buffers() if name in state and not same(buffer, state[name])]
        expect(not changed, f"buffers {changed[:3]} are changed")
    modes = [module.training for module in watched.before.model.modules()]
    left = [name for (name, module), mode in zip(model.named_modules(), modes, strict=True) if module.training != mode]
    expect(not left, f"left in another mode: {', '.join(name or 'the network itself' for name in left[:3])}")


def leaves_no_trace(watched: Callable[[Component, Registry], Watched]) -> tuple[Check, ...]:
    """The checks of what looks at a network and examples: it leaves everything as it was."""

    def check_model_restored(component: Component, registry: Registry) -> None:
        """Weights, running statistics and modes are as before, bit for bit, and no gradient is left behind."""
        expect_same_model(watched(component, registry))

    def check_examples_untouched(component: Component, registry: Registry) -> None:
        """Images, labels and indices that it is given stay as they are."""
        seen = watched(component, registry)
        expect_same_tensors(seen.place.examples, seen.before.examples)

    return check_model_restored, check_examples_untouched, random_state_untouched(watched)


def random_state_untouched(watched: Callable[[Component, Registry], Any]) -> Check:
    """The check of whoever may draw random numbers; watched gives what has `random_state_kept`."""

    def check_random_state_untouched(component: Component, registry: Registry) -> None:
        """Nobody else's random numbers change: the global state is as before."""
        expect(watched(component, registry).random_state_kept, "the global random state has moved")

    return check_random_state_untouched


def expect_passes(watched: Watched, declared: tuple[int, int], at_most: bool) -> None:
    """Forward and backward passes of the kit's examples, as many as are declared for each."""
    made, total = (watched.forward, watched.backward), (declared[0] * COUNT, declared[1] * COUNT)
    right = made[0] <= total[0] and made[1] <= total[1] if at_most else made == total
    expect(right, f"{COUNT} images make {made} forward and backward passes, {total} are declared")


def expect_same_tensors(given: Any, before: Any) -> None:
    """Every tensor of the examples or of the batch as before."""
    for name, tensor in vars(before).items():
        if isinstance(tensor, Tensor):
            expect(same(getattr(given, name), tensor), f"'{name}' of what it was given is changed")


def expect_in_box(x_adv: Tensor) -> None:
    """In [0,1], every pixel a number."""
    expect(bool((x_adv >= 0).all() and (x_adv <= 1).all()), "x_adv leaves [0,1]")


def expect_within(x_adv: Tensor, x: Tensor, radius: float) -> None:
    """In the l-inf ball around x."""
    expect(x_adv.shape == x.shape, f"x_adv has the shape {tuple(x_adv.shape)}, not that of x")
    distance = float((x_adv - x).abs().max())
    expect(not distance > radius + TOLERANCE, f"x_adv is {distance:.4g} away, the radius is {radius:.4g}")
