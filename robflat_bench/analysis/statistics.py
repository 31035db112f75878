r"""What a few networks on a few thousand examples say about a method: intervals, ranks, ties, comparisons.

The outcomes of one method are a table [S, n], S networks (seeds) on the same n examples, both random and crossed:

    X_si = \mu + a_s + b_i + e_si,        Var(mean X) = (\sigma_a^2 + \sigma_e^2 / n) / S  +  \sigma_b^2 / n
                                                                seed part                    example part

(Searle, Casella, McCulloch: Variance Components, 1992). The variance of the S seed means is the whole seed part, e
included; so the example part is the variance of the n example means less \sigma_e^2 / S, and no noise counts twice.
One rule makes every interval and every test, `_Spread`: Student's t on the seed part, the normal on the example part,
in quadrature. Where there is one number per network and no examples, n = 1, it is the t interval and Welch's test.

Satterthwaite's degrees of freedom for the sum would be shorter and wrong: with 3 seeds and both parts alive they reject
equal methods up to 7 times too often at p = 0.003, which is where Holm's correction looks.

Lower is better everywhere. Nothing here knows records; which rows are ranked, and by what, is the board's matter.
"""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.05
POWER = 0.8
RANKED_SEEDS = 3
BLOCK = 100
"""Draws of the bootstrap at a time."""


@dataclass(frozen=True)
class Estimate:
    """A method's value: mean and sd over seeds, and the 95 % interval of the method. One seed says nothing of the
    method: sd, low and high are None, and standard_error, over examples, is of that one network; else it is None."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    seeds: int


@dataclass(frozen=True)
class Place:
    """A method among others. rank: 1 + how many have a lower mean. low, high: 95 % of the bootstrap's ranks. letters,
    one character each: two methods that share one are not told apart."""

    rank: int
    low: int
    high: int
    letters: str


@dataclass(frozen=True)
class McNemar:
    """Two networks, not two methods. only_a, only_b: how many examples only a, only b gets wrong. p: exact, two-sided,
    of both being as likely (McNemar: Psychometrika 1947)."""

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two methods: mean of a less mean of b, its 95 % interval and p, of this pair alone. detectable: the difference
    that would be found with power 80 % at level 5 %, were the variances as estimated. None where a or b has one seed.
    networks: seed k of a against seed k of b; none where outcomes are not errors."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    networks: tuple[McNemar, ...]


def crossed(*tables: NDArray[Any], signs: Sequence[int] | None = None) -> Estimate:
    """The sum of sign times mean over tables [S, n_k], bool (errors) or float: outcomes of the same S networks, in one
    order, on independent sets of examples. The generalization gap is `crossed(test, train, signs=(1, -1))`.

    Coverage is 95 % where one part is dead, at most 97.7 % (S = 3) or 96.6 % (S = 5) where both are alive; measured,
    95.2 to 97.6 % in cells of 4,000 simulated leagues (errors, losses, gaps; seed noise none, small, dominant).
    The interval of errors ends where errors do; with hardly any wrong it is too short, as every normal interval there,
    and has no width with none. Raises ValueError where tables are empty, not finite, or of different S.
    """
    parts = [_Outcomes(table) for table in tables]
    weights = np.array(signs or [1] * len(parts))
    if len({part.seeds for part in parts}) != 1:
        raise ValueError(f"outcomes of the same networks expected, got {[part.seeds for part in parts]} seeds")
    seeds = parts[0].seeds
    mean = float(weights @ [part.mean for part in parts])
    if seeds == 1:
        error = math.sqrt(sum(_variance(part.profile) / part.n for part in parts))
        return Estimate(mean, None, None, None, error, seeds)
    variance = _variance(weights @ [part.means for part in parts])
    spread = _Spread(variance / seeds, seeds - 1, sum(map(_example_part, parts)))
    reach = float(spread.reach(LEVEL))
    low, high = mean - reach, mean + reach
    if all(table.dtype == bool for table in tables):
        low = max(low, float(weights[weights < 0].sum()))
        high = min(high, float(weights[weights > 0].sum()))
    return Estimate(mean, math.sqrt(variance), low, high, None, seeds)


def over_seeds(values: ArrayLike) -> Estimate:
    """Mean, sd and t interval (S - 1 degrees of freedom) of one number per network, [S]: flatness, budgets. What a
    single one may be off by is not in it: standard_error is None with one seed too."""
    return replace(crossed(np.asarray(values, float)), standard_error=None)


def places(tables: Sequence[NDArray[Any]], draws: int = 1000) -> list[Place]:
    """Each method's place among them all. tables: outcomes [S_m, n] on the same n examples, or one number per network,
    [S_m]; at least 3 seeds. Letters are from all pairwise tests, corrected by Holm's method: of 2,000 simulated
    leagues of six equal methods with 3 seeds, at most 2 % had two letters.

    Rank intervals are from a paired hierarchical bootstrap: examples are resampled alike for all methods, seeds within
    each. It serves for ranks only: of S seeds it sees (S - 1) / S of their variance. Random streams are keyed by n and
    by a method's outcomes, so that neither names, nor order, nor the presence of another method move them.

    Raises ValueError for fewer than 3 seeds, different n, or outcomes that are empty or not finite.
    """
    methods = [_Outcomes(table) for table in tables]
    if any(method.seeds < RANKED_SEEDS for method in methods):
        raise ValueError(f"fewer than {RANKED_SEEDS} seeds are not ranked")
    if not methods:
        return []
    _same_examples(methods)
    first, second = np.triu_indices(len(methods), 1)
    means = np.array([method.mean for method in methods])
    different = np.zeros((len(methods), len(methods)), bool)
    different[first, second] = _told_apart(_differences(methods), means[first] - means[second])
    order = sorted(range(len(methods)), key=lambda m: (methods[m].mean, methods[m].key))
    ranks = _ranks(_bootstrap(methods, draws))
    low, high = np.quantile(ranks, [LEVEL / 2, 1 - LEVEL / 2], axis=1, method="inverted_cdf")
    rank = _ranks(np.array([[method.mean] for method in methods]))[:, 0]
    return [
        Place(int(r), int(a), int(b), c)
        for r, a, b, c in zip(rank, low, high, letters(order, different | different.T), strict=True)
    ]


def compare(a: NDArray[Any], b: NDArray[Any]) -> Comparison:
    """Method a against method b. a, b: outcomes [S, n], bool (errors) or float, on the same n examples, or one number
    per network, [S]; S may differ, and then the first networks are compared in pairs.

    Pairing is over examples; seeds are taken as independent. Raises ValueError for different n, or outcomes that are
    empty or not finite.
    """
    methods = [_Outcomes(a), _Outcomes(b)]
    _same_examples(methods)
    difference = methods[0].mean - methods[1].mean
    networks = tuple(map(_mcnemar, a, b)) if a.dtype == b.dtype == bool else ()
    if min(method.seeds for method in methods) == 1:
        return Comparison(difference, None, None, None, None, networks)
    spread = _Spread(*_differences(methods)[0])
    reach, p, detectable = float(spread.reach(LEVEL)), float(spread.p(difference)), float(spread.detectable())
    return Comparison(difference, difference - reach, difference + reach, p, detectable, networks)


def holm(p: ArrayLike) -> Floats:
    """p values [m], adjusted step down: p_(k) -> max_{j<=k} (m - j + 1) p_(j), at most 1 (Holm: Scand. J. Stat. 1979).
    Those at most alpha are rejected, with a chance of at most alpha that any was true."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _told_apart(spreads: Floats, distance: Floats) -> NDArray[np.bool_]:
    """Pairs, each a `_Spread` [m, 3] and a difference of means [m], that Holm's method rejects at LEVEL. One with
    p <= LEVEL / m it rejects whatever its rank and one with p > LEVEL never: p, which is a search, is found for the
    others only."""
    spread, distance = _Spread(*spreads.T), np.abs(distance)
    never = (distance == 0) | (spread.reach(LEVEL) > distance)
    always = ~never & (spread.reach(LEVEL / max(len(distance), 1)) <= distance)
    p = np.where(always, 0.0, 1.0)
    between = ~never & ~always
    p[between] = _Spread(*spreads[between].T).p(distance[between])
    return holm(p) <= LEVEL


def letters(order: Sequence[int], different: NDArray[np.bool_]) -> list[str]:
    """The compact letter display of rows 0..M-1: two share a letter if and only if they are not `different` [M, M].

    order: rows, best first; letters are given out in that order: a-z, A-Z, then other alphabets', so that each is one
    character. By insert and absorb (Piepho: J. Comput. Graph. Stat. 2004).
    """
    columns = {frozenset(order)}
    for i, j in combinations(order, 2):
        if different[i, j]:
            split = {part for c in columns for part in ((c - {i}, c - {j}) if {i, j} <= c else (c,))}
            columns = {c for c in split if not any(c < other for other in split)}
    position = {row: k for k, row in enumerate(order)}
    first = sorted(columns, key=lambda column: sorted(position[row] for row in column))
    named = list(zip(_alphabet(), first, strict=False))
    return ["".join(letter for letter, column in named if row in column) for row in range(len(order))]


class _Outcomes:
    """One table, [S, n], and what intervals and tests need of it."""

    def __init__(self, outcomes: NDArray[Any]) -> None:
        table = np.ascontiguousarray(outcomes, float)
        self.table: Floats = table[:, None] if table.ndim == 1 else table
        if not table.size or not np.isfinite(table).all():
            raise ValueError("outcomes must be finite numbers, at least one")
        self.seeds: int
        self.n: int
        self.seeds, self.n = self.table.shape
        self.mean = float(table.mean())
        self.means: Floats = self.table.mean(1)
        self.profile: Floats = self.table.mean(0)
        self.key = hashlib.sha256(table.tobytes()).digest()

    @cached_property
    def residual(self) -> float:
        r"""\sigma_e^2: the mean square of seeds x examples, of (S - 1)(n - 1) degrees of freedom; 0 where n = 1."""
        within = float(self.table.var(0, ddof=1).sum()) - self.n * _variance(self.means)
        return max(within, 0.0) / max(self.n - 1, 1)

    @cached_property
    def seed_part(self) -> float:
        """For tests: never below what the residual alone makes of it. Chance and whole numbers of errors do go below,
        down to 0, which would tell equal methods apart. (Intervals of one method would cover 99 % with it.)"""
        return max(_variance(self.means), self.residual / self.n) / self.seeds


@dataclass(frozen=True)
class _Spread:
    """The variance of an estimate, or of several: its seed part, with that many degrees of freedom, and its example
    part."""

    seed: float | Floats
    freedom: float | Floats
    example: float | Floats

    def reach(self, level: float | Floats) -> Floats:
        """Half the width of the interval that misses with probability `level`."""
        from scipy.special import ndtri, stdtrit

        return self._quadrature(stdtrit(self.freedom, level / 2), ndtri(level / 2))

    def p(self, distance: ArrayLike) -> Floats:
        """The level whose interval just reaches `distance`, from 1e-30 up: its logarithm, by bisection."""
        distance = np.abs(distance)
        low, high = np.full(distance.shape, math.log(1e-30)), np.zeros(distance.shape)
        for _ in range(32):
            middle = (low + high) / 2
            reached = self.reach(np.exp(middle)) >= distance
            low, high = np.where(reached, middle, low), np.where(reached, high, middle)
        return np.exp(high)

    def detectable(self) -> Floats:
        """The distance found with `POWER` at `LEVEL`: in each part, the noncentrality at which its own test has that
        power (Cohen: Statistical Power Analysis, 1988)."""
        from scipy.special import nctdtrinc, ndtri, stdtrit

        student = nctdtrinc(self.freedom, 1 - POWER, stdtrit(self.freedom, 1 - LEVEL / 2))
        return self._quadrature(student, ndtri(1 - LEVEL / 2) + ndtri(POWER))

    def _quadrature(self, student: Floats, normal: Floats) -> Floats:
        return np.sqrt(student**2 * self.seed + normal**2 * self.example)


def _example_part(method: _Outcomes) -> float:
    """Of the variance of a method's mean, what its examples make of it."""
    return max(_variance(method.profile) - method.residual / method.seeds, 0.0) / method.n


def _differences(methods: Sequence[_Outcomes]) -> Floats:
    """What the `_Spread` of each pair's difference is made of, [pairs, 3], in the order of `np.triu_indices`. Seeds are
    independent (freedom: Welch, Biometrika 1947), examples are shared."""
    first, second = np.triu_indices(len(methods), 1)
    part = np.array([method.seed_part for method in methods])
    free = np.array([method.seeds - 1 for method in methods])
    noise = np.array([method.residual / method.seeds for method in methods])
    profiles = np.array([method.profile for method in methods])
    seed = part[first] + part[second]
    squares = (part**2 / free)[first] + (part**2 / free)[second]
    freedom = np.where(squares > 0, seed**2 / np.where(squares > 0, squares, 1), free[first] + free[second])
    n = profiles.shape[1]
    if n > 1:
        shared = np.concatenate([(profiles[m] - profiles[m + 1 :]).var(1, ddof=1) for m in range(len(methods))])
    else:
        shared = np.zeros(len(first))
    return np.stack([seed, freedom, np.maximum(shared - (noise[first] + noise[second]), 0) / n], axis=1)


def _mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> McNemar:
    from scipy.special import bdtr

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))))


def _bootstrap(methods: Sequence[_Outcomes], draws: int) -> Floats:
    """Resampled means, [M, draws]. Of errors they are quotients of whole numbers, so exact ties stay exact."""
    n = methods[0].n
    examples = np.random.default_rng(n)
    networks = np.concatenate([method.table for method in methods])
    ends = np.cumsum([method.seeds for method in methods])[:-1]
    seeds = np.split(np.concatenate([_resampled_seeds(method, draws).T for method in methods]), ends)
    means = np.empty((len(methods), draws))
    for start in range(0, draws, BLOCK):
        block = slice(start, min(start + BLOCK, draws))
        counts = [np.bincount(examples.integers(n, size=n), minlength=n) for _ in range(start, block.stop)]
        drawn = np.split(networks @ np.array(counts, float).T, ends)
        for m, method in enumerate(methods):
            means[m, block] = (seeds[m][:, block] * drawn[m]).sum(0) / method.table.size
    return means


def _resampled_seeds(method: _Outcomes, draws: int) -> Floats:
    """How often each network is drawn, [draws, S]."""
    source = np.random.default_rng(int.from_bytes(method.key, "little"))
    return source.multinomial(method.seeds, np.full(method.seeds, 1 / method.seeds), draws).astype(float)


def _ranks(means: Floats) -> NDArray[np.int64]:
    """[M, draws] -> 1 + how many are lower, in each draw."""
    return 1 + np.array([(means < own).sum(0) for own in means])


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _same_examples(methods: Sequence[_Outcomes]) -> None:
    if len(numbers := {method.n for method in methods}) > 1:
        raise ValueError(f"outcomes on the same examples expected, got {sorted(numbers)} of them")


def _alphabet() -> Iterator[str]:
    return chain(string.ascii_letters, (c for c in map(chr, range(ord("α"), 0x10000)) if c.isalpha()))
