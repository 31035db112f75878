r"""NuAT and GAT: a distance D between clean and adversarial outputs, in the loss and in one guided attack step.

    L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \lambda D_i( f(x_i'), f(x_i) ) ],
    x' = clip( x + d + \alpha eps sign \nabla_x [ \ell_CE(f(x + d), y) + \lambda_a D( f(x + d), f(x) ) ] ),
    d = +-\nu eps, each sign with even odds (Bernoulli), x + d clipped to images; clip: to the ball and to images.

As in both released scripts, \lambda_a is 0 on every other update, including the first of an epoch, so that the network
is trained on two kinds of examples. Their clean logits are computed all the same. One difference: here clean logits are
computed as the recipe's attack sees the model; in the scripts, in train mode, where statistics move.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from robflat_bench.api import (
    Batch,
    InnerAttack,
    Method,
    Moment,
    cross_entropy,
    project,
    soft_cross_entropy,
    uniform_like,
)
from robflat_fastat import GuidedParams


class Guided(Method):
    """The gradient of the loss flows through both outputs. BN statistics see adversarial images, then clean images."""

    params: GuidedParams

    @abstractmethod
    def weight(self, moment: Moment) -> float:
        """The weight (lambda) of the distance at this moment of training."""

    @abstractmethod
    def distance(self, moved: Tensor, clean: Tensor, batch: Batch) -> Tensor:
        """D_i [B] between adversarial and clean logits [B,K]."""

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean, plain = inner.predict(model, batch.x), cross_entropy(batch.y)
        weight = self.weight(batch.moment) * (batch.moment.update % 2)

        def objective(logits: Tensor) -> Tensor:
            return plain(logits) + weight * self.distance(logits, clean, batch)

        start = bernoulli_start(batch, self.params.noise * inner.epsilon)
        gradient = inner.gradient(model, start, objective)
        return project(start + self.params.alpha * inner.epsilon * gradient.sign(), batch.x, inner.epsilon)

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        moved, clean = model(x_adv), model(batch.x)
        distance = self.distance(moved, clean, batch)
        return soft_cross_entropy(clean, batch.target) + self.weight(batch.moment) * distance


def bernoulli_start(batch: Batch, size: float) -> Tensor:
    """The batch's images with each pixel moved up or down by `size`, with even odds, clipped to images."""
    up = uniform_like(batch.x, batch.moment.random("start")) < 0
    return (batch.x + torch.where(up, size, -size)).clamp(0, 1)
