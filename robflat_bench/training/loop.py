"""The one training loop. What happens within a step is `composition`; when, on what and what is kept, is here.

Random numbers are keyed by (seed, epoch, step) and the state is saved every few seconds of work, so a run that
was killed at any moment ends, when run again, with the weights of an undisturbed one, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.config.recipe import Recipe
from robflat_bench.core import Attack, Batch, Moment, Observer, RunFailed, Training, Workspace, clock
from robflat_bench.core.randomness import generator
from robflat_bench.data.augment import AUGMENTATIONS
from robflat_bench.data.splits import Splits
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import load_weights, write_weights
from robflat_bench.results.record import Epoch
from robflat_bench.results.store import INITIAL
from robflat_bench.training.checkpoint import States
from robflat_bench.training.composition import Composition
from robflat_bench.training.interrupt import Interrupt
from robflat_bench.training.schedule import build_optimizer, build_schedule, learning_rate

Tensors = dict[str, Tensor]

SAVE_EVERY_SECONDS = 5.0
"""Work that a kill can cost; a state that takes long to write is written at most a twentieth of the time."""


@dataclass
class Best:
    """The epoch with the lowest held-out robust error, ties broken by robust loss, then by being first."""

    epoch: int
    error: float
    loss: float


@dataclass
class State:
    """Where training stands, beside weights and optimizer: everything a resumed run must know."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    best: Best | None = None
    history: list[Epoch] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "history": [row.model_dump() for row in self.history]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        best = Best(**value["best"]) if value["best"] else None
        return cls(**{**value, "best": best, "history": [Epoch(**row) for row in value["history"]]})


@dataclass(frozen=True)
class TrainingInputs:
    """What is trained, on what, and where its checkpoints lie. reduced: under autocast to bfloat16."""

    model: nn.Module
    composition: Composition
    helpers: Mapping[str, nn.Module]
    recipe: Recipe
    splits: Splits
    seed: int
    selection: Attack
    check_every: int
    evaluation_seed: int
    folder: Path
    device: str
    dtype: torch.dtype
    reduced: bool = False
    keep_every: int = 0


def train(job: TrainingInputs, observer: Observer) -> State:
    """Train to the end, from wherever an earlier process stopped; the weights of the beginning, the best and the last
    epoch and of every `keep_every`-th lie in `job.folder`."""
    recipe, model, composition = job.recipe, job.model, job.composition
    x = job.splits.images("train", job.device)
    y = job.splits.labels("train", job.device)
    repeats = composition.repeats
    per_epoch = math.ceil(len(y) / recipe.batch_size) * repeats
    total = per_epoch * recipe.epochs

    # ---- where an earlier process stopped -------------------------------------------------------------
    states = States(job.folder)
    counter = PassCounter(model, *job.helpers.values())
    full = [network.register_forward_hook(_in_float32) for network in (model, *job.helpers.values()) if job.reduced]
    composition.setup(_training(job, x))
    optimizer = build_optimizer(recipe, composition.parameters(model))
    state, kept = _restore(states, model, composition, optimizer)
    done = state.epoch * per_epoch + state.step
    schedule = build_schedule(recipe, optimizer, total, done)
    observer.training_starts(recipe.epochs, total, done)
    if not done:
        write_weights(job.folder / f"{INITIAL}.safetensors", model.state_dict())
    else:
        counter.forward = 0  # what the beginning costs was counted when this run began
    saved_at = since = clock.now()
    save_cost = 0.0

    def save() -> None:
        nonlocal saved_at, save_cost
        began = clock.now()
        tensors = _tensors(model, composition, optimizer, kept)
        states.write(state.epoch * per_epoch + state.step, tensors, state.to_json())
        saved_at = clock.now()
        save_cost = saved_at - began

    def account() -> None:
        """Move time and passes since the last call into the state."""
        nonlocal since
        now = clock.now()
        state.seconds += now - since
        state.epoch_seconds += now - since
        since = now
        state.forward, counter.forward = state.forward + counter.forward, 0
        state.backward, counter.backward = state.backward + counter.backward, 0

    # ---- epochs ---------------------------------------------------------------------------------------
    with Interrupt() as interrupt:
        while state.epoch < recipe.epochs:
            order = torch.randperm(len(y), generator=generator(job.seed, "order", state.epoch)).to(job.device)
            while state.step < per_epoch:
                number = state.step // repeats
                rows = order[number * recipe.batch_size :][: recipe.batch_size]
                now, first = (
                    Moment(job.seed, state.epoch, update, (state.epoch * per_epoch + update) / total)
                    for update in (state.step, number * repeats)
                )
                batch = composition.prepare(_batch(job, x, y, rows, number, first))  # the same at each replay
                with _reduced(job):
                    value = composition.update(model, replace(batch, moment=now), _inner(job, now), optimizer)
                if not math.isfinite(value):
                    where = f"epoch {state.epoch}, step {state.step}"
                    raise _diverged(job, f"the loss is {value} at {where}", learning_rate(optimizer))
                schedule.step()
                state.loss_sum += value
                state.step += 1
                observer.step_ends(state.epoch * per_epoch + state.step)
                if interrupt.requested or clock.now() - saved_at > max(SAVE_EVERY_SECONDS, 20 * save_cost):
                    account()
                    save()
                if interrupt.requested:
                    raise KeyboardInterrupt
            ended = Moment(job.seed, state.epoch, per_epoch, (state.epoch + 1) / recipe.epochs)
            weights = composition.evaluated(model, ended)
            account()
            with holding(model, weights):
                improved = _end_epoch(job, state, per_epoch, learning_rate(optimizer))
            if improved:
                kept["best"] = weights
            if job.keep_every and (state.epoch + 1) % job.keep_every == 0:
                write_weights(job.folder / f"epoch-{state.epoch:04d}.safetensors", weights)
            counter.forward = counter.backward = 0  # the budget is what training costs; that was evaluation
            account()
            state.epoch, state.step, state.loss_sum, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0
            if state.epoch == recipe.epochs:
                kept["last"] = weights
            observer.epoch_ends(state.history)
            since = clock.now()  # what observers take is not the run's
    counter.remove()
    for handle in full:
        handle.remove()
    save()
    if interrupt.requested:  # during the last check, where no step follows that would have seen it
        raise KeyboardInterrupt
    for checkpoint, tensors in kept.items():
        write_weights(job.folder / f"{checkpoint}.safetensors", tensors)
    return state


def _reduced(job: TrainingInputs) -> torch.autocast:
    """The precision of a step. No cache of cast weights: modifiers move weights within a step, unseen by a cache."""
    device = torch.device(job.device).type
    return torch.autocast(device, torch.bfloat16, enabled=job.reduced, cache_enabled=False)


def _in_float32(module: nn.Module, inputs: object, logits: Tensor) -> Tensor:
    """Losses are computed in float32, whatever the network's precision."""
    return logits.float()


@contextmanager
def holding(model: nn.Module, weights: Tensors) -> Iterator[None]:
    """The model with these weights; afterwards its own are back, bit for bit."""
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, weights, "the evaluated weights")
    try:
        yield
    finally:
        load_weights(model, own, "the model's own weights")


def _diverged(job: TrainingInputs, what: str, rate: float) -> RunFailed:
    return RunFailed(
        f"{what} (learning rate {rate:g}); the last good state is kept in {job.folder}. "
        "Try --set recipe.learning_rate with a smaller value"
    )


def _end_epoch(job: TrainingInputs, state: State, per_epoch: int, rate: float) -> bool:
    """Check held-out examples where it is due and write the epoch into the history; whether it is the best."""
    due = (state.epoch + 1) % job.check_every == 0 or state.epoch + 1 == job.recipe.epochs
    clean = robust = loss = None
    improved = False
    if due:
        clean, robust, loss = heldout_check(job)
        if not math.isfinite(loss):
            raise _diverged(job, f"the held-out loss is {loss} after epoch {state.epoch}", rate)
        improved = state.best is None or (robust, loss) < (state.best.error, state.best.loss)
        if improved:
            state.best = Best(state.epoch, robust, loss)
    state.history.append(
        Epoch(
            epoch=state.epoch,
            learning_rate=rate,
            train_loss=state.loss_sum / per_epoch,
            heldout_clean_error=clean,
            heldout_robust_error=robust,
            heldout_robust_loss=loss,
            seconds=state.epoch_seconds,
        )
    )
    return improved


def heldout_check(job: TrainingInputs) -> tuple[float, float, float]:
    """Clean error, robust error (clean errors included) and robust loss on the held-out examples."""
    job.model.eval()
    examples = job.splits.examples("heldout", job.device, job.dtype)
    x_adv = job.selection.run(job.model, examples, Workspace(batch=250, seed=job.evaluation_seed))
    with torch.no_grad():
        clean, adversarial = (
            torch.cat([job.model(part) for part in images.split(250)]) for images in (examples.x, x_adv)
        )
    wrong = clean.argmax(1) != examples.y
    robust_wrong = wrong | (adversarial.argmax(1) != examples.y)
    loss = nn.functional.cross_entropy(adversarial.double(), examples.y)
    return float(wrong.double().mean()), float(robust_wrong.double().mean()), float(loss)


def _training(job: TrainingInputs, x: Tensor) -> Training:
    """What a method may know before the first step; x: the uint8 training images."""

    def images() -> Iterator[Tensor]:
        return (part.to(job.dtype) / 255 for part in x.split(250))

    return Training(
        model=job.model,
        shape=job.splits.shape,
        count=len(x),
        epsilon=job.recipe.epsilon,
        helpers=job.helpers,
        images=images,
        spare=lambda: job.splits.spare_images(job.device),
    )


def _batch(job: TrainingInputs, x: Tensor, y: Tensor, rows: Tensor, number: int, now: Moment) -> Batch:
    """uint8 images of these rows, augmented, as a batch in [0,1]; number: of the batch within its epoch."""

    def augment(images: Tensor, purpose: str) -> Tensor:
        source = generator(job.seed, purpose, now.epoch, number)
        images = AUGMENTATIONS[job.recipe.augmentation](images, source)
        return job.composition.augment(images, source).to(job.dtype) / 255

    labels = y[rows]
    return Batch(
        index=rows,
        x=augment(x[rows], "augment"),
        y=labels,
        target=nn.functional.one_hot(labels, job.splits.shape.classes).to(job.dtype),
        weight=torch.ones(len(rows), dtype=job.dtype, device=job.device),
        moment=now,
        views=lambda which: augment(x[rows], f"augment {which}"),
        augment=augment,
    )


def _inner(job: TrainingInputs, now: Moment) -> TrainingAttack:
    recipe = job.recipe
    return TrainingAttack(
        epsilon=recipe.epsilon,
        step=recipe.attack_step,
        steps=recipe.attack_steps,
        start=recipe.attack_start,
        bn=recipe.attack_bn,
        source=now.random("attack"),
    )


def _tensors(model: nn.Module, composition: Composition, optimizer: Optimizer, kept: Mapping[str, Tensors]) -> Tensors:
    """All that a state holds, under "<group>.<name>"."""
    groups: dict[str, Tensors] = {"model": model.state_dict(), "composition": composition.state_dict(), **kept}
    tensors = {f"{group}.{name}": tensor for group, values in groups.items() for name, tensor in values.items()}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    return tensors


def _restore(
    states: States, model: nn.Module, composition: Composition, optimizer: Optimizer
) -> tuple[State, dict[str, Tensors]]:
    """Everything as the newest whole state has it; returns it with the weights kept so far ("best", "last")."""
    found = states.latest()
    if found is None:
        return State(), {}
    tensors, value = found
    groups: dict[str, Tensors] = {"model": {}, "composition": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    load_weights(model, groups.pop("model"), "the saved state")
    composition.load_state_dict(groups.pop("composition"))
    values: dict[int, Tensors] = {}
    for name, tensor in groups.pop("optimizer").items():
        number, _, key = name.partition(".")
        values.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    return State.from_json(value), groups
