r"""Worst-case ascent of the mean loss in weight space: balls around w, and two ways to climb in them.

    C = { \nu = h * z : ||z||_p <= 1 },   p = 2 or inf,   h >= 0 one half-axis per weight, * element by element

In the coordinates z every such ellipsoid or box is the unit ball, so projecting is exact: radial for p = 2, a clamp
for p = inf; and d L / dz = h * d L / d\nu, which leaves weights with h = 0 where they are. All layers of the
`WeightSpace` form one vector in float64: normalisation layers and tensors of zero norm stay, biases move.
The images are given (clean, or attacked once at w), and stay as they are while the weights move.

How far a climb may be from a maximum of its own first-order model is its gap, in nats,

    max_{||s||_p <= 1} <g, s - z> = ||g||_q - <g, z>,   g = d L / dz,  q = 2 or 1

which is 0 at a stationary point of the ball and, where L is concave, bounds what is still to be gained.
Frank & Wolfe 1956; Jaggi: ICML 2013. Auto-PGD: Croce & Hein: ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.core import Examples, Threat, Workspace
from robflat_bench.core.batching import padded_batches
from robflat_bench.core.randomness import generator
from robflat_bench.measures.oracle import CHUNK, Oracle
from robflat_bench.measures.shared import FixedImagesParams
from robflat_bench.numerics.weight_space import Direction, WeightSpace


class Point(NamedTuple):
    """The loss at w + nu: of each example, float64 [N], and the gradient of their mean, float64 [d]."""

    nu: Tensor
    losses: Tensor
    gradient: Tensor

    @property
    def mean(self) -> float:
        return float(self.losses.mean())


class Landscape:
    """The mean loss of given images as a function of nu, one float64 vector [d] over all layers."""

    def __init__(self, model: nn.Module, oracle: Oracle, images: Examples) -> None:
        self.model, self.oracle, self.images = model, oracle, images
        self.space = WeightSpace(model)
        self.weights = flat(self.space.layers, images.x)

    def at(self, nu: Tensor) -> Point:
        with self.space.moved(self._layers(nu)):
            losses, gradient = self.oracle.gradient(self.model, self.images, self.space.layers)
        return Point(nu, losses, flat(gradient, self.images.x))

    def origin(self) -> Point:
        """At w itself."""
        return self.at(torch.zeros_like(self.weights))

    def wrong(self, nu: Tensor) -> Tensor:
        """Which examples are misclassified at w + nu, bool [N]."""
        found = []
        with self.space.moved(self._layers(nu)), attacked(self.model), torch.no_grad():
            for part, count in padded_batches(self.images, CHUNK):
                found.append((self.model(part.x).argmax(1) != part.y)[:count])
        return torch.cat(found)

    def gaussian(self, *key: int | str) -> Tensor:
        """N(0, I) [d], each tensor keyed by its own name and shape."""
        draws = {
            name: torch.randn(layer.shape, generator=generator(*key, name, *layer.shape), dtype=torch.float64)
            for name, layer in self.space.layers.items()
        }
        return flat(draws, self.images.x)

    def _layers(self, nu: Tensor) -> Direction:
        layers = self.space.layers
        pieces = nu.split([layer.numel() for layer in layers.values()])
        return {name: piece.view(layers[name].shape) for name, piece in zip(layers, pieces, strict=True)}


def flat(layers: dict[str, Tensor] | dict[str, nn.Parameter], beside: Tensor) -> Tensor:
    """One float64 vector, on the device of `beside`."""
    return torch.cat([layer.detach().double().reshape(-1) for layer in layers.values()]).to(beside.device)


def given_images(
    model: nn.Module, threat: Threat, params: FixedImagesParams, examples: Examples, workspace: Workspace
) -> tuple[Oracle, Examples]:
    """The images of the coupling, found at w, and an oracle that takes them, or any of them, as they are."""
    oracle = Oracle(threat, params)
    oracle.freeze(model, examples, workspace)
    return Oracle(threat, params.model_copy(update={"coupling": "clean"})), oracle.points(examples)


class Ball:
    """The unit ball of z."""

    def direction(self, gradient: Tensor) -> Tensor:
        """The steepest ascent of length 1 in this norm; 0 without a gradient."""
        raise NotImplementedError

    def project(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def start(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """A random point of the ball, made of N(0, I)."""
        raise NotImplementedError

    def gap(self, gradient: Tensor, z: Tensor) -> float:
        """||g||_q - <g, z>."""
        raise NotImplementedError


class Round(Ball):
    """p = 2."""

    def direction(self, gradient: Tensor) -> Tensor:
        length = float(gradient.norm())
        return gradient / length if length > 0 else torch.zeros_like(gradient)

    def project(self, z: Tensor) -> Tensor:
        return z / max(float(z.norm()), 1.0)

    def start(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """Isotropic, its radius U(0,1)."""
        radius = torch.rand((), generator=generator(*key, "radius"), dtype=torch.float64)
        return self.direction(gaussian) * radius.to(gaussian.device)

    def gap(self, gradient: Tensor, z: Tensor) -> float:
        return float(gradient.norm() - gradient @ z)


class Box(Ball):
    """p = inf."""

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, z: Tensor) -> Tensor:
        return z.clamp(-1, 1)

    def start(self, gaussian: Tensor, *key: int | str) -> Tensor:
        """Every coordinate U(-1,1): the Gaussian distribution function, stretched."""
        uniform: Tensor = torch.special.erf(gaussian / math.sqrt(2))
        return uniform

    def gap(self, gradient: Tensor, z: Tensor) -> float:
        return float(gradient.abs().sum() - gradient @ z)


BALLS: dict[str, Ball] = {"l2": Round(), "linf": Box()}


def normalised_ascent(landscape: Landscape, h: Tensor, ball: Ball, iterations: int) -> Iterator[Point]:
    """z <- Pi( z + 2.5 / iterations * direction ), from z = 0: every iterate, the first one included."""
    z = torch.zeros_like(landscape.weights)
    here = landscape.at(h * z)
    yield here
    for _ in range(iterations):
        z = ball.project(z + 2.5 / iterations * ball.direction(h * here.gradient))
        here = landscape.at(h * z)
        yield here


MOMENTUM = 0.75
ENOUGH = 0.75
"""Of the steps between two checkpoints, the fraction that must improve on the step before."""


def checkpoints(iterations: int) -> set[int]:
    """ceil(p_j iterations), in hundredths: p_1 = 22, and intervals that shrink by 3 down to 6."""
    p, interval, found = 0, 22, set()
    while p + interval <= 100:
        p += interval
        found.add(-(-p * iterations // 100))
        interval = max(interval - 3, 6)
    return found


def auto_pgd(landscape: Landscape, h: Tensor, ball: Ball, iterations: int, start: Tensor) -> Iterator[Point]:
    """Auto-PGD on z: every iterate, the start included.

    z <- Pi( z + a (Pi(z + eta direction) - z) + (1 - a) (z - z_before) ) with a = 0.75, at first eta = 2 (the ball's
    diameter) and a = 1. At a checkpoint where too few steps improved, or where neither eta nor the best iterate has
    changed since the last one, eta is halved and the climb goes on from the best iterate.
    """
    z = before = start
    here = landscape.at(h * z)
    yield here
    best_z, best = z, here
    step, improved, last, due = 2.0, 0, 0, checkpoints(iterations)
    at_last = (step, best.mean)
    for number in range(1, iterations + 1):
        ahead = ball.project(z + step * ball.direction(h * here.gradient))
        a = MOMENTUM if number > 1 else 1.0
        z, before = ball.project(z + a * (ahead - z) + (1 - a) * (z - before)), z
        previous, here = here, landscape.at(h * z)
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
    """Of its iterates the first with the highest mean loss; not a number is never the highest."""
    return max(climb, key=lambda point: point.mean if math.isfinite(point.mean) else -math.inf)


def gap(h: Tensor, ball: Ball, point: Point) -> float:
    """The gap at a point of the ball with half-axes h."""
    z = torch.where(h > 0, point.nu / h, 0.0)
    return ball.gap(h * point.gradient, z)
