"""A method and its modifiers acting as one: each joint in its declared order, and their state for resuming.

`core.method` shows the order of a training step; the loop that takes these steps is `training.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robflat_bench.attacks.engine import frozen_statistics
from robflat_bench.config.cost import updates_per_batch
from robflat_bench.core import Batch, InnerAttack, Joint, Loss, Method, Modifier, Moment, RunFailed, Training
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.numerics.compilation import fused
from robflat_bench.registry.components import Composed
from robflat_bench.training.checkpoint import Tensors, flattened


class Composition:
    """A method wrapped by its modifiers, built anew for each run.

    Parameters
    ----------
    composed: the parsed text `method+modifier+...`.
    """

    def __init__(self, composed: Composed) -> None:
        ranked = sorted(composed.modifiers, key=lambda part: (part.info.rank, part.name))
        self.method: Method = composed.method.build()
        self.modifiers: dict[str, Modifier] = {part.name: part.build() for part in ranked}
        self.repeats = updates_per_batch(composed)
        self.replaces_augmentation = any(part.info.replaces_augmentation for part in ranked)
        self._joints = {part.name: part.info.joints for part in ranked}

    def at(self, joint: Joint) -> Iterator[Modifier]:
        """The modifiers of a joint, lowest rank first."""
        return (modifier for name, modifier in self.modifiers.items() if joint in self._joints[name])

    @property
    def members(self) -> dict[str, Method | Modifier]:
        """The method and the modifiers, by the names under which their state is saved."""
        return {"method": self.method, **self.modifiers}

    # ---- before the first step ----------------------------------------------------------------------------

    def setup(self, training: Training) -> None:
        """Set up every member, once; what it draws from the global generators depends on the seed alone."""
        for name, member in self.members.items():
            with global_state(generator(training.seed, "setup", name)):
                member.setup(training)

    def parts(self) -> dict[str, nn.Module]:
        """Extra modules to train, by `<member>.part.<name>`."""
        owned = ((owner, member.parts()) for owner, member in self.members.items())
        return {f"{owner}.part.{name}": part for owner, parts in owned for name, part in parts.items()}

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """The parameters of the model, then those of the parts: everything that the optimizer moves."""
        for module in (model, *self.parts().values()):
            yield from module.parameters()

    # ---- one step -----------------------------------------------------------------------------------------

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        """The images, uint8 [B,C,H,W], through every modifier at `augment`."""
        for modifier in self.at("augment"):
            images = modifier.augment(images, source)
        return images

    def prepare(self, batch: Batch) -> Batch:
        """The batch through every modifier at `batch`, then at `target`."""
        for modifier in self.at("batch"):
            batch = modifier.batch(batch)
        for modifier in self.at("target"):
            batch = replace(batch, target=modifier.target(batch))
        return batch

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv [B,C,H,W] of the method's attack, changed by the modifier at `attack` if there is one."""
        claimant = next(self.at("attack"), None)
        attack = partial(claimant.attack, self.method.attack) if claimant else self.method.attack
        return _checked(attack(model, batch, inner), batch.x.shape, f"the attack of {type(self.method).__name__}")

    def update(self, model: nn.Module, batch: Batch, inner: InnerAttack, optimizer: Optimizer) -> float:
        """Attack the batch and update the weights once; returns the loss before the update."""
        return self.descend(self.objective(model, batch, inner), model, optimizer, batch)

    def objective(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Loss:
        """Attack the batch; returns its loss, a function of the weights that the model then has."""
        parts = self.parts().values()
        for module in (model, *parts):
            module.train()
        x_adv = self.attack(model, batch, inner)
        terms = [(modifier, modifier.prepare(model, batch, inner)) for modifier in self.at("loss")]

        def loss(*, frozen: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            with frozen_statistics(model, *parts) if frozen else nullcontext(), fused(model):
                values = self.method.loss(model, batch, x_adv)
                values = _checked(values, batch.weight.shape, f"the loss of {type(self.method).__name__}")
                if keep is not None:
                    values = keep(values.detach()) * values
                value = weighted_mean(values, batch.weight)
                return sum((modifier.loss(model, batch, prepared) for modifier, prepared in terms), start=value)

        return loss

    def descend(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> float:
        """Update the weights once along the gradient of the loss; returns the loss before the update."""
        optimizer.zero_grad(set_to_none=True)
        claimant = next(self.at("backward"), None)
        value = claimant.backward(loss, model, optimizer, batch) if claimant else descend(loss, optimizer)
        for modifier in self.at("after_step"):
            modifier.after_step(model)
        self.method.after_step(model, batch.moment)
        return float(value)

    def for_shard(self) -> Composition:
        """A copy for one shard of one update. What its members keep between two joints does not meet another shard's;
        tensors and modules are shared."""
        own = copy(self)
        own.method = copy(self.method)
        own.modifiers = {name: copy(modifier) for name, modifier in self.modifiers.items()}
        return own

    def evaluated(self, model: nn.Module, moment: Moment) -> Tensors:
        """Copies of the weights to evaluate at the end of an epoch: the model's, or what a component makes of them."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        weights = self.method.evaluated(weights)
        for modifier in self.at("model"):
            weights = modifier.model(model, weights, moment)
        return weights

    # ---- state for resuming -------------------------------------------------------------------------------

    def state_dict(self) -> Tensors:
        """`<member>.state.<name>` and `<member>.part.<name>.<tensor>`: everything a resumed run needs."""
        states = {f"{owner}.state": member.state_dict() for owner, member in self.members.items()}
        return flattened(states | {owner: part.state_dict() for owner, part in self.parts().items()})

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore members and parts, after `setup`."""
        for owner, member in self.members.items():
            member.load_state_dict(_below(f"{owner}.state.", tensors))
        for owner, part in self.parts().items():
            part.load_state_dict(_below(f"{owner}.", tensors))


def descend(loss: Loss, optimizer: Optimizer) -> Tensor:
    """Plain backward pass and optimizer step; returns the loss."""
    value = loss()
    value.backward()
    optimizer.step()
    return value.detach()


class WrongShape(RunFailed):
    """A component returned a loss or adversarial examples of the wrong shape."""


def _checked(tensor: Tensor, shape: torch.Size, what: str) -> Tensor:
    """The tensor itself; raises WrongShape if its shape differs, because broadcasting would hide the mistake."""
    if tensor.shape != shape:
        raise WrongShape(
            f"{what} has shape {tuple(tensor.shape)} instead of {tuple(shape)}. "
            "Find further mistakes with `robflat-bench plugin check`"
        )
    return tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """sum_i weight_i v_i / sum_i weight_i, for values [B] and weights [B]."""
    return (weight * values).sum() / weight.sum()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
