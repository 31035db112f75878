r"""Worst-case ascent of the mean loss over the weights: balls around w, and two ways to climb in them.

    C = { \nu = h * z : ||z||_p <= 1 },   p = 2 or inf,   h >= 0 one half-axis per weight, * element by element

In the coordinates z every such ellipsoid or box is the unit ball. So the projection is exact, radial for p = 2 and a
clamp for p = inf; d L / dz = h * d L / d\nu leaves weights with h = 0 where they are. All layers of the `WeightSpace`
form one vector in float64: normalisation layers and tensors of zero norm stay, biases move. The images (clean, or
attacked once at w) stay as they are while the weights move.

How far a climb may be from a maximum of its own first-order model is its gap, in nats,

    max_{||s||_p <= 1} <g, s - z> = ||g||_q - <g, z>,   g = d L / dz,  q = 2 or 1

The gap is 0 at a stationary point of the ball and, where L is concave, bounds the rise that is still possible.
Frank & Wolfe 1956; Jaggi: ICML 2013. Auto-PGD: Croce & Hein: ICML 2020.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robflat_bench.core import Examples
from robflat_bench.core.batching import padded_batches
from robflat_bench.core.randomness import generator
from robflat_bench.measures.oracle import CHUNK, Oracle
from robflat_bench.measures.random_moves import random_move
from robflat_bench.numerics.weight_space import Direction, WeightSpace


class Point(NamedTuple):
    """The loss at w + nu: of each example, float64 [N], and the gradient of their mean, float64 [d].

    wrong: which examples are misclassified there, bool [N]; also those whose logits are not finite.
    """

    nu: Tensor
    losses: Tensor
    gradient: Tensor
    wrong: Tensor

    @property
    def mean(self) -> float:
        return float(self.losses.mean())


class LossOverWeights:
    """The mean loss of given images as a function of nu, a float64 vector [d] over all layers."""

    def __init__(
        self, model: nn.Module, oracle: Oracle, images: Examples, exclude: tuple[str, ...] | None = None
    ) -> None:
        self.space, self.oracle, self.images = WeightSpace(model, exclude=exclude), oracle, images
        self.weights = self._vector(self.space.layers)

    def at(self, nu: Tensor) -> Point:
        """Losses and gradient at w + nu."""
        calls: list[tuple[Tensor, Tensor]] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
            if not calls or calls[-1][0] is not inputs[0]:  # a gradient that is not finite takes a second forward pass
                calls.append((inputs[0], logits.detach()))

        handle = self.space.model.register_forward_hook(note)
        try:
            with self.space.moved(self._layers(nu)):
                losses, gradient = self.oracle.gradient(self.space.model, self.images, self.space.layers)
        finally:
            handle.remove()
        chunks = zip(padded_batches(self.images, CHUNK), calls, strict=True)
        wrong = [_misclassified(logits, part.y)[:count] for (part, count), (_, logits) in chunks]
        return Point(nu, losses, self._vector(gradient), torch.cat(wrong))

    def origin(self) -> Point:
        """Losses and gradient at w."""
        return self.at(torch.zeros_like(self.weights))

    def start(self, number: int, ball: UnitBall, *key: int | str) -> Tensor:
        """z where an ascent begins: 0 for the first, a random point of the ball for others; keyed by layer."""
        if number == 0:
            return torch.zeros_like(self.weights)
        draws = random_move(self.space, lambda z, _: z, *key, number, noise=_normal64)
        return ball.random(self._vector(draws), *key, number)

    def _vector(self, layers: Mapping[str, Tensor]) -> Tensor:
        """The layers as one float64 vector, on the device of the images."""
        return torch.cat([layer.detach().double().reshape(-1) for layer in layers.values()]).to(self.images.x.device)

    def _layers(self, nu: Tensor) -> Direction:
        layers = self.space.layers
        pieces = nu.split([layer.numel() for layer in layers.values()])
        return {name: piece.view(layers[name].shape) for name, piece in zip(layers, pieces, strict=True)}


class Remembering(LossOverWeights):
    """It computes nothing again at 0, where most climbs begin, nor at a point that a climb did not leave."""

    points: tuple[Point, ...] = ()

    def at(self, nu: Tensor) -> Point:
        for point in self.points:
            if torch.equal(point.nu, nu):
                return point
        found = super().at(nu)
        self.points = (*(point for point in self.points if not point.nu.any()), found)
        return found


def _misclassified(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


def _normal64(layer: Tensor, source: torch.Generator) -> Tensor:
    """N(0,1) in float64, whatever the precision of the layer."""
    return torch.randn(layer.shape, generator=source, dtype=torch.float64)


class UnitBall(ABC):
    """The ball ||z||_p <= 1."""

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent, ||direction||_p = 1; 0 where the gradient is 0."""

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """The nearest point of the ball."""

    @abstractmethod
    def random(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """A random point of the ball, made from N(0, I) [d]."""

    @abstractmethod
    def dual_norm(self, gradient: Tensor) -> Tensor:
        """||g||_q."""


class L2Ball(UnitBall):
    """p = 2."""

    def direction(self, gradient: Tensor) -> Tensor:
        length = float(gradient.norm())
        return gradient / length if length > 0 else torch.zeros_like(gradient)

    def project(self, z: Tensor) -> Tensor:
        return z / max(float(z.norm()), 1.0)

    def random(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """Isotropic, its radius U(0,1)."""
        radius = torch.rand((), generator=generator(*key, "radius"), dtype=torch.float64)
        return self.direction(gaussian) * radius.to(gaussian.device)

    def dual_norm(self, gradient: Tensor) -> Tensor:
        length: Tensor = gradient.norm()
        return length


class LinfBall(UnitBall):
    """p = inf."""

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)

    def random(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """Every coordinate U(-1,1): the Gaussian distribution function, stretched."""
        uniform: Tensor = torch.special.erf(gaussian / math.sqrt(2))
        return uniform

    def dual_norm(self, gradient: Tensor) -> Tensor:
        return gradient.abs().sum()


BALLS: dict[str, UnitBall] = {"l2": L2Ball(), "linf": LinfBall()}


def normalised_ascent(surface: LossOverWeights, h: Tensor, ball: UnitBall, iterations: int) -> Iterator[Point]:
    """z <- Pi( z + 2.5 / iterations * direction ) from z = 0: every iterate, the start included."""
    z = torch.zeros_like(surface.weights)
    here = surface.at(h * z)
    yield here
    for _ in range(iterations):
        z = ball.project(z + 2.5 / iterations * ball.direction(h * here.gradient))
        here = surface.at(h * z)
        yield here


MOMENTUM = 0.75
ENOUGH = 0.75
"""Fraction of the steps between two checkpoints that must improve on the step before."""


def checkpoints(iterations: int) -> set[int]:
    """Steps at which Auto-PGD reviews its step size: ceil(p_j iterations / 100), p_1 = 22, intervals 22, 19, ... 6."""
    p, interval, found = 0, 22, set()
    while p + interval <= 100:
        p += interval
        found.add(-(-p * iterations // 100))
        interval = max(interval - 3, 6)
    return found


def auto_pgd(surface: LossOverWeights, h: Tensor, ball: UnitBall, iterations: int, start: Tensor) -> Iterator[Point]:
    """Auto-PGD on z: every iterate, the start included.

    z <- Pi( z + a (Pi(z + eta direction) - z) + (1 - a) (z - z_before) ) with a = 0.75, at first eta = 2 (the ball's
    diameter) and a = 1. At a checkpoint where too few steps improved, or where neither eta nor the best iterate has
    changed since the last one, eta is halved and the climb goes on from the best iterate.
    """
    z = before = start
    here = surface.at(h * z)
    yield here
    best_z, best = z, here
    step, improved, last, due = 2.0, 0, 0, checkpoints(iterations)
    at_last = (step, best.mean)
    for number in range(1, iterations + 1):
        ahead = ball.project(z + step * ball.direction(h * here.gradient))
        a = MOMENTUM if number > 1 else 1.0
        z, before = ball.project(z + a * (ahead - z) + (1 - a) * (z - before)), z
        previous, here = here, surface.at(h * z)
        yield here
        improved += here.mean > previous.mean
        if here.mean > best.mean:
            best_z, best = z, here
        if number in due:
            poor = improved < ENOUGH * (number - last) or (step, best.mean) == at_last
            at_last = (step, best.mean)
            if poor:
                step /= 2
                z = before = best_z
                here = best
            improved, last = 0, number


def highest(climb: Iterable[Point]) -> Point:
    """The first iterate with the highest mean loss; losses that are not finite never count as the highest."""
    return max(climb, key=lambda point: point.mean if math.isfinite(point.mean) else -math.inf)


def gap(h: Tensor, ball: UnitBall, point: Point) -> float:
    """||g||_q - <g, z> at a point of the ball with half-axes h, in nats."""
    z, slope = torch.where(h > 0, point.nu / h, 0.0), h * point.gradient
    return float(ball.dual_norm(slope) - slope @ z)
