"""Training a component as a run would, with the real loop on a few digits, in a fraction of a second."""

from __future__ import annotations

import functools
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robflat_bench.config.recipe import Recipe
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import Attack, MethodInfo, ModifierInfo, Observer, Training
from robflat_bench.data.splits import Splits
from robflat_bench.numerics.weights import read_weights
from robflat_bench.registry.components import Component, Composed, resolve
from robflat_bench.testing.expectations import expect
from robflat_bench.testing.fixtures import SHAPE, THREAT, World, built_ins, digits, dropping, network, world
from robflat_bench.training.composition import Composition
from robflat_bench.training.inputs import TrainingInputs
from robflat_bench.training.loop import State, train
from robflat_bench.training.processes import Processes

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05, epsilon=THREAT.epsilon, attack_steps=1, attack_step=0.1)
"""With `DIGITS` images, each epoch has two batches, the second one smaller."""
DIGITS = 14
LONGER = RECIPE.model_copy(update={"epochs": 8, "batch_size": 50, "learning_rate": 0.1, "attack_steps": 2})


@functools.cache
def splits(count: int) -> Splits:
    """The first `count` digits for training; 20 held out, 20 for tests, 20 spare."""
    pools = {name: digits(count + start, count + start + 20) for name, start in (("heldout", 0), ("test", 20))}
    ref = DatasetRef(name="digits", checksum="0" * 64, canonical=True, origin="the kit's digits")
    return Splits({"train": digits(0, count), **pools}, ref, SHAPE, digits(count + 40, count + 60))  # type: ignore[dict-item]


def composed(component: Component[MethodInfo | ModifierInfo]) -> Composed:
    """The method alone, or the method `at` with the modifier."""
    if component.info.kind == "method":
        return Composed(cast(Component[MethodInfo], component))
    return Composed(resolve(built_ins(), "method", "at"), (cast(Component[ModifierInfo], component),))


def untrained_helpers(whole: Composed) -> dict[str, nn.Module]:
    """Name -> an untrained, frozen network for every helper that the composition needs."""
    return {name: network().eval().requires_grad_(False) for name in whole.helpers}


def set_up(whole: Composed, place: World, helpers: Mapping[str, nn.Module] | None = None) -> Composition:
    """Build the composition for single updates of a world's network on its batch; untrained helpers by default."""
    composition = Composition(whole)
    composition.setup(
        Training(
            model=place.model,
            shape=SHAPE,
            count=len(place.batch.x),
            epsilon=THREAT.epsilon,
            helpers=untrained_helpers(whole) if helpers is None else helpers,
            images=lambda: iter([place.examples.x]),
            spare=lambda: (255 * place.examples.x.flip(0)).to(torch.uint8),
            seed=0,
        )
    )
    return composition


@dataclass(frozen=True)
class Outcome:
    """How a training ended: its state, and checkpoint ("best", "last") -> weights, where the process leads."""

    state: State
    weights: dict[str, dict[str, Tensor]]


def trained(
    component: Component[Any],
    *,
    model: Callable[[], nn.Module] = dropping,
    stop_at: int | None = None,
    count: int = DIGITS,
    **inputs: Any,
) -> Outcome:
    """Train one of the kit's networks to the end.

    Parameters
    ----------
    component : Component
        A method, or a modifier, which is added to `at`.
    model : callable
        Makes the network, with the same weights at each call.
    stop_at : int, optional
        Interrupt the training after so many updates and resume it with objects built anew.
    count : int
        Number of training images.
    **inputs
        Other `TrainingInputs` than the kit's: `seed`, `recipe`, `processes`.
    """
    whole = composed(component)
    selection: Attack = resolve(built_ins(), "attack", "fgsm").build(THREAT)
    with tempfile.TemporaryDirectory() as folder:

        def built_anew() -> TrainingInputs:
            chosen: dict[str, Any] = {"recipe": RECIPE, "seed": 1, **inputs}
            return TrainingInputs(
                model=model(),
                composition=Composition(whole),
                helpers=untrained_helpers(whole),
                splits=splits(count),
                selection=selection,
                check_every=chosen["recipe"].epochs,
                evaluation_seed=0,
                folder=Path(folder),
                device="cpu",
                dtype=torch.float32,
                **chosen,
            )

        if stop_at is not None:
            with suppress(KeyboardInterrupt):
                train(built_anew(), _StopsAt(stop_at))
                raise AssertionError("training ended before it was interrupted")
        state = train(built_anew(), Observer())
        files = [Path(folder) / f"{name}.safetensors" for name in ("best", "last")]
        return Outcome(state, {file.stem: read_weights(file) for file in files if file.is_file()})


class _StopsAt(Observer):
    """Ctrl-C after so many updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, done: int) -> None:
        if done == self.step:
            signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True)
class Recorded(Processes):
    """One process that computes all shards; `rows` holds what it gathered, call by call."""

    rows: list[Tensor] = field(default_factory=list)

    def gathered(self, rows: Tensor) -> Tensor:
        self.rows.append(rows)
        return rows


@dataclass(frozen=True)
class Replayed(Processes):
    """One of as many processes as there are shards; the others contribute what `Recorded` holds.

    CheckFailure where it contributes other numbers than the process that computed all shards.
    """

    recorded: Iterator[Tensor] = field(default_factory=lambda: iter(()))

    def gathered(self, rows: Tensor) -> Tensor:
        found = next(self.recorded)
        alone = len(found) < self.count  # what is gathered of processes, not of shards
        why = "a process that has one shard of each batch computes other losses or gradients than one that has all"
        expect(alone or torch.equal(rows, found[self.rank : self.rank + 1]), why)
        return found


@functools.cache
def _trained_weights() -> dict[str, Tensor]:
    return trained(resolve(built_ins(), "method", "at"), model=network, recipe=LONGER, count=200).weights["last"]


def trained_world() -> World:
    """A world whose network, in eval mode, `at` trained on 200 digits; training happens once in a process."""
    place = world()
    place.model.load_state_dict(_trained_weights())
    place.model.eval()
    return place
