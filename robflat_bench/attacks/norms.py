r"""Norms of the threat: the size of a move d, the dual norm, the nearest move of the ball, a step and a start in it.

            size          dual norm     steepest ascent of <g, d>    uniform start, radius 1
    linf    max |d_i|     sum |g_i|     sign g                       U(-1,1) in every pixel
    l2      ||d||_2       ||g||_2       g / ||g||_2                  u^{1/D} z / ||z||_2,  z ~ N(0, I),  u ~ U(0,1)
    l1      sum |d_i|     max |g_i|     -                            -

max_{||d|| <= eps} <g, d> = eps ||g||_dual: the steepest move of size eps raises a linear loss by that. The engine
climbs in the norms of `CLIMBED`. Its l1 step would move one pixel at a time, so attacks that know better steps have l1
alone.

Admissible images lie in the ball around x and in [0,1]. `project` moves into the ball first and clips to [0,1] then.
Clipping keeps the ball: x lies in [0,1], so it moves no pixel away from x, and the three norms grow with every |d_i|.

Uniform in l2 balls: Muller, Communications of the ACM 2(4), 1959. l1 balls: Duchi et al., ICML 2008.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from robflat_bench.core import UsageError
from robflat_bench.core.randomness import generator

Size: TypeAlias = float | Tensor
"""A radius or a step in pixels of [0,1]; each may be per example, [B,1,1,1]."""


class Region(Protocol):
    """The admissible images around B clean ones."""

    def clip_(self, images: Tensor) -> Tensor:
        """The nearest admissible images; those that are given may be overwritten."""

    def rows(self, stay: Tensor) -> Region:
        """The region of some of the images, [b] of their rows."""


class Norm(ABC):
    """A norm of moves d, float [B,...]. `p` and `dual_p`: its exponent and that of its dual."""

    p: float
    dual_p: float

    def size(self, moves: Tensor) -> Tensor:
        """||d|| of each move, float64 [B]."""
        return _lengths(moves, self.p)

    def dual(self, gradients: Tensor) -> Tensor:
        """The dual norm of each gradient, float64 [B]."""
        return _lengths(gradients, self.dual_p)

    @abstractmethod
    def shrunk(self, moves: Tensor, epsilon: Size) -> Tensor:
        """The nearest moves of size at most epsilon."""

    def project(self, x_adv: Tensor, x: Tensor, epsilon: Size) -> Tensor:
        """The nearest images in the ball around x, then clipped to [0,1]; images that are admissible stay."""
        moves = x_adv - x
        inside = _per_image(self.size(moves), x) <= epsilon  # x + moves may round to another image than x_adv
        return torch.where(inside, x_adv, x + self.shrunk(moves, epsilon)).clamp_(0, 1)


class ClimbedNorm(Norm):
    """A norm in which the engine climbs."""

    @abstractmethod
    def steepest(self, gradients: Tensor) -> Tensor:
        """The move of size 1 that raises the loss most, by its linear model; 0 where the gradient is 0."""

    @abstractmethod
    def uniform(self, shape: Sequence[int], source: torch.Generator) -> Tensor:
        """Moves [B,...], each uniform in the unit ball, float64 on the CPU."""

    @abstractmethod
    def step(self, epsilon: Size, steps: int) -> Size:
        """The size of each of so many steps, where no other is given."""

    @abstractmethod
    def region(self, x: Tensor, epsilon: Size) -> Region:
        """The admissible images around x."""

    def noise_like(self, x: Tensor, source: torch.Generator) -> Tensor:
        """`uniform` with the shape, dtype and device of x [B,...]."""
        return self.uniform(x.shape, source).to(x)

    def noise(self, x: Tensor, index: Tensor, *key: int | str) -> Tensor:
        """`uniform` for each example, keyed by (key, index[b]): it depends on the example and not on its batch."""
        one = (1, *x.shape[1:])
        return torch.cat([self.uniform(one, generator(*key, row)) for row in index.tolist()]).to(x)


class Linf(ClimbedNorm):
    p, dual_p = math.inf, 1.0

    def shrunk(self, moves: Tensor, epsilon: Size) -> Tensor:
        return moves.clamp(-epsilon, epsilon)  # type: ignore[arg-type]  # two floats or two tensors

    def project(self, x_adv: Tensor, x: Tensor, epsilon: Size) -> Tensor:
        return torch.clamp(x_adv, x - epsilon, x + epsilon).clamp_(0, 1)

    def steepest(self, gradients: Tensor) -> Tensor:
        return gradients.sign()

    def uniform(self, shape: Sequence[int], source: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=source, dtype=torch.float64).mul_(2).sub_(1)

    def step(self, epsilon: Size, steps: int) -> Size:
        return epsilon / 4

    def region(self, x: Tensor, epsilon: Size) -> Region:
        return BoxRegion((x - epsilon).clamp_(0, 1), (x + epsilon).clamp_(0, 1))


class L2(ClimbedNorm):
    p = dual_p = 2.0

    def shrunk(self, moves: Tensor, epsilon: Size) -> Tensor:
        return moves * (epsilon / _per_image(self.size(moves), moves)).clamp(max=1).to(moves)

    def steepest(self, gradients: Tensor) -> Tensor:
        largest = _per_image(_lengths(gradients, math.inf), gradients).to(gradients)
        scaled = gradients / torch.where(largest == 0, 1, largest)  # else squares of small numbers underflow
        return scaled / _per_image(self.size(scaled), scaled).clamp(min=1).to(scaled)

    def uniform(self, shape: Sequence[int], source: torch.Generator) -> Tensor:
        directions = torch.randn(shape, generator=source, dtype=torch.float64)
        radii = torch.rand(shape[0], generator=source, dtype=torch.float64) ** (1 / math.prod(shape[1:]))
        return directions * _per_image(radii / self.size(directions), directions)

    def step(self, epsilon: Size, steps: int) -> Size:
        return 2.5 * epsilon / steps

    def region(self, x: Tensor, epsilon: Size) -> Region:
        return BallRegion(self, x, epsilon)


class L1(Norm):
    p, dual_p = 1.0, math.inf

    def shrunk(self, moves: Tensor, epsilon: Size) -> Tensor:
        """Soft thresholding, where the threshold makes the size epsilon."""
        magnitudes = moves.flatten(1).abs().double()
        radii = torch.as_tensor(epsilon, dtype=torch.float64, device=moves.device).reshape(-1, 1)
        ordered = magnitudes.sort(1, descending=True).values
        counts = torch.arange(1, ordered.shape[1] + 1, device=moves.device)
        thresholds = (ordered.cumsum(1) - radii) / counts
        last = (ordered > thresholds).sum(1, keepdim=True).clamp(min=1) - 1
        threshold = thresholds.gather(1, last).clamp(min=0)
        kept = (magnitudes - threshold).clamp(min=0) * moves.flatten(1).sign()
        return kept.reshape(moves.shape).to(moves)


class BoxRegion(NamedTuple):
    """The region of l-inf: pixels between two images, so that a step clips once."""

    lowest: Tensor
    upmost: Tensor

    def clip_(self, images: Tensor) -> Tensor:
        return images.clamp_(self.lowest, self.upmost)

    def rows(self, stay: Tensor) -> Region:
        return BoxRegion(self.lowest[stay], self.upmost[stay])


class BallRegion(NamedTuple):
    """The region of a norm by `project`."""

    norm: Norm
    x: Tensor
    epsilon: Size

    def clip_(self, images: Tensor) -> Tensor:
        return self.norm.project(images, self.x, self.epsilon)

    def rows(self, stay: Tensor) -> Region:
        return BallRegion(self.norm, self.x[stay], rows_of(self.epsilon, stay))


CLIMBED: dict[str, ClimbedNorm] = {"linf": Linf(), "l2": L2()}
"""Norms of attacks by gradient steps: the engine, its starts, and methods with steps of their own."""
NORMS: dict[str, Norm] = {**CLIMBED, "l1": L1()}
"""Every norm of a threat."""


def climbed(name: str) -> ClimbedNorm:
    """The norm with that name; UsageError where the engine does not climb in it."""
    if name not in CLIMBED:
        raise UsageError(f"gradient steps are defined under {', '.join(CLIMBED)}, not {name}; use autoattack")
    return CLIMBED[name]


def rows_of(size: Size, stay: Tensor) -> Size:
    """A size of some of the images, [b] of their rows."""
    return size[stay] if isinstance(size, Tensor) and size.ndim else size


def _lengths(moves: Tensor, p: float) -> Tensor:
    """The p-norm of each move, summed in float64, [B]."""
    lengths: Tensor = torch.linalg.vector_norm(moves.flatten(1), p, dim=1, dtype=torch.float64)
    return lengths


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] as [B,1,...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
