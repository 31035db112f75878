"""Examples under evaluation, and what an evaluation lends to attacks and measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Threat:
    """What an adversary may do to an image: ||x' - x||_inf <= epsilon (pixels in [0,1]) and x' in [0,1]."""

    epsilon: float
    norm: Literal["linf"] = "linf"


@dataclass(frozen=True)
class Examples:
    """Examples under evaluation: x float [N,C,H,W] in [0,1], y int64 [N], index int64 [N] in their dataset."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        return Examples(self.x[rows], self.y[rows], self.index[rows])


@dataclass(frozen=True)
class Spent:
    """What work took: seconds, and image passes through the network."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.forward + other.forward, self.backward + other.backward)


class Journal:
    """Units of finished work. This one only computes; the store's keeps each unit on disk and skips it next time.

    A unit is a function that returns arrays, under a name [A-Za-z0-9_.-] unique within one journal; `section` opens a
    child whose names cannot collide with its siblings'. `spent` sums what all units took, read back or not.
    """

    spent: Spent = Spent()

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The unit's arrays: computed now, or read back bit for bit if it had finished before."""
        return compute()

    def section(self, name: str) -> Journal:
        """A journal for one part of the work."""
        return self


@dataclass(frozen=True)
class Workspace:
    """What the harness lends to an attack or a measure: memory batch (changes nothing but memory), evaluation
    seed (in the protocol), the journal that makes the work resumable, and the weights that training began with
    (by name; None where they are not known)."""

    batch: int = 100
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    initial: Mapping[str, Tensor] | None = None
