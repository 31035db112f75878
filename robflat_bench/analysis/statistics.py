"""Intervals, ranks, significance letters and comparisons of methods, from a few seeds on a few thousand examples.

Variances follow the crossed model of `variance.py`. Lower is better everywhere. The board decides which rows are
ranked, and by which quantity.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robflat_bench.analysis.moderation import Floats
from robflat_bench.analysis.variance import (
    LEVEL,
    CrossedTable,
    Spread,
    common_prior,
    example_part,
    pair_spreads,
    variance,
)

RANKED_SEEDS = 3
BLOCK = 100
"""Number of bootstrap draws in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A method's value.

    Attributes
    ----------
    mean, sd : over seeds; sd is None with one seed.
    low, high : 95 % confidence interval of the method; None with one seed, which says nothing of the method.
    standard_error : over examples, of the single network; None with several seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    seeds: int


@dataclass(frozen=True)
class Place:
    """A method's rank among others.

    Attributes
    ----------
    rank : 1 + the number of methods with a lower mean; exact ties share it.
    low, high : 95 % interval of the bootstrap's ranks.
    letters : one character each; the difference of two methods that share a letter is not significant.
    lead : in the lead group: not significantly worse than any other method.
    """

    rank: int
    low: int
    high: int
    letters: str
    lead: bool

    @property
    def groups(self) -> str:
        """`ab lead`: the letters, and whether the method is in the lead group."""
        return f"{self.letters} lead" if self.lead else self.letters


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two networks; it says nothing of their methods.

    Attributes
    ----------
    only_a, only_b : number of examples that only a, only b gets wrong.
    p : exact and two-sided, of both being equally likely (McNemar: Psychometrika 1947).
    """

    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two methods. All but `difference` and `networks` are None where a method has one seed.

    Attributes
    ----------
    difference : mean of a minus mean of b.
    low, high, p : 95 % confidence interval and p value, of this pair alone.
    detectable : the difference that is found with power 80 % at level 5 %, if the variances are as estimated.
    networks : seed k of a against seed k of b; empty where outcomes are not errors.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    detectable: float | None
    networks: tuple[McNemar, ...]


def crossed(*tables: NDArray[Any], signs: Sequence[int] | None = None) -> Estimate:
    """A method's value from per-example outcomes: the sum over tables of sign times mean.

    Parameters
    ----------
    tables : [S, n_k], bool (errors) or float: the same S networks in the same order, on independent sets of examples.
    signs : one per table, default 1. The generalization gap is `crossed(test, train, signs=(1, -1))`.

    Raises
    ------
    ValueError : a table is empty or not finite, or the tables differ in S.

    Notes
    -----
    Coverage of the interval is 95 % where one variance part is zero, and at most 97.7 % (S = 3) or 96.6 % (S = 5)
    otherwise; measured, 95.2 to 97.6 % in cells of 4,000 simulated leagues (errors, losses, gaps; seed noise none,
    small, dominant). The interval of errors stays in [0,1]; with very few errors it is too short, as every normal
    interval is, and with none it has width 0.
    """
    parts = [CrossedTable(table) for table in tables]
    weights = np.array(signs or [1] * len(parts))
    if len({part.seeds for part in parts}) != 1:
        raise ValueError(f"outcomes of the same networks expected, got {[part.seeds for part in parts]} seeds")
    seeds = parts[0].seeds
    mean = float(weights @ [part.mean for part in parts])
    if seeds == 1:
        error = math.sqrt(sum(variance(part.profile) / part.n for part in parts))
        return Estimate(mean, None, None, None, error, seeds)
    seed_variance = variance(weights @ [part.means for part in parts])
    spread = Spread(seed_variance / seeds, seeds - 1, sum(map(example_part, parts)))
    reach = float(spread.reach(LEVEL))
    low, high = mean - reach, mean + reach
    if all(table.dtype == bool for table in tables):
        low = max(low, float(weights[weights < 0].sum()))
        high = min(high, float(weights[weights > 0].sum()))
    return Estimate(mean, math.sqrt(seed_variance), low, high, None, seeds)


def over_seeds(values: ArrayLike) -> Estimate:
    """Mean, sd and t interval (S - 1 degrees of freedom) of one number per network, [S], such as flatness.

    standard_error is None with one seed too, because the error of a single number is unknown here."""
    return replace(crossed(np.asarray(values, float)), standard_error=None)


def places(tables: Sequence[NDArray[Any]], draws: int = 1000) -> list[Place]:
    """The place of each method among all of them.

    Parameters
    ----------
    tables : outcomes [S_m, n] on the same n examples, or one number per network, [S_m]; at least 3 seeds each.
    draws : number of bootstrap draws.

    Raises
    ------
    ValueError : fewer than 3 seeds, different n, or outcomes that are empty or not finite.

    Notes
    -----
    Seed variances are moderated across methods (`moderation.py`). Letters come from all pairwise tests with Holm's
    correction. The lead group (multiple comparisons with the best; Hsu: Ann. Stat. 1981) holds the truly best method
    with a probability of at least 95 %, on average over methods: a method leaves it where its test against a better
    one has p <= 5 % / (M - 1), Bonferroni's correction for its M - 1 comparisons. `benchmarks/leagues.py` simulates
    both.

    Rank intervals come from a paired hierarchical bootstrap: all methods share the resampled examples, and seeds are
    resampled within each method. It serves for ranks only, because it sees (S - 1) / S of the seeds' variance. Random
    streams depend on n and on a method's outcomes, so names, order and other methods do not change them.
    """
    methods = [CrossedTable(table) for table in tables]
    if any(method.seeds < RANKED_SEEDS for method in methods):
        raise ValueError(f"fewer than {RANKED_SEEDS} seeds are not ranked")
    if not methods:
        return []
    _same_examples(methods)
    first, second = np.triu_indices(len(methods), 1)
    means = np.array([method.mean for method in methods])
    different = np.zeros((len(methods), len(methods)), bool)
    spreads, distance = pair_spreads(methods, common_prior(methods)), means[first] - means[second]
    different[first, second] = significant(spreads, distance)
    lead = lead_group(spreads, distance, len(methods))
    order = sorted(range(len(methods)), key=lambda m: (methods[m].mean, methods[m].key))
    ranks = _ranks(_bootstrap(methods, draws))
    low, high = np.quantile(ranks, [LEVEL / 2, 1 - LEVEL / 2], axis=1, method="inverted_cdf")
    rank = _ranks(np.array([[method.mean] for method in methods]))[:, 0]
    return [
        Place(int(r), int(a), int(b), c, bool(d))
        for r, a, b, c, d in zip(rank, low, high, letters(order, different | different.T), lead, strict=True)
    ]


def compare_methods(a: NDArray[Any], b: NDArray[Any]) -> Comparison:
    """Method a against method b, paired over examples; seeds are independent, and nothing is borrowed from others.

    Parameters
    ----------
    a, b : outcomes [S, n], bool (errors) or float, on the same n examples, or one number per network, [S]. Where S
        differs, only the first networks are compared in pairs.

    Raises
    ------
    ValueError : different n, or outcomes that are empty or not finite.
    """
    methods = [CrossedTable(a), CrossedTable(b)]
    _same_examples(methods)
    difference = methods[0].mean - methods[1].mean
    networks = tuple(map(_mcnemar, a, b)) if a.dtype == b.dtype == bool else ()
    if min(method.seeds for method in methods) == 1:
        return Comparison(difference, None, None, None, None, networks)
    spread = Spread(*pair_spreads(methods)[0])
    reach, p, detectable = float(spread.reach(LEVEL)), float(spread.p(difference)), float(spread.detectable())
    return Comparison(difference, difference - reach, difference + reach, p, detectable, networks)


def holm(p: ArrayLike) -> Floats:
    """p values [m] with Holm's correction: p_(k) -> max_{j<=k} (m - j + 1) p_(j), at most 1 (Scand. J. Stat. 1979).

    Rejecting those at most alpha rejects a true hypothesis with probability at most alpha."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def significant(spreads: Floats, distance: Floats) -> NDArray[np.bool_]:
    """[m]: pairs whose difference is significant at LEVEL with Holm's correction.

    spreads: [m, 3], the `Spread` of each pair. distance: [m], differences of means. Holm's method always rejects
    p <= LEVEL / m and never p > LEVEL; the slow search for p is done for the other pairs only."""
    spread, distance = Spread(*spreads.T), np.abs(distance)
    never = (distance == 0) | (spread.reach(LEVEL) > distance)
    always = ~never & (spread.reach(LEVEL / max(len(distance), 1)) <= distance)
    p = np.where(always, 0.0, 1.0)
    between = ~never & ~always
    p[between] = Spread(*spreads[between].T).p(distance[between])
    return holm(p) <= LEVEL


def lead_group(spreads: Floats, distance: Floats, count: int) -> NDArray[np.bool_]:
    """[M]: methods that are not significantly worse than any other.

    spreads: [m, 3], distance: [m], of the pairs of `count` methods, as in `significant`. p is two-sided where a
    one-sided one would do: half of the level is reserve for methods whose seeds vary far more than is typical."""
    first, second = np.triu_indices(count, 1)
    apart = Spread(*spreads.T).reach(LEVEL / max(count - 1, 1)) < np.abs(distance)
    lead = np.ones(count, bool)
    lead[np.where(distance > 0, first, second)[apart]] = False
    return lead


def letters(order: Sequence[int], different: NDArray[np.bool_]) -> list[str]:
    """Compact letter display of rows 0..M-1: two rows share a letter if and only if they are not `different`, [M, M].

    order: rows, best first; letters follow it: a-z, A-Z, then other alphabets, one character each. Method: insert and
    absorb (Piepho: J. Comput. Graph. Stat. 2004).
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


def _mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> McNemar:
    from scipy.special import bdtr

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))))


def _bootstrap(methods: Sequence[CrossedTable], draws: int) -> Floats:
    """Resampled means, [M, draws]. Means of errors are quotients of whole numbers, so exact ties stay exact."""
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


def _resampled_seeds(method: CrossedTable, draws: int) -> Floats:
    """[draws, S]: how often each network is drawn."""
    source = np.random.default_rng(int.from_bytes(method.key, "little"))
    return source.multinomial(method.seeds, np.full(method.seeds, 1 / method.seeds), draws).astype(float)


def _ranks(means: Floats) -> NDArray[np.int64]:
    """[M, draws] -> 1 + the number of lower means in each draw."""
    return 1 + np.array([(means < own).sum(0) for own in means])


def _same_examples(methods: Sequence[CrossedTable]) -> None:
    if len(numbers := {method.n for method in methods}) > 1:
        raise ValueError(f"outcomes on the same examples expected, got {sorted(numbers)} of them")


def _alphabet() -> Iterator[str]:
    return chain(string.ascii_letters, (c for c in map(chr, range(ord("α"), 0x10000)) if c.isalpha()))
