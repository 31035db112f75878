"""Moderated seed variances: against scipy's F distribution, draws of a known prior, and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from robflat_bench.analysis.moderation import ALONE, FREEDOMS, Prior, estimated_prior


def observed(seed: int, count: int, freedom: float, variance: float, d: np.ndarray) -> np.ndarray:
    """Variances with d degrees of freedom, [count], of true ones from the prior."""
    source = np.random.default_rng(seed)
    true = freedom * variance / source.chisquare(freedom, count)
    return true * source.chisquare(d) / d


def best(s2: np.ndarray, d: np.ndarray, d0: float) -> tuple[float, float]:
    """The s_0^2 of largest likelihood for one d_0, and that log likelihood, by scipy's F and its minimiser."""

    def loss(log_scale: float) -> float:
        return -float((stats.f.logpdf(s2 / math.exp(log_scale), d, d0) - log_scale).sum())

    found = optimize.minimize_scalar(loss, bracket=(-1, 1))
    return math.exp(found.x), -found.fun


@pytest.mark.parametrize("number", range(4))
def test_the_prior_is_the_likelihoods(number):
    """s_0^2 at the largest likelihood; d_0 the first candidate within 2.706 / 2 of it."""
    d = np.array([2, 2, 2, 4, 2, 5, 2, 2, 3, 2])
    s2 = observed(number, 10, 3.0, 2.0, d)
    scale, likelihood = np.array([best(s2, d, d0) for d0 in FREEDOMS]).T
    found = estimated_prior(s2, d)
    assert found.variance == pytest.approx(scale[likelihood.argmax()], rel=1e-5)
    within = FREEDOMS[2 * (likelihood.max() - likelihood) <= stats.chi2.ppf(0.9, 1)]
    assert found.freedom == within[0]
    assert found.pooled == d.sum()


@pytest.mark.parametrize("freedom", [1.5, 4.0, 12.0])
def test_many_methods_reveal_their_prior(freedom):
    d = np.full(4000, 2.0)
    found = estimated_prior(observed(0, 4000, freedom, 0.01, d), d)
    assert 0.7 * freedom < found.freedom <= 1.05 * freedom
    assert found.variance == pytest.approx(0.01, rel=0.06)


def test_equal_variances_are_pooled_by_many_methods_and_hardly_by_two():
    """Two methods with almost the same variance may be alike by chance: they borrow little."""
    source = np.random.default_rng(0)
    many = estimated_prior(source.chisquare(2, 300) / 2, np.full(300, 2.0))
    assert many.freedom > 10
    assert estimated_prior(np.array([1.0, 1.01]), np.full(2, 2.0)).freedom < 1.5


def test_moderation_by_hand():
    found = Prior(4.0, 3.0, 8.0).moderated(np.array([0.0, 9.0]), np.array([2.0, 4.0]))
    assert found == pytest.approx([2.0, 6.0])
    assert ALONE.moderated(np.array([5.0]), np.array([2.0])) == pytest.approx([5.0])


def test_a_zero_is_left_out_and_zeros_alone_lend_nothing():
    s2, d = observed(0, 8, 3.0, 1.0, np.full(8, 2.0)), np.full(8, 2.0)
    assert estimated_prior(np.append(s2, 0.0), np.append(d, 2.0)) == estimated_prior(s2, d)
    assert estimated_prior(np.zeros(3), np.full(3, 2.0)) == ALONE


def test_a_variance_that_the_largest_one_dwarfs_counts_as_zero():
    """Records may hold numbers up to 1e100: relative to the variance of such numbers, others are 0 in float64."""
    s2, d = np.array([1e200, 3e199, 5e198, 1e-140, 1e-4]), np.full(5, 2.0)
    found = estimated_prior(s2, d)
    assert found == estimated_prior(s2[:3], d[:3])
    assert all(math.isfinite(number) for number in (found.freedom, found.variance, found.pooled))


def test_the_unit_and_the_order_of_methods_change_nothing():
    d = np.array([2.0, 4.0, 2.0, 2.0, 3.0])
    s2 = observed(1, 5, 3.0, 1.0, d)
    found = estimated_prior(s2, d)
    assert estimated_prior(s2[::-1], d[::-1]) == found
    scaled = estimated_prior(1e-8 * s2, d)
    assert (scaled.freedom, scaled.variance) == (found.freedom, pytest.approx(1e-8 * found.variance))
