"""The real training loop on a few digits: a component is trained as a run would train it, in a fraction of a second."""

from __future__ import annotations

import functools
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robflat_bench.config.recipe import Recipe
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import Attack, Observer, Training
from robflat_bench.data.splits import Splits
from robflat_bench.numerics.weights import read_weights
from robflat_bench.registry.components import Component, Composed, resolve
from robflat_bench.testing.world import SHAPE, THREAT, Skipped, World, built_ins, digits, network, world
from robflat_bench.training.composition import Composition
from robflat_bench.training.loop import State, TrainingInputs, train

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05, epsilon=THREAT.epsilon, attack_steps=1, attack_step=0.1)
"""On so many digits, two batches in an epoch, the second of them smaller."""
DIGITS = 14
LONGER = RECIPE.model_copy(update={"epochs": 8, "batch_size": 50, "learning_rate": 0.1, "attack_steps": 2})


@functools.cache
def splits(count: int) -> Splits:
    """So many training digits, 20 held out, 20 for tests, 20 to spare."""
    pools = {name: digits(count + start, count + start + 20) for name, start in (("heldout", 0), ("test", 20))}
    ref = DatasetRef(name="digits", checksum="", canonical=True, origin="the kit's digits")
    return Splits({"train": digits(0, count), **pools}, ref, SHAPE, digits(count + 40, count + 60))  # type: ignore[dict-item]


def composed(component: Component) -> Composed:
    """The method; or AT with the modifier."""
    if component.info.kind == "method":
        return Composed(component)
    return Composed(resolve(built_ins(), "method", "at"), (component,))


def helpers(whole: Composed) -> dict[str, nn.Module]:
    """The networks that it asks for, untrained."""
    return {name: network().eval().requires_grad_(False) for name in whole.helpers}


def prepared(whole: Composed, place: World, lent: dict[str, nn.Module] | None = None) -> Composition:
    """Built and set up, with helpers that are lent to it, for single updates of this world's network on its batch."""
    composition = Composition(whole)
    composition.setup(
        Training(
            model=place.model,
            shape=SHAPE,
            count=len(place.batch.x),
            epsilon=THREAT.epsilon,
            helpers=helpers(whole) if lent is None else lent,
            images=lambda: iter([place.examples.x]),
            spare=lambda: (255 * place.examples.x.flip(0)).to(torch.uint8),
        )
    )
    return composition


@dataclass(frozen=True)
class Outcome:
    """How training ended: its state, and checkpoint -> weights."""

    state: State
    weights: dict[str, dict[str, Tensor]]


def trained(
    component: Component,
    *,
    seed: int = 1,
    recipe: Recipe = RECIPE,
    count: int = DIGITS,
    stop_at: int | None = None,
) -> Outcome:
    """From the kit's initial weights to the end; with `stop_at`, interrupted after so many updates, and resumed by
    objects built anew."""
    whole = composed(component)
    attack: Attack = resolve(built_ins(), "attack", "fgsm").build(THREAT)
    with tempfile.TemporaryDirectory() as folder:

        def job() -> TrainingInputs:
            return TrainingInputs(
                model=network(),
                composition=Composition(whole),
                helpers=helpers(whole),
                recipe=recipe,
                splits=splits(count),
                seed=seed,
                selection=attack,
                check_every=recipe.epochs,
                evaluation_seed=0,
                folder=Path(folder),
                device="cpu",
                dtype=torch.float32,
            )

        if stop_at is not None:
            with _interruptible():
                train(job(), _StopsAt(stop_at))
        state = train(job(), Observer())
        names = ("best", "last")
        return Outcome(state, {name: read_weights(Path(folder) / f"{name}.safetensors") for name in names})


class _StopsAt(Observer):
    """Ctrl-C after so many updates."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_ends(self, done: int) -> None:
        if done == self.step:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _interruptible() -> Iterator[None]:
    """The interrupt ends the training within, and nothing else."""
    if threading.current_thread() is not threading.main_thread():
        raise Skipped("only training in the main thread can be interrupted")
    try:
        yield
    except KeyboardInterrupt:
        return
    raise AssertionError("training ended before it was interrupted")


@functools.cache
def _trained_weights() -> dict[str, Tensor]:
    return trained(resolve(built_ins(), "method", "at"), recipe=LONGER, count=200).weights["last"]


def trained_world() -> World:
    """The world with a network in eval mode that AT trained on 200 digits, once in a process."""
    place = world()
    place.model.load_state_dict(_trained_weights())
    place.model.eval()
    return place
