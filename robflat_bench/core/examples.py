"""Examples under evaluation, and the workspace that an evaluation gives to attacks and measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from robflat_bench.core.params import ThreatNorm

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Result = TypeVar("Result")


@dataclass(frozen=True)
class Threat:
    """The adversary may change an image x to any x' in [0,1] with ||x' - x||_norm <= epsilon.

    Parameters
    ----------
    epsilon : float
        Radius, in pixels of [0,1].
    norm : {"linf", "l2", "l1"}
        The norm of the ball.
    """

    epsilon: float
    norm: ThreatNorm = "linf"


@dataclass(frozen=True)
class Examples:
    """Examples under evaluation.

    Parameters
    ----------
    x : Tensor
        Images, float [N,C,H,W] in [0,1].
    y : Tensor
        Labels, int64 [N].
    index : Tensor
        Positions in their dataset, int64 [N].
    """

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        return Examples(self.x[rows], self.y[rows], self.index[rows])


@dataclass(frozen=True)
class Spent:
    """The cost of work: seconds, and forward and backward image passes through the network."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.forward + other.forward, self.backward + other.backward)


class Journal:
    """Keeps finished units of work, so that an interrupted evaluation skips them when it is resumed.

    This base class only computes; the store's journal writes each unit to disk. `spent` is the cost of all units,
    computed now or read back. Names of units are [A-Za-z0-9_.-], unique within one journal; `section` opens a child
    journal with names of its own.
    """

    spent: Spent = Spent()

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The arrays of one unit: computed now, or read back bit for bit if the unit had finished before."""
        return compute()

    def each(self, count: int, compute: Callable[[int], Result]) -> list[Result]:
        """compute(0), ..., compute(count - 1), each of which computes units and needs no other: a draw, a restart.

        Several processes may share them, so any order must give the same results.
        """
        return [compute(number) for number in range(count)]

    def section(self, name: str) -> Journal:
        """A journal for one part of the work."""
        return self


@dataclass(frozen=True)
class Workspace:
    """What an evaluation provides to an attack or a measure.

    Parameters
    ----------
    batch : int
        Images in memory at a time; it changes no result beyond rounding.
    seed : int
        Seed of all random numbers, from the protocol.
    journal : Journal
        Makes the work resumable.
    initial : Mapping of str to Tensor, or None
        The weights at the start of training, by name; None where they are not known.
    shared : Journal
        Keeps what several measures read at the weights of one checkpoint, such as the images of one attack. Its units
        are named by their content, and their cost is counted in every measure that reads them.
    errors_only : bool
        Only whether each adversarial image is misclassified is read, not its loss: an attack may leave an image alone
        once it is misclassified, if it would count it as broken in any case.
    """

    batch: int = 100
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    initial: Mapping[str, Tensor] | None = None
    shared: Journal = None  # type: ignore[assignment]  # never None in an instance
    errors_only: bool = False

    def __post_init__(self) -> None:
        if self.shared is None:
            object.__setattr__(self, "shared", self.journal.section("shared"))
