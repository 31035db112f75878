"""A method and its modifiers as one: each joint in its declared order, and what survives an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robflat_bench.attacks.engine import frozen_statistics
from robflat_bench.config.cost import updates_per_batch
from robflat_bench.core import (
    Attacker,
    Batch,
    InnerAttack,
    Joint,
    Loss,
    Method,
    Modifier,
    ModifierInfo,
    Moment,
    RunFailed,
    Training,
    TrainingComponent,
)
from robflat_bench.numerics.compilation import fused
from robflat_bench.registry.components import Composed


def descend(loss: Loss, optimizer: Optimizer) -> Tensor:
    """Plain backward and step; the loss's value."""
    value = loss()
    value.backward()
    optimizer.step()
    return value.detach()


class Composition:
    """A method wrapped by its modifiers; built anew for each run."""

    def __init__(self, composed: Composed) -> None:
        self.method: Method = composed.method.build()
        self.repeats = updates_per_batch(composed)
        infos: dict[str, ModifierInfo] = {part.name: part.info for part in composed.modifiers}
        ranked = sorted(composed.modifiers, key=lambda part: (infos[part.name].rank, part.name))
        self.modifiers: dict[str, Modifier] = {part.name: part.build() for part in ranked}
        self._joints = {name: info.joints for name, info in infos.items()}

    def at(self, joint: Joint) -> Iterator[Modifier]:
        """The modifiers of a joint, lowest rank first."""
        return (modifier for name, modifier in self.modifiers.items() if joint in self._joints[name])

    @property
    def members(self) -> dict[str, TrainingComponent]:
        """Everybody by the name under which their state is kept."""
        return {"method": self.method, **self.modifiers}

    # ---- before the first step ----------------------------------------------------------------------------

    def setup(self, training: Training) -> None:
        for member in self.members.values():
            member.setup(training)

    def parts(self) -> dict[str, nn.Module]:
        """Extra modules to train, by `<member>.part.<name>`."""
        owned = ((owner, member.parts()) for owner, member in self.members.items())
        return {f"{owner}.part.{name}": part for owner, parts in owned for name, part in parts.items()}

    def parameters(self, model: nn.Module) -> Iterable[nn.Parameter]:
        """Everything the optimizer moves: the model, then the parts."""
        yield from model.parameters()
        for part in self.parts().values():
            yield from part.parameters()

    # ---- one step -----------------------------------------------------------------------------------------

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        for modifier in self.at("augment"):
            images = modifier.augment(images, source)
        return images

    def prepare(self, batch: Batch) -> Batch:
        """The batch as the loss and the attack see it."""
        for modifier in self.at("batch"):
            batch = modifier.batch(batch)
        for modifier in self.at("target"):
            batch = replace(batch, target=modifier.target(batch))
        return batch

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv: the method's attack, by way of the modifier that claims it."""
        attack: Attacker = self.method.attack
        for modifier in self.at("attack"):
            attack = _around(modifier, attack)
        return _shaped(attack(model, batch, inner), batch.x.shape, f"the attack of {type(self.method).__name__}")

    def update(self, model: nn.Module, batch: Batch, inner: InnerAttack, optimizer: Optimizer) -> float:
        """Attack, loss, one update of the weights; the loss before it."""
        model.train()
        for part in self.parts().values():
            part.train()
        x_adv = self.attack(model, batch, inner)
        terms = [(modifier, modifier.prepare(model, batch, inner)) for modifier in self.at("loss")]

        def loss(*, frozen: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
            still = frozen_statistics(model, *self.parts().values()) if frozen else nullcontext()
            with still, fused(model):
                values = self.method.loss(model, batch, x_adv)
                values = _shaped(values, batch.weight.shape, f"the loss of {type(self.method).__name__}")
                if keep is not None:
                    values = keep(values.detach()) * values
                value = weighted_mean(values, batch.weight)
                return sum((modifier.loss(model, batch, prepared) for modifier, prepared in terms), start=value)

        optimizer.zero_grad(set_to_none=True)
        claimant = next(self.at("backward"), None)
        value = claimant.backward(loss, model, optimizer, batch) if claimant else descend(loss, optimizer)
        for modifier in self.at("after_step"):
            modifier.after_step(model)
        return float(value)

    def evaluated(self, model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        """At the end of an epoch: the weights that stand for this run, copied."""
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        for modifier in self.at("model"):
            weights = modifier.model(model, weights, moment)
        return weights

    # ---- what survives an interruption --------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {
            f"{owner}.state.{name}": tensor
            for owner, member in self.members.items()
            for name, tensor in member.state_dict().items()
        }
        for owner, part in self.parts().items():
            tensors |= {f"{owner}.{name}": tensor for name, tensor in part.state_dict().items()}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for owner, member in self.members.items():
            member.load_state_dict(_below(f"{owner}.state.", tensors))
        for owner, part in self.parts().items():
            part.load_state_dict(_below(f"{owner}.", tensors))


class WrongShape(RunFailed):
    """Of a loss or of adversarial examples."""


def _shaped(tensor: Tensor, shape: torch.Size, what: str) -> Tensor:
    """Itself; WrongShape for another one, which broadcasting would take for something else in silence."""
    if tensor.shape != shape:
        raise WrongShape(
            f"{what} has shape {tuple(tensor.shape)}, not {tuple(shape)}; `robflat-bench plugin check` looks for more"
        )
    return tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """sum_i weight_i v_i / sum_i weight_i of [B] and [B]."""
    return (weight * values).sum() / weight.sum()


def _around(modifier: Modifier, attack: Attacker) -> Attacker:
    return lambda model, batch, inner: modifier.attack(attack, model, batch, inner)


def _below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
