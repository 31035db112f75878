r"""Updates whose batches are cut into R shards (`recipe.shards`), computed by W processes, where W divides R.

    B = B_0 + ... + B_{R-1},   L(w) = \sum_s c_s L_s(w),   dL/dw = \sum_s c_s dL_s/dw,   c_s = |B_s| / |B|

A shard is a small batch: it is augmented, prepared, attacked and normalised alone, with random numbers of its own
(`Moment.shard`), and what a method keeps from its attack to its loss is the shard's (`Composition.for_shard`). What
moves the weights (`Composition.descend`: plain descent, AWP, SAM, ...) sees one loss L of the whole batch,
`_WholeLoss`, which computes its gradient when it is called. So only evaluations of the loss are divided among
processes. Process k computes the shards k R/W, ..., (k+1) R/W - 1, one after the other, and then moves the weights as
all others do.

An evaluation makes one row of numbers for each shard: c_s L_s, its gradient, and the buffers after it (statistics of
batch normalisation; each shard starts from the same ones). Every process gathers the rows of all R shards and adds
them in the order of the shards, so all processes hold the same bits, for every W. Buffers are averaged with the
weights c_s; a number on which all shards agree stays as it is. Integer buffers count batches, and each shard counts
alike. Ctrl-C and the counts of image passes travel in the same rows: all processes stop after the same update, and the
budget is that of all of them.

Without batch normalisation and random draws, R shards train as one batch does, up to rounding. Statistics are not
synchronised in the forward pass, because torch's layer for that has no second derivative: gradient alignment needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from robflat_bench.core import Batch, Loss, Moment, RunFailed
from robflat_bench.core.randomness import global_state
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.training.inputs import TrainingInputs


@dataclass
class Shard:
    """One shard of one update.

    Parameters
    ----------
    batch: its examples, prepared.
    fraction: c_s, its fraction of the whole batch.
    loss: its loss, after the attack.
    passes: forward and backward image passes since its last row.
    """

    batch: Batch
    fraction: float
    loss: Loss = field(init=False)
    passes: list[int] = field(default_factory=lambda: [0, 0])


class Shards:
    """The updates of one training.

    Parameters
    ----------
    inputs: the training; its `processes` divide the shards.
    x, y: all training images, uint8 [N,C,H,W], and their labels, int64 [N].
    counter: counts the image passes of this process; after an update, those of all processes.
    """

    def __init__(self, inputs: TrainingInputs, x: Tensor, y: Tensor, counter: PassCounter) -> None:
        self.inputs, self.x, self.y, self.counter = inputs, x, y, counter
        self.processes, self.count = inputs.processes, inputs.recipe.shards
        self.own = self.processes.share(self.count)
        self.requested = self.stopping = 0
        """The signal that asked this process, and one that asked any process, to stop; 0 without one."""

    def check_start(self, done: int) -> None:
        """Raise RunFailed if the processes begin with different weights, or after different updates.

        Parameters
        ----------
        done: updates that were made before this process began.
        """
        total = sum(float(parameter.detach().double().sum()) for parameter in self.inputs.model.parameters())
        found = self.processes.gathered(torch.tensor([[done, total]], dtype=torch.float64))
        if not torch.equal(found, found[:1].expand_as(found)):
            raise RunFailed("the processes of this run read different states of it; type the same command again")

    def stop(self, requested: int) -> int:
        """The signal by which all processes stop now, because one of them got it before the last update; 0 to go on.
        Call it after each update.

        Parameters
        ----------
        requested: the signal that asked this process to stop; 0 without one.
        """
        self.requested = requested
        return requested if self.processes.count == 1 else self.stopping

    def update(self, rows: Tensor, number: int, first: Moment, now: Moment, optimizer: Optimizer) -> float:
        """Update the weights once; returns the loss of the whole batch before the update.

        Parameters
        ----------
        rows, number, first: as of `TrainingInputs.prepared`.
        now: this update.
        """
        inputs, pieces = self.inputs, rows.tensor_split(self.count)
        fractions = [len(piece) / len(rows) for piece in pieces]
        shards = []
        for index in self.own:
            own = replace(inputs, composition=inputs.composition.for_shard())
            batch = own.prepared(self.x, self.y, pieces[index], number, replace(first, shard=index))
            shard = Shard(replace(batch, moment=replace(now, shard=index)), fractions[index])
            with inputs.autocast(), self.drawing(shard, "global state of the update"):
                shard.loss = own.composition.objective(inputs.model, shard.batch, inputs.attack(shard.batch.moment))
            shards.append(shard)
        loss = _WholeLoss(self, shards, fractions)
        with inputs.autocast(), global_state(now.random("global state of the update")):
            return inputs.composition.descend(loss, inputs.model, optimizer, _empty(shards[0].batch, now))

    def note(self, facts: Tensor) -> None:
        """Learn from the facts of all shards, [R,3]: signal to stop by, forward and backward passes."""
        self.stopping = int(facts[:, 0].max())
        others = facts[:, 1:].sum(0) - facts[self.own.start : self.own.stop, 1:].sum(0)
        self.counter.forward += int(others[0])
        self.counter.backward += int(others[1])

    @contextmanager
    def drawing(self, shard: Shard, purpose: str) -> Iterator[None]:
        """Random numbers of the shard for this purpose, and its image passes counted."""
        before = self.counter.forward, self.counter.backward
        with global_state(shard.batch.moment.random(purpose)):
            yield
        shard.passes[0] += self.counter.forward - before[0]
        shard.passes[1] += self.counter.backward - before[1]


class _WholeLoss:
    """The loss of the whole batch, as `core.Loss`.

    Parameters
    ----------
    shards: the training's.
    own: the shards of this process, attacked.
    fractions: c_s of all shards.
    """

    def __init__(self, shards: Shards, own: Sequence[Shard], fractions: Sequence[float]) -> None:
        self.shards, self.own, self.fractions = shards, own, fractions
        composition, model = shards.inputs.composition, shards.inputs.model
        self.modules = (model, *composition.parts().values())
        self.parameters = [p for p in composition.parameters(model) if p.requires_grad]
        self.calls = 0

    def __call__(self, *, frozen: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.calls += 1
        before = [buffer.clone() for buffer in self._buffers()]
        rows = []
        for shard in self.own:
            _set(self._buffers(), before)
            with self.shards.drawing(shard, f"global state of loss {self.calls}"):
                value = shard.fraction * shard.loss(frozen=frozen, keep=keep)
                gradients = torch.autograd.grad(value, self.parameters, allow_unused=True)
            rows.append(self._row(shard, value, gradients))
        return self._combined(self.shards.processes.gathered(torch.stack(rows)))

    def _row(self, shard: Shard, value: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
        """[M]: loss, signal to stop by, two counts of passes; which weights have a gradient; gradients; buffers."""
        dtype = self.shards.inputs.dtype
        facts = [self.shards.requested, *shard.passes, *(gradient is not None for gradient in gradients)]
        pairs = zip(self.parameters, gradients, strict=True)
        filled = [torch.zeros_like(own) if gradient is None else gradient for own, gradient in pairs]
        shard.passes = [0, 0]
        numbers = [value, torch.tensor(facts, dtype=dtype, device=value.device), *filled, *self._statistics()]
        return torch.cat([part.detach().reshape(-1).to(dtype) for part in numbers])

    def _combined(self, rows: Tensor) -> Tensor:
        """The loss of the rows of all shards, [R,M], whose gradients are known; buffers take their average."""
        sizes = [part.numel() for part in (*self.parameters, *self._statistics())]
        facts, used, *columns = rows.split([4, len(self.parameters), *sizes], 1)
        found, averaged = columns[: len(self.parameters)], columns[len(self.parameters) :]
        _set(self._statistics(), [_average(column, self.fractions) for column in averaged])
        self.shards.note(facts[:, 1:])
        gradients = [
            _sum(column).view_as(own) if any_used else None
            for own, column, any_used in zip(self.parameters, found, used.any(0).tolist(), strict=True)
        ]
        return _Known.apply(_sum(facts[:, 0]), gradients, *self.parameters)  # type: ignore[no-any-return]

    def _buffers(self) -> list[Tensor]:
        """The buffers of network and parts."""
        return [buffer for module in self.modules for buffer in module.buffers()]

    def _statistics(self) -> list[Tensor]:
        """Their floating-point buffers, which are averaged; the others count batches."""
        return [buffer for buffer in self._buffers() if buffer.is_floating_point()]


class _Known(torch.autograd.Function):
    """A value whose gradients in its parameters are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if gradient is None else upstream * gradient for gradient in ctx.gradients)


def _set(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value.view_as(buffer))


def _sum(rows: Tensor) -> Tensor:
    """The sum of rows [R,...], added in their order."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


def _average(rows: Tensor, fractions: Sequence[float]) -> Tensor:
    """The average of rows [R,m], added in their order; numbers that are the same in all rows stay as they are."""
    average = _sum(torch.stack([fraction * row for fraction, row in zip(fractions, rows, strict=True)]))
    return torch.where((rows == rows[0]).all(0), rows[0], average)


def _empty(batch: Batch, now: Moment) -> Batch:
    """A batch without images, of that moment: all that the processes know of the whole batch alike."""
    none = {name: getattr(batch, name)[:0] for name in ("index", "x", "y", "target", "weight")}
    return Batch(**none, moment=now)
