"""Methods and modifiers: how one batch becomes a loss, and what can be changed about it.

One training step of a method with its modifiers. At each joint, modifiers act in the order of their rank:

    images  = modifiers.augment(images)                  # uint8, after the recipe's augmentation
    batch   = modifiers.batch(batch)                     # other images, mixed images
    target  = modifiers.target(batch)                    # what the loss compares with; the attack keeps batch.y
    x_adv   = modifiers.attack(method.attack)            # inner maximisation; at most one modifier
    loss    = mean(method.loss) + sum(modifiers.loss)    # may be evaluated several times
    modifiers.backward(loss, optimizer)                  # plain descent, or AWP / SAM / ...; at most one modifier
    modifiers.after_step(model), method.after_step(...)  # clipping, averages

At the end of each epoch, `method.evaluated`, then `modifiers.model` choose the weights that are evaluated.

`training.composition` is this step in code, and `training.loop` the loop around it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from robflat_bench.core.interfaces import ImageShape
from robflat_bench.core.params import ThreatNorm

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


# ---------------------------------------------------------------------------------------------------------
# What a method receives
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A point of training, which keys random numbers and schedules.

    Parameters
    ----------
    seed: the run's seed.
    epoch: from 0.
    update: update within the epoch, from 0; at the end of an epoch, the number of its updates.
    progress: fraction of training that is done, in [0,1]; at the end of an epoch, that epoch counts as done.
    shard: the shard of the batch, from 0, where the recipe cuts batches into shards; None for a whole batch.
    """

    seed: int = 0
    epoch: int = 0
    update: int = 0
    progress: float = 0.0
    shard: int | None = None

    def random(self, purpose: str) -> torch.Generator:
        """A CPU generator keyed by (seed, purpose, epoch, update, shard), so a resumed run draws the same numbers."""
        from robflat_bench.core.randomness import generator

        shard = () if self.shard is None else ("shard", self.shard)
        return generator(self.seed, purpose, self.epoch, self.update, *shard)


@dataclass
class Batch:
    """One training batch of B images.

    Parameters
    ----------
    index: int64 [B], positions among the training examples; -1 for any other image.
    x: float [B,C,H,W] in [0,1], the images that the attack starts from.
    y: int64 [B], the labels that the attack works against.
    target: float [B,K], rows sum to 1; the distribution that the loss compares predictions with.
    weight: float [B], at least 0; weight of each example in the mean loss.
    moment: epoch and update.
    views: makes augmentation number 1, 2, ... of the same images, as x; None if they have no other views.
    augment: augments other images, uint8 [b,C,H,W], with the random numbers of a purpose, as x.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    target: Tensor
    weight: Tensor
    moment: Moment = field(default_factory=Moment)
    views: Callable[[int], Tensor] | None = None
    augment: Callable[[Tensor, str], Tensor] | None = None

    def view(self, number: int) -> Tensor:
        """Augmentation number 1, 2, ... of the same images, shaped as x; x itself if there are no views."""
        return self.x if self.views is None else self.views(number)

    def augmented(self, images: Tensor, purpose: str) -> Tensor:
        """Other images, uint8 [b,C,H,W], augmented as x is and scaled to [0,1]."""
        return images.to(self.x) / 255 if self.augment is None else self.augment(images, purpose)


@dataclass(frozen=True)
class Training:
    """What a method or a modifier knows before the first step.

    Parameters
    ----------
    model: the network, on its device and in its precision.
    shape: channels, size, classes, mean and standard deviation of the images.
    count: number of training examples, N.
    epsilon, norm: the recipe's radius, in pixels of [0,1], and its norm, "linf" or "l2".
    helpers: the networks that the component's row asks for, by name: trained, frozen, in eval mode.
    images: iterates over the clean training images, float [b,C,H,W] in [0,1].
    spare: the images of the training pool that no split uses, uint8 [M,C,H,W]; M may be 0.
    seed: the run's seed.
    """

    model: nn.Module
    shape: ImageShape
    count: int
    epsilon: float
    helpers: Mapping[str, nn.Module]
    images: Callable[[], Iterator[Tensor]]
    spare: Callable[[], Tensor]
    seed: int
    norm: ThreatNorm = "linf"


class InnerAttack(ABC):
    """The recipe's training attack with this step's random numbers.

    What it calls (`objective`, `moving`) must not write weights, not even `weight.data`: steps use prepared copies.

    Attributes
    ----------
    epsilon: radius, in pixels of [0,1].
    step: size of one step, in pixels of [0,1].
    steps: number of steps.
    norm: norm of radius and step, "linf" or "l2".
    """

    epsilon: float
    step: float
    steps: int
    norm: ThreatNorm = "linf"

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """x_adv [B,C,H,W]: for each example, the iterate with the highest objective.

        Parameters
        ----------
        model: its parameters receive no gradient.
        x: float [B,C,H,W] in [0,1].
        objective: logits [B,K] -> [B]; called at each of the `steps + 1` iterates, in order.
        """

    @abstractmethod
    def attacking(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the model is as during this attack: batch normalisation mode, frozen parameters."""

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits [B,K] of the model as during this attack, without gradient."""

    @abstractmethod
    def gradient(self, model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """d sum_i objective_i / dx [B,C,H,W] of the model as during this attack, detached."""

    @abstractmethod
    def within(self, epsilon: float) -> InnerAttack:
        """This attack with another radius."""

    @abstractmethod
    def until(self, moving: Callable[[], Callable[[Tensor], Tensor]]) -> InnerAttack:
        """This attack with examples that stop early; it returns the last iterate instead of the best.

        Parameters
        ----------
        moving: called at the start of each attack. It returns m: logits [B,K] of an iterate -> bool [B]. Example i
            takes its next step if m(logits)[i] is true.
        """


# ---------------------------------------------------------------------------------------------------------
# Methods and modifiers
# ---------------------------------------------------------------------------------------------------------


class TrainingComponent:
    """The base that methods and modifiers share.

    Parameters
    ----------
    params: an instance of the parameter model in the component's row.
    """

    saved: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that a resumed run needs. `setup` makes them: tensors, or dictionaries of tensors."""

    def __init__(self, params: Any) -> None:
        self.params = params

    def setup(self, training: Training) -> None:
        """Called once, before the first step, and again by a resumed run, with the same global random state."""

    def parts(self) -> Mapping[str, nn.Module]:
        """Extra modules by name, made in `setup`: they are trained and saved, but never evaluated."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but `parts` that a resumed run needs: by default the attributes in `saved`."""
        tensors: dict[str, Tensor] = {}
        for name in self.saved:
            value = getattr(self, name)
            tensors |= {f"{name}.{key}": t for key, t in value.items()} if isinstance(value, dict) else {name: value}
        return tensors

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned. Called after `setup`."""
        for name in self.saved:
            own = getattr(self, name)
            if isinstance(own, dict):
                own = {key: state[f"{name}.{key}"].to(tensor, copy=True) for key, tensor in own.items()}
            else:
                own = state[name].to(own, copy=True)
            setattr(self, name, own)


class Method(TrainingComponent, ABC):
    """How one batch becomes a loss: an inner attack and an outer objective. The training loop does everything else."""

    def radius(self, epsilon: float) -> float:
        """The largest distance of x_adv from x during training, in the norm of the recipe's radius."""
        return epsilon

    @abstractmethod
    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """The inner maximisation.

        Parameters
        ----------
        model: in train mode.
        batch: B examples.
        inner: the recipe's attack; the usual body is `inner(model, batch.x, objective)`.

        Returns
        -------
        x_adv, float [B,C,H,W] in [0,1], at most `radius(epsilon)` from batch.x.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        """The loss of each example. It may be called several times for one batch, at different weights.

        Parameters
        ----------
        model: in train mode; each forward pass here updates BN statistics.
        batch: B examples.
        x_adv: what `attack` returned.

        Returns
        -------
        float [B]; the training loop takes their mean, weighted by batch.weight.
        """

    def after_step(self, model: nn.Module, moment: Moment) -> None:
        """Called after each update of the weights, once for all shards; moment: that update."""

    def evaluated(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights to evaluate at the end of an epoch, given copies of the model's; modifiers choose after it."""
        return weights


class Loss(Protocol):
    """The loss of the current update at the weights that the model holds when it is called; may be called again."""

    def __call__(self, *, frozen: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The scalar loss.

        Parameters
        ----------
        frozen: keep BN statistics as they are.
        keep: losses of the examples [B] -> factors [B]; 0 leaves an example out. The mean still divides by the
            whole batch, and the terms that modifiers add are unchanged.
        """


class Attacker(Protocol):
    """An inner maximisation, such as `Method.attack`."""

    def __call__(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv, shaped as batch.x."""


class Modifier(TrainingComponent):
    """A change that can be added to any method. Override the joints that the modifier's row declares."""

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        """Images, uint8 [B,C,H,W], as changed by the random numbers of `source`; same type and shape."""
        raise NotImplementedError

    def batch(self, batch: Batch) -> Batch:
        """A new batch with other images or labels."""
        raise NotImplementedError

    def target(self, batch: Batch) -> Tensor:
        """Replaces batch.target: float [B,K], rows sum to 1."""
        raise NotImplementedError

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv; `attack(model, batch, inner)` is the method's own attack."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Any:
        """Called once per update after the attack, for the joint `loss`: its result is passed to `loss`."""

    def loss(self, model: nn.Module, batch: Batch, prepared: Any) -> Tensor:
        """A scalar that is added to the method's mean loss."""
        raise NotImplementedError

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        """From the loss to moved weights: `backward()` on a loss, then `optimizer.step()`. Returns its detached value.

        Notes
        -----
        Under `recipe.shards`, the loss is that of all shards together, and `batch` has no images, only its moment.
        All gradients are None at the beginning. Compute a gradient that is not the descent direction with
        `torch.autograd.grad` with respect to the weights: a method such as `free-at` reacts to every backward pass
        that reaches its images.
        """
        raise NotImplementedError

    def after_step(self, model: nn.Module) -> None:
        """Called after each update of the weights."""
        raise NotImplementedError

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """The weights to evaluate, chosen at the end of each epoch: names and shapes of `model.state_dict()`.

        Parameters
        ----------
        model: the network with its trained weights; leave it as it is.
        weights: the model's weights, or those that the modifier of the next lower rank chose.
        moment: the end of the epoch.
        """
        raise NotImplementedError
