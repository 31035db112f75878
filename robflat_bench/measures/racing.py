r"""Whether more than some of many pairs are wrong at a radius, read no further than the verdict needs.

Each pair of a draw of the weights and an image is right or wrong at every radius s. The target is met at s where at
most A of the M pairs are wrong. Pairs are read in a random order, another one at each s, and the test ends

    surely    where more than A wrong pairs were read, or at least M - A right ones
    at a look after n pairs with the share q of errors, where  exp(-n KL(q || p)) <= FAILURE / looks,  p = A / M for
              q > p, and (A + 1) / M for q < p

KL(q || p) = q log(q/p) + (1-q) log((1-q)/(1-p)). The exponential bounds the probability of such a sample where the
verdict is wrong: Hoeffding, JASA 1963, theorem 1, and section 6 for draws without replacement. So one radius fails with
probability FAILURE at most, whatever earlier verdicts led to it, because its order is independent of theirs; and a
search with probability FAILURE times the radii at which it looked.

After the looks, the pairs of one draw after another are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch

from robflat_bench.core.randomness import generator
from robflat_bench.measures.bisection import End, bracket, interpolated, power_law

FAILURE = 1e-6
"""Probability, at most, that the verdict at one radius is wrong."""
LOOKS = (64, 256)
"""Pairs that were read at each look, up to a quarter of all."""
UNREAD = -1
POWER = 1.5
"""The rise of the share of errors grows about as this power of the radius, where only one rise is known."""

Read: TypeAlias = Callable[[float, int, np.ndarray], np.ndarray]
"""(radius, draw, rows of images) -> whether each is wrong."""


def chance(q: float, n: int, p: float) -> float:
    """exp(-n KL(q || p)) bounds the probability that n pairs have a share of errors as far from p as q, on its side."""
    parts = ((q, p), (1 - q, 1 - p))
    if any(a > 0 >= b for a, b in parts):
        return 0.0
    return math.exp(-n * sum(a * math.log(a / b) for a, b in parts if a > 0))


class Race:
    """Errors of M = draws * N pairs at any radius.

    Parameters
    ----------
    read : callable
        Reads pairs of one draw. A pair is read once at a radius.
    reference : ndarray
        Whether each image is wrong at radius 0, [N].
    draws : int
        Draws of the weights.
    target : float
        The rise of the share of errors that is tolerated.
    key : int or str
        Key of the random orders.
    """

    def __init__(self, read: Read, reference: np.ndarray, draws: int, target: float, *key: int | str) -> None:
        self.read, self.target, self.draws, self.pairs = read, target, draws, draws * len(reference)
        self.allowed = draws * int(reference.sum()) + max(k for k in range(self.pairs) if k / self.pairs <= target)
        self.known = {0.0: np.tile(reference.astype(np.int8), (draws, 1))}
        self.looked: set[float] = set()
        self.raced: set[float] = set()  # decided at a look
        self.excesses: dict[float, float] = {}
        self.key = key

    def bracket(self, largest: float, tolerance: float) -> tuple[float, float]:
        """(low, high) of `bisection.bracket`."""

        def excess(s: float) -> float:
            self.excesses[s] = self.excess(s)
            return self.excesses[s]

        return bracket(excess, largest, tolerance, self._root)

    @property
    def failure(self) -> float:
        """Bound on the probability that any verdict so far is wrong."""
        return FAILURE * len(self.looked)

    def excess(self, s: float) -> float:
        """The share of errors at s minus the largest that meets the target: its sign as tested, its size a guess.

        It is half a pair away from 0, so that no share lies on the edge.
        """
        self.known[s] = np.full_like(self.known[0.0], UNREAD)
        if not math.isnan(sampled := self._looks(s)):
            self.raced.add(s)
            return sampled
        for draw in range(self.draws):
            if self._verdict(s) is None:
                self._fill(s, np.arange(self.draws)[:, None] == draw)
        wrong, right = int((self.known[s] == 1).sum()), int((self.known[s] == 0).sum())
        share = wrong / (wrong + right) if wrong + right else 0.0
        guess, least = share - (self.allowed + 0.5) / self.pairs, 0.5 / self.pairs
        return max(guess, least) if self._verdict(s) else min(guess, -least)

    def errors(self, s: float) -> np.ndarray:
        """Errors at s, 0 or 1, [draws, N]. A pair that was not read there counts as at the nearest radius."""
        found = self.known[0.0]
        for radius in sorted(self.known, key=lambda radius: -abs(radius - s)):
            found = np.where(self.known[radius] == UNREAD, found, self.known[radius])
        return found

    def _verdict(self, s: float) -> bool | None:
        """Whether more pairs than allowed are wrong at s; None as long as those read do not tell surely."""
        if (self.known[s] == 1).sum() > self.allowed:
            return True
        return False if (self.known[s] == 0).sum() >= self.pairs - self.allowed else None

    def _looks(self, s: float) -> float:
        """The excess of the share of errors in the sample whose verdict is sure enough; NaN where none is."""
        sample = np.zeros(self.pairs, dtype=bool)
        order = torch.randperm(self.pairs, generator=generator(*self.key, "order of pairs", repr(s))).numpy()
        for look in LOOKS:
            if 4 * look > self.pairs or self._verdict(s) is not None:
                break
            self.looked.add(s)
            sample[order[:look]] = True
            self._fill(s, sample.reshape(self.draws, -1))
            share = float((self.known[s].ravel()[sample] == 1).mean())
            edge = (self.allowed + (share * self.pairs <= self.allowed)) / self.pairs
            if chance(share, look, edge) <= FAILURE / len(LOOKS):
                return share - edge
        return math.nan

    def _fill(self, s: float, pairs: np.ndarray) -> None:
        """Read these pairs at s, [draws, N], where they are unread."""
        here = self.known[s]
        for draw, mask in enumerate(np.broadcast_to(pairs, here.shape)):
            rows = np.flatnonzero(mask & (here[draw] == UNREAD))
            if len(rows):
                here[draw, rows] = self.read(s, draw, rows)

    def _root(self, low: End, high: End) -> float:
        """Between near ends the line, else a power law through shares that were read surely, or else in races."""
        if not math.isnan(line := interpolated(low, high)):
            return line
        rises = {s: excess / self.target + 1 for s, excess in self.excesses.items()}
        sure = power_law({s: rise for s, rise in rises.items() if s not in self.raced}, POWER)
        return power_law(rises, POWER) if math.isnan(sure) else sure
