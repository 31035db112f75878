"""The one training loop: `Trainer.run`.

A step is `training.composition`; this module decides what it trains on, when it saves, and which weights it keeps.
Random numbers are keyed by (seed, epoch, step), and the state is saved every few seconds. So a run that was killed at
any moment and started again ends with the weights of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robflat_bench.core import Interrupted, Moment, Observer, RunFailed, UsageError, Workspace, clock
from robflat_bench.core.batching import MEMORY_BATCH, cuts
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.core.signals import reserve
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import holding, load_weights, undamaged, write_weights
from robflat_bench.records.record import Epoch
from robflat_bench.records.store import INITIAL
from robflat_bench.training.checkpoint import States, Tensors, flattened, grouped
from robflat_bench.training.inputs import TrainingInputs
from robflat_bench.training.interrupt import Interrupt
from robflat_bench.training.muon import outputs
from robflat_bench.training.schedule import build_optimizer, build_schedule, learning_rate
from robflat_bench.training.shards import Shards

SAVE_EVERY_SECONDS = 5.0
"""A kill costs at most this much work. A state that takes long to write is saved more rarely: saving takes at most a
twentieth of the time."""


class Best(BaseModel):
    """The epoch with the lowest held-out robust error. Ties go to the lower robust loss, then to the earlier epoch."""

    epoch: int
    error: float
    loss: float


class State(BaseModel):
    """How far training has come. Together with the tensors, it is all that a resumed run needs.

    Parameters
    ----------
    epoch: epochs completed.
    step: updates done in the current epoch.
    loss_sum: sum of the losses of these updates.
    seconds: time of the whole training, checks on held-out examples included.
    epoch_seconds: time of the current epoch.
    forward, backward: image passes of training; checks on held-out examples are not counted.
    best: the best epoch so far; None before the first check.
    history: one row per completed epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    best: Best | None = None
    history: list[Epoch] = []


def train(inputs: TrainingInputs, observer: Observer) -> State:
    """Train to the end, from the newest saved state if there is one.

    Writes `initial`, `best`, `last` and, with `keep_every`, `epoch-NNNN` as safetensors into `inputs.folder`.

    Raises
    ------
    RunFailed: the loss is not finite.
    Interrupted: a signal asks the process to end; the state is saved first.
    """
    return Trainer(inputs, observer).run()


class Trainer:
    """The training loop and everything that it moves."""

    def __init__(self, inputs: TrainingInputs, observer: Observer) -> None:
        self.inputs, self.observer = inputs, observer
        self.model, self.composition, recipe = inputs.model, inputs.composition, inputs.recipe
        self.x = inputs.splits.images("train", inputs.device)
        self.y = inputs.splits.labels("train", inputs.device)
        self.leads = inputs.processes.leads
        self.cuts = cuts(len(self.y), recipe.batch_size, recipe.shards)
        self.per_epoch = (len(self.cuts) + 1) * self.composition.repeats
        self.total = self.per_epoch * recipe.epochs
        self.counter = PassCounter(self.model, *inputs.helpers.values())
        self.shards = Shards(inputs, self.x, self.y, self.counter)
        self.composition.setup(inputs.training(self.x))
        self.check_batches()
        networks = (self.model, *self.composition.parts().values())
        self.optimizer = build_optimizer(recipe, self.composition.parameters(self.model), outputs(*networks))
        self.states = States(inputs.folder)
        self.state = State()
        self.kept: dict[str, Tensors] = {}
        """Weights of the best and of the last epoch, once there are any."""
        self.restore()
        self.schedule = build_schedule(recipe, self.optimizer, self.total, self.done)
        self.since = self.saved_at = clock.now()
        self.save_cost = 0.0
        self.check_seconds = math.inf
        """Time of the last check on held-out examples. A signal does not wait for the end of a long one."""

    @property
    def done(self) -> int:
        """Updates done in all."""
        return self.state.epoch * self.per_epoch + self.state.step

    # ---- the loop -----------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train to the last epoch and write the checkpoints."""
        inputs, state, observer = self.inputs, self.state, self.observer
        self.shards.check_start(self.done)
        observer.training_starts(inputs.recipe.epochs, self.total, self.done)
        if self.done:
            self.counter.forward = 0  # the passes of `setup` were counted when this run began
        self.since = self.saved_at = clock.now()
        with Interrupt() as self.interrupt:
            while state.epoch < inputs.recipe.epochs:
                source = generator(inputs.seed, "order", state.epoch)
                order = torch.randperm(len(self.y), generator=source).to(inputs.device)
                batches = order.tensor_split(self.cuts)
                while state.step < self.per_epoch:
                    self.step(batches)
                    observer.step_ends(self.done)
                    stop = self.shards.stop(self.interrupt.requested or 0)
                    if stop or self.save_is_due():
                        self.save()
                    if stop:
                        raise Interrupted(stop)
                if not self.leads:
                    state.epoch, state.step = state.epoch + 1, 0
                    continue
                self.end_epoch()
                observer.epoch_ends(state.history)
                self.since = clock.now()  # the time of observers is not the run's
            self.counter.remove()
            self.save()
            self.interrupt.check()  # a signal during the last check, which no step follows
        if self.leads:
            for checkpoint, weights in self.kept.items():
                write_weights(inputs.folder / f"{checkpoint}.safetensors", weights)
        return state

    def step(self, batches: Sequence[Tensor]) -> None:
        """One update of the weights; `composition.repeats` updates in a row use the same batch."""
        inputs, state = self.inputs, self.state
        number, replay = divmod(state.step, self.composition.repeats)
        now, first = (
            Moment(inputs.seed, state.epoch, update, (state.epoch * self.per_epoch + update) / self.total)
            for update in (state.step, state.step - replay)
        )
        if inputs.recipe.shards > 1:
            loss = self.shards.update(batches[number], number, first, now, self.optimizer)
        else:
            batch = inputs.prepared(self.x, self.y, batches[number], number, first)
            with inputs.autocast(), global_state(now.random("global state of the update")):
                batch = replace(batch, moment=now)
                loss = self.composition.update(self.model, batch, inputs.attack(now), self.optimizer)
        place = f"at epoch {state.epoch}, step {state.step}"
        self.check_finite(math.isfinite(loss), f"the loss is {loss} {place}")
        # A sum is finite only if all its numbers are, and is faster to look at than each of them.
        sums = torch.stack([parameter.detach().sum() for parameter in self.model.parameters()])
        self.check_finite(bool(sums.isfinite().all()), f"the update makes weights NaN or infinite {place}")
        self.schedule.step()
        state.loss_sum += loss
        state.step += 1

    def end_epoch(self) -> None:
        """Check the weights on held-out examples if it is time, keep them if they are the best, and begin an epoch."""
        inputs, state, epoch, ended = self.inputs, self.state, self.state.epoch, self.state.epoch + 1
        last = ended == inputs.recipe.epochs
        due = last or ended % inputs.check_every == 0
        if due and self.worth_saving(self.check_seconds):
            self.save()
            self.interrupt.waits = False
        moment = Moment(inputs.seed, epoch, self.per_epoch, ended / inputs.recipe.epochs)
        with global_state(moment.random("global state of the evaluated weights")):
            weights = self.composition.evaluated(self.model, moment)
        self.account()
        clean = robust = loss = None
        if due:
            began = clock.now()
            with holding(self.model, weights, "the evaluated weights"):
                clean, robust, loss = heldout_check(inputs)
            self.check_seconds = clock.now() - began
            self.check_finite(math.isfinite(loss), f"the held-out loss is {loss} after epoch {epoch}")
            if state.best is None or (robust, loss) < (state.best.error, state.best.loss):
                state.best = Best(epoch=epoch, error=robust, loss=loss)
                self.kept["best"] = weights
        row = Epoch(
            epoch=epoch,
            learning_rate=learning_rate(self.optimizer),
            train_loss=state.loss_sum / self.per_epoch,
            heldout_clean_error=clean,
            heldout_robust_error=robust,
            heldout_robust_loss=loss,
            seconds=state.epoch_seconds,
        )
        state.history.append(row)
        if inputs.keep_every and ended % inputs.keep_every == 0:
            write_weights(inputs.folder / f"epoch-{epoch:04d}.safetensors", weights)
        if last:
            self.kept["last"] = weights
        self.counter.forward = self.counter.backward = 0  # the budget counts training, not this check
        self.account()
        state.epoch, state.step, state.loss_sum, state.epoch_seconds = ended, 0, 0.0, 0.0
        self.interrupt.waits = True

    def check_batches(self) -> None:
        """Raise UsageError if a shard has no image, or one image and a network in training normalises batches."""
        size, count, shards = self.inputs.recipe.batch_size, len(self.y), self.inputs.recipe.shards
        networks = (self.model, *self.composition.parts().values())
        normalises = any(isinstance(module, _BatchNorm) for network in networks for module in network.modules())
        smallest = min(size, count) // shards
        if smallest == 0:
            raise UsageError(
                f"a batch has fewer images than shards (recipe.batch_size {size}, {count} training images, "
                f"recipe.shards {shards}); use --set recipe.batch_size={shards} or more"
            )
        if normalises and smallest == 1:
            unit = "batch" if shards == 1 else f"shard of a batch (recipe.shards {shards})"
            raise UsageError(
                f"batch normalisation needs two images, and a {unit} has one (recipe.batch_size {size}, {count} "
                f"training images); use --set recipe.batch_size={2 * shards} or more"
            )

    def check_finite(self, finite: bool, what: str) -> None:
        """Raise RunFailed if training has diverged."""
        if not finite:
            raise RunFailed(
                f"{what} (learning rate {learning_rate(self.optimizer):g}); the last good state is kept in "
                f"{self.inputs.folder}. Try --set recipe.learning_rate with a smaller value"
            )

    # ---- saving and resuming ------------------------------------------------------------------------------

    def account(self) -> None:
        """Add time and image passes since the last call to the state."""
        elapsed = clock.now() - self.since
        self.since += elapsed
        self.state.seconds += elapsed
        self.state.epoch_seconds += elapsed
        self.state.forward += self.counter.forward
        self.state.backward += self.counter.backward
        self.counter.forward = self.counter.backward = 0

    def save_is_due(self) -> bool:
        return self.worth_saving(clock.now() - self.saved_at)

    def worth_saving(self, seconds: float) -> bool:
        """Whether work of so many seconds must not be lost."""
        return seconds > max(SAVE_EVERY_SECONDS, 20 * self.save_cost)

    def save(self) -> None:
        """Write everything that a resumed run needs, where this process leads."""
        if not self.leads:
            return
        self.account()
        began = clock.now()
        moments = {
            str(number): {name: torch.as_tensor(value) for name, value in values.items() if value is not None}
            for number, values in self.optimizer.state_dict()["state"].items()
        }
        groups = {"model": self.model.state_dict(), "composition": self.composition.state_dict()}
        tensors = flattened({**groups, "optimizer": flattened(moments), **self.kept})
        self.states.write(self.done, tensors, self.state.model_dump())
        self.saved_at = clock.now()
        self.save_cost = self.saved_at - began
        reserve(self.save_cost + self.state.seconds / self.done)

    def restore(self) -> None:
        """Return to the newest saved state, if there is one."""
        found, initial = self.states.latest(), self.inputs.folder / f"{INITIAL}.safetensors"
        if self.leads and (found is None or not undamaged(initial)):
            write_weights(initial, self.model.state_dict())  # still as initialised: nothing was loaded
        if found is None:
            return
        tensors, progress = found
        self.state, self.kept = State.model_validate(progress), grouped(tensors)
        load_weights(self.model, self.kept.pop("model"), "the saved state")
        self.composition.load_state_dict(self.kept.pop("composition", {}))
        moments = {int(number): values for number, values in grouped(self.kept.pop("optimizer", {})).items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def heldout_check(inputs: TrainingInputs) -> tuple[float, float, float]:
    """Clean error, robust error (clean errors included) and mean robust loss on the held-out examples."""
    model = inputs.model.eval()
    examples = inputs.splits.examples("heldout", inputs.device, inputs.dtype)
    with global_state(generator(inputs.evaluation_seed, "global state of the held-out check")):
        x_adv = inputs.selection.run(model, examples, Workspace(batch=MEMORY_BATCH, seed=inputs.evaluation_seed))
        with torch.no_grad():
            clean, adversarial = (torch.cat([*map(model, x.split(MEMORY_BATCH))]) for x in (examples.x, x_adv))
    wrong = clean.argmax(1) != examples.y
    robust_wrong = wrong | (adversarial.argmax(1) != examples.y)
    loss = nn.functional.cross_entropy(adversarial.double(), examples.y)
    return float(wrong.double().mean()), float(robust_wrong.double().mean()), float(loss)
