"""The one training loop. A method says how a batch becomes a loss; everything else happens here.

Random numbers are keyed by (seed, epoch, step) and the state is saved every few seconds of work, so a run that
was killed at any moment ends, when run again, with the weights of an undisturbed one, bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.base import Attack, Batch, Method, RunFailed, Workspace
from robflat_bench.data.augment import AUGMENTATIONS
from robflat_bench.data.splits import Splits
from robflat_bench.observers import Observer
from robflat_bench.passes import PassCounter
from robflat_bench.randomness import generator
from robflat_bench.recipe import Recipe
from robflat_bench.record import Epoch
from robflat_bench.training.checkpoint import States
from robflat_bench.training.interrupt import Interrupt
from robflat_bench.training.schedule import build_optimizer, build_schedule, learning_rate
from robflat_bench.weights import load_weights, write_weights

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
class Job:
    """What is trained, on what, and where its checkpoints lie."""

    model: nn.Module
    method: Method
    recipe: Recipe
    splits: Splits
    seed: int
    selection: Attack
    check_every: int
    evaluation_seed: int
    folder: Path
    device: str
    dtype: torch.dtype


def train(job: Job, observer: Observer) -> State:
    """Train to the end, from wherever an earlier process stopped; best and last weights lie in `job.folder`."""
    recipe, model = job.recipe, job.model
    x = job.splits.images("train", job.device)
    y = job.splits.labels("train", job.device)
    per_epoch = math.ceil(len(y) / recipe.batch_size)
    total = per_epoch * recipe.epochs

    # ---- where an earlier process stopped -------------------------------------------------------------
    states = States(job.folder)
    optimizer = build_optimizer(recipe, model.parameters())
    state, best = _restore(states, model, optimizer)
    done = state.epoch * per_epoch + state.step
    schedule = build_schedule(recipe, optimizer, total, done)
    observer.training_starts(recipe.epochs, total, done)
    counter = PassCounter(model)
    saved_at = clock = time.perf_counter()
    save_cost = 0.0

    def save() -> None:
        nonlocal saved_at, save_cost
        began = time.perf_counter()
        states.write(state.epoch * per_epoch + state.step, _tensors(model, optimizer, best), state.to_json())
        saved_at = time.perf_counter()
        save_cost = saved_at - began

    def account() -> None:
        """Move time and passes since the last call into the state."""
        nonlocal clock
        now = time.perf_counter()
        state.seconds += now - clock
        state.epoch_seconds += now - clock
        clock = now
        state.forward, counter.forward = state.forward + counter.forward, 0
        state.backward, counter.backward = state.backward + counter.backward, 0

    # ---- epochs ---------------------------------------------------------------------------------------
    with Interrupt() as interrupt:
        while state.epoch < recipe.epochs:
            order = torch.randperm(len(y), generator=generator(job.seed, "order", state.epoch)).to(job.device)
            while state.step < per_epoch:
                rows = order[state.step * recipe.batch_size :][: recipe.batch_size]
                batch = _batch(job, x, y, rows, state)
                model.train()
                x_adv = job.method.attack(model, batch, _inner(job, state))
                loss = job.method.loss(model, batch, x_adv)
                value = loss.item()
                if not math.isfinite(value):
                    raise _diverged(
                        job, f"the loss is {value} at epoch {state.epoch}, step {state.step}", learning_rate(optimizer)
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                state.loss_sum += value
                state.step += 1
                observer.step_ends(state.epoch * per_epoch + state.step)
                if interrupt.requested or time.perf_counter() - saved_at > max(SAVE_EVERY_SECONDS, 20 * save_cost):
                    account()
                    save()
                if interrupt.requested:
                    raise KeyboardInterrupt
            account()
            if _end_epoch(job, state, per_epoch, learning_rate(optimizer)):
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            counter.forward = counter.backward = 0  # the budget is what training costs; that was evaluation
            account()
            state.epoch, state.step, state.loss_sum, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0
            observer.epoch_ends(state.history)
    counter.remove()
    save()
    if interrupt.requested:  # during the last check, where no step follows that would have seen it
        raise KeyboardInterrupt
    write_weights(job.folder / "best.safetensors", best)
    write_weights(job.folder / "last.safetensors", model.state_dict())
    return state


def _diverged(job: Job, what: str, rate: float) -> RunFailed:
    return RunFailed(
        f"{what} (learning rate {rate:g}); the last good state is kept in {job.folder}. "
        "Try --set recipe.learning_rate with a smaller value"
    )


def _end_epoch(job: Job, state: State, per_epoch: int, rate: float) -> bool:
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


def heldout_check(job: Job) -> tuple[float, float, float]:
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


def _batch(job: Job, x: Tensor, y: Tensor, rows: Tensor, state: State) -> Batch:
    """uint8 images of these rows, augmented, as a batch in [0,1]."""
    source = generator(job.seed, "augment", state.epoch, state.step)
    images = AUGMENTATIONS[job.recipe.augmentation](x[rows], source)
    labels = y[rows]
    return Batch(
        index=rows,
        x=images.to(job.dtype) / 255,
        y=labels,
        target=nn.functional.one_hot(labels, job.splits.shape.classes).to(job.dtype),
        weight=torch.ones(len(rows), dtype=job.dtype, device=job.device),
    )


def _inner(job: Job, state: State) -> TrainingAttack:
    recipe = job.recipe
    return TrainingAttack(
        epsilon=recipe.epsilon,
        step=recipe.attack_step,
        steps=recipe.attack_steps,
        start=recipe.attack_start,
        bn=recipe.attack_bn,
        source=generator(job.seed, "attack", state.epoch, state.step),
    )


def _tensors(model: nn.Module, optimizer: Optimizer, best: Tensors) -> Tensors:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    return tensors


def _restore(states: States, model: nn.Module, optimizer: Optimizer) -> tuple[State, Tensors]:
    """Weights and optimizer as the newest whole state has them; returns it with the best weights so far."""
    found = states.latest()
    if found is None:
        return State(), {}
    tensors, value = found
    parts: dict[str, Tensors] = {"model": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    load_weights(model, parts["model"], "the saved state")
    values: dict[int, Tensors] = {}
    for name, tensor in parts["optimizer"].items():
        number, _, key = name.partition(".")
        values.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    return State.from_json(value), parts["best"]
