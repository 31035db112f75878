"""What a training method is: how one batch becomes a loss, what may be added to it, and what the harness lends it.

One training step, with a method and its modifiers (each joint in the modifiers' declared rank):

    images  = modifiers.augment(images)                  # uint8, after the recipe's augmentation
    batch   = modifiers.batch(batch)                     # mixing, other images
    target  = modifiers.target(batch)                    # what the loss sees; the attack keeps batch.y
    x_adv   = modifiers.attack(method.attack)            # inner maximisation; one claimant
    loss    = mean(method.loss) + sum(modifiers.loss)    # may be evaluated several times
    modifiers.backward(loss, optimizer)                  # plain descent, or AWP / SAM / ... ; one claimant
    modifiers.after_step(model)                          # clipping, averages
    ...                                                  # and at the end of each epoch
    weights = modifiers.model(weights)                   # which weights are evaluated

The loop itself is `training.loop`; how a method and its modifiers act as one is `training.composition`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from robflat_bench.core.interfaces import ImageShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


# ---------------------------------------------------------------------------------------------------------
# What the harness lends
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Where training stands: epoch and update within it, from 0, and the fraction of training done, in [0,1].

    At the end of an epoch, update is the number of its updates and the fraction counts the epoch as done."""

    seed: int = 0
    epoch: int = 0
    update: int = 0
    progress: float = 0.0

    def random(self, purpose: str) -> torch.Generator:
        """Random numbers keyed by (seed, purpose, epoch, update): a resumed run meets the same ones."""
        from robflat_bench.core.randomness import generator

        return generator(self.seed, purpose, self.epoch, self.update)


@dataclass
class Batch:
    """One training batch.

    index int64 [B]: positions among the training examples, -1 for an image from elsewhere. x float [B,C,H,W] in
    [0,1]: what the attack sees. y int64 [B]. target float [B,K], rows sum to 1: what the loss sees.
    weight float [B] >= 0: of each example in the loss. views: makes further augmentations of the same images.
    augment: makes x of other images, uint8 [b,C,H,W], by the random numbers of a purpose.
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
        """The images augmented anew, as x; number = 1, 2, ... Where nothing augments, x itself."""
        return self.x if self.views is None else self.views(number)

    def augmented(self, images: Tensor, purpose: str) -> Tensor:
        """uint8 images [b,C,H,W] as x: augmented where x is, in [0,1]."""
        return images.to(self.x) / 255 if self.augment is None else self.augment(images, purpose)


@dataclass(frozen=True)
class Training:
    """What a method or modifier may know before the first step.

    count: training examples. epsilon: the recipe's radius. helpers: the networks its description asks for,
    frozen, in eval mode. images: clean training images, float [b,C,H,W] in [0,1], batch by batch. spare: images
    of the training pool that no split uses, uint8 [M,C,H,W], M may be 0.
    """

    model: nn.Module
    shape: ImageShape
    count: int
    epsilon: float
    helpers: Mapping[str, nn.Module]
    images: Callable[[], Iterator[Tensor]]
    spare: Callable[[], Tensor]


class InnerAttack(ABC):
    """The recipe's training attack, bound to this step's random numbers.

    epsilon: radius; step: size of one sign step, both in pixels of [0,1]; steps: how many.
    """

    epsilon: float
    step: float
    steps: int

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """x_adv that maximises `objective(logits) -> [B]` per example; parameters receive no gradient.

        The objective is evaluated at each of the `steps + 1` iterates, in order."""

    @abstractmethod
    def attacking(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model as this attack sees it: its batch normalisation mode, parameters without gradient."""

    @abstractmethod
    def predict(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits [B,K] as this attack sees the model, without gradient."""

    @abstractmethod
    def gradient(self, model: nn.Module, x: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """d sum_i objective_i / dx [B,C,H,W] as this attack sees the model; no graph, no parameter gradient."""

    @abstractmethod
    def within(self, epsilon: float) -> InnerAttack:
        """This attack with another radius."""

    @abstractmethod
    def until(self, moving: Callable[[], Callable[[Tensor], Tensor]]) -> InnerAttack:
        """This attack, but example i takes its next step only while m(logits)[i], bool [B], is true at the current
        iterate, and the last iterate is kept instead of the best; each use of the attack has its m = moving()."""


# ---------------------------------------------------------------------------------------------------------
# Methods and modifiers
# ---------------------------------------------------------------------------------------------------------


class TrainingComponent:
    """What methods and modifiers share: parameters, a beginning, and what they keep between steps."""

    def __init__(self, params: Any) -> None:
        self.params = params

    def setup(self, training: Training) -> None:
        """Called once before the first step; not a place for random numbers."""

    def parts(self) -> Mapping[str, nn.Module]:
        """Name -> extra modules, made in `setup`: trained and checkpointed, never part of the evaluated weights."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive an interruption, beside parts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave, after `setup`."""


class Method(TrainingComponent, ABC):
    """How one batch becomes a loss: inner attack and outer objective. The loop belongs to the harness."""

    def radius(self, epsilon: float) -> float:
        """The largest l-inf distance of x_adv from x in training, given the recipe's radius."""
        return epsilon

    @abstractmethod
    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """Inner maximisation: x_adv, shaped as batch.x, within the training radius and [0,1].

        `inner` is the recipe's attack: `inner(model, batch.x, objective)`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        """The loss of each example, [B]; the harness takes the mean weighted by batch.weight.

        The model is in train mode; each forward here updates BN. May be called more than once for a batch."""


class Loss(Protocol):
    """This update's loss at whatever weights the model holds when it is called; may be called again."""

    def __call__(self, *, frozen: bool = False, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The scalar loss; frozen: no BN statistics move. `keep` gives each example's loss, [B], a factor, [B]: 0
        leaves it out, and the mean is still over the whole batch; what modifiers add stays as it is."""


class Attacker(Protocol):
    """An inner maximisation: a method's own, or that of a modifier around it."""

    def __call__(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv, shaped as batch.x."""


class Modifier(TrainingComponent):
    """Something orthogonal that wraps any method. Override the joints that its description declares."""

    def augment(self, images: Tensor, source: torch.Generator) -> Tensor:
        """uint8 [B,C,H,W] -> the same, by random numbers of this source."""
        raise NotImplementedError

    def batch(self, batch: Batch) -> Batch:
        """Other images or labels: a new batch."""
        raise NotImplementedError

    def target(self, batch: Batch) -> Tensor:
        """What the loss sees instead of batch.target: float [B,K], rows sum to 1."""
        raise NotImplementedError

    def attack(self, attack: Attacker, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        """x_adv, by way of the method's own `attack(model, batch, inner)`."""
        raise NotImplementedError

    def prepare(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Any:
        """What `loss` needs, made once per update, after the attack (part of the joint `loss`)."""

    def loss(self, model: nn.Module, batch: Batch, prepared: Any) -> Tensor:
        """A scalar added to the method's mean loss."""
        raise NotImplementedError

    def backward(self, loss: Loss, model: nn.Module, optimizer: Optimizer, batch: Batch) -> Tensor:
        """From the loss to moved weights: `backward()` (all gradients are None before), `optimizer.step()`; the
        loss's value. Gradients that are not meant to descend are taken with respect to weights alone (autograd.grad):
        a method may listen for the backward pass that reaches its images."""
        raise NotImplementedError

    def after_step(self, model: nn.Module) -> None:
        """After each update of the weights."""
        raise NotImplementedError

    def model(self, model: nn.Module, weights: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        """At the end of each epoch: which weights (names and shapes of the model's state) are evaluated, given
        those of the model or of the modifier before."""
        raise NotImplementedError
