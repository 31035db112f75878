r"""Variance of a method's mean when seeds and examples are both random.

The outcomes of one method are a table [S, n]: S networks (seeds) on the same n examples. Seeds and examples are random
and crossed:

    X_si = \mu + a_s + b_i + e_si,        Var(mean X) = (\sigma_a^2 + \sigma_e^2 / n) / S  +  \sigma_b^2 / n
                                                                seed part                    example part

(Searle, Casella, McCulloch: Variance Components, 1992). The variance of the S seed means is the whole seed part, e
included; so the example part is the variance of the n example means minus \sigma_e^2 / S, and no noise counts twice.
Every interval and every test uses one rule, `Spread`: Student's t on the seed part and the normal on the example part,
in quadrature. With one number per network (n = 1) it is the t interval and Welch's test.

Satterthwaite's degrees of freedom for the sum would be shorter and wrong: with 3 seeds and both parts positive they
reject equal methods up to 7 times too often at p = 0.003, the level that Holm's correction uses.

Among several methods, the seed parts are moderated first (`moderation.py`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robflat_bench.analysis.moderation import ALONE, Floats, Prior, estimated_prior

LEVEL = 0.05
"""Significance level of every interval and test."""
POWER = 0.8


def variance(values: Floats) -> float:
    """The sample variance, 0 for one value. Of equal values it is 0 exactly: their mean may differ in the last bit."""
    return float((values - values.min()).var(ddof=1)) if len(values) > 1 else 0.0


class CrossedTable:
    """One table, [S, n], with its means and variance parts. key: hash of its values."""

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
        r"""\sigma_e^2: mean square of seeds x examples with (S - 1)(n - 1) degrees of freedom; 0 where n = 1."""
        within = float(self.table.var(0, ddof=1).sum()) - self.n * variance(self.means)
        return max(within, 0.0) / max(self.n - 1, 1)


@dataclass(frozen=True)
class Spread:
    """Variance of one or several estimates. seed: seed part, with `freedom` degrees of freedom. example: example
    part."""

    seed: float | Floats
    freedom: float | Floats
    example: float | Floats

    def reach(self, level: float | Floats) -> Floats:
        """Half the width of the confidence interval at `level` (0.05: a 95 % interval)."""
        from scipy.special import ndtri, stdtrit

        return self._quadrature(stdtrit(self.freedom, level / 2), ndtri(level / 2))

    def p(self, distance: ArrayLike) -> Floats:
        """The level whose interval just reaches `distance`, at least 1e-30; bisection of its logarithm."""
        distance = np.abs(distance)
        low, high = np.full(distance.shape, math.log(1e-30)), np.zeros(distance.shape)
        for _ in range(32):
            middle = (low + high) / 2
            reached = self.reach(np.exp(middle)) >= distance
            low, high = np.where(reached, middle, low), np.where(reached, high, middle)
        return np.exp(high)

    def detectable(self) -> Floats:
        """The distance that is found with `POWER` at `LEVEL`: in each part, the noncentrality at which its own test has
        that power (Cohen: Statistical Power Analysis, 1988)."""
        from scipy.special import nctdtrinc, ndtri, stdtrit

        student = nctdtrinc(self.freedom, 1 - POWER, stdtrit(self.freedom, 1 - LEVEL / 2))
        return self._quadrature(student, ndtri(1 - LEVEL / 2) + ndtri(POWER))

    def _quadrature(self, student: Floats, normal: Floats) -> Floats:
        return np.sqrt(student**2 * self.seed + normal**2 * self.example)


def example_part(method: CrossedTable) -> float:
    """The example part of the variance of a method's mean."""
    return max(variance(method.profile) - method.residual / method.seeds, 0.0) / method.n


def common_prior(methods: Sequence[CrossedTable]) -> Prior:
    """The distribution of the methods' seed variances; at least two seeds each."""
    return estimated_prior(*_seed_variances(methods))


def pair_spreads(methods: Sequence[CrossedTable], prior: Prior = ALONE) -> Floats:
    """The `Spread` of each pair's difference, [pairs, 3], in the order of `np.triu_indices`. Seeds are independent
    (freedom: Welch, Biometrika 1947, at most the prior's pooled one), examples are shared."""
    first, second = np.triu_indices(len(methods), 1)
    part, free = _seed_parts(methods, prior)
    noise = np.array([method.residual / method.seeds for method in methods])
    profiles = np.array([method.profile for method in methods])
    seed = part[first] + part[second]
    unit = np.where(seed > 0, seed, 1)  # shares, not seed**2: numbers may be as large as 1e100
    squares = (part[first] / unit) ** 2 / free[first] + (part[second] / unit) ** 2 / free[second]
    freedom = np.where(squares > 0, 1 / np.where(squares > 0, squares, 1), free[first] + free[second])
    n = profiles.shape[1]
    if n > 1:
        shared = np.concatenate([(profiles[m] - profiles[m + 1 :]).var(1, ddof=1) for m in range(len(methods))])
    else:
        shared = np.zeros(len(first))
    example = np.maximum(shared - (noise[first] + noise[second]), 0) / n
    return np.stack([seed, np.minimum(freedom, prior.pooled), example], axis=1)


def _seed_variances(methods: Sequence[CrossedTable]) -> tuple[Floats, Floats]:
    """Variance of each method's seed means, and its degrees of freedom: [M] and [M]."""
    return np.array([variance(method.means) for method in methods]), np.array(
        [method.seeds - 1.0 for method in methods]
    )


def _seed_parts(methods: Sequence[CrossedTable], prior: Prior) -> tuple[Floats, Floats]:
    """The seed part of each method for tests, and its degrees of freedom: [M] and [M].

    It is at least its share of the residual: by chance, or because errors are whole numbers, the estimate can fall
    below that, down to 0, and equal methods would differ significantly. (Intervals of one method would cover 99 % with
    this bound.)"""
    observed, freedom = _seed_variances(methods)
    residual = np.array([method.residual / method.n for method in methods])
    seeds = np.array([method.seeds for method in methods])
    return np.maximum(prior.moderated(observed, freedom), residual) / seeds, freedom + prior.freedom
