"""The race over pairs: its stated failure probability, sure verdicts, and what it reads."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from robflat_bench.measures import racing
from robflat_bench.measures.racing import Race, chance


def race(errors: np.ndarray, target: float = 0.1, key: int = 0) -> Race:
    """A race over errors [draws, N] that are the same at every radius; all images are right at 0."""
    return Race(lambda s, draw, rows: errors[draw, rows], np.zeros(errors.shape[1]), len(errors), target, key)


def population(wrong: int, draws: int, count: int, seed: int) -> np.ndarray:
    errors = np.zeros(draws * count, dtype=np.int8)
    errors[:wrong] = 1
    return np.random.default_rng(seed).permutation(errors).reshape(draws, count)


@pytest.mark.parametrize(("read", "share"), list(itertools.product([16, 64, 256], [0.05, 0.1, 0.5])))
def test_bound_is_above_the_exact_tail_of_draws_without_replacement(read, share):
    pairs = 2000
    exact = hypergeom(pairs, round(share * pairs), read)
    for wrong in range(read + 1):
        tail = exact.sf(wrong - 1) if wrong / read > share else exact.cdf(wrong)
        assert tail <= chance(wrong / read, read, share) * (1 + 1e-9)
    assert chance(1.0, read, 0.0) == 0 == chance(0.0, read, 1.0)
    assert chance(share, read, share) == pytest.approx(1)


@pytest.mark.parametrize("wrong", [200, 201])
def test_a_verdict_is_wrong_no_more_often_than_stated(monkeypatch, wrong):
    """Of 2000 pairs, 200 are allowed: at the edge, on either side, a race fails most often."""
    failure, trials = 0.2, 400
    monkeypatch.setattr(racing, "FAILURE", failure)
    monkeypatch.setattr(racing, "LOOKS", (32, 64, 128, 256, 500))
    errors = population(wrong, 10, 200, 1)
    failed = sum((race(errors, key=key).excess(1.0) > 0) != (wrong > 200) for key in range(trials))
    assert 0 < failed <= failure * trials + 3 * math.sqrt(failure * trials)


def test_a_race_that_ignores_its_bound_fails_more_often_than_stated(monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(racing, "FAILURE", 0.2)
    monkeypatch.setattr(racing, "LOOKS", (32, 64, 128, 256, 500))
    monkeypatch.setattr(racing, "chance", lambda q, n, p: chance(q, n, p) ** 8)
    errors = population(200, 10, 200, 1)
    assert sum(race(errors, key=key).excess(1.0) > 0 for key in range(200)) > 0.2 * 200 + 3 * math.sqrt(40)


@pytest.mark.parametrize("wrong", [0, 1, 199, 200, 201, 230, 1000, 2000])
def test_verdicts_are_right_and_far_ones_are_cheap(wrong):
    for key in range(5):
        found = race(population(wrong, 10, 200, key), key=key)
        assert (found.excess(1.0) > 0) == (wrong > 200)
        read = int((found.known[1.0] != racing.UNREAD).sum())
        assert (read <= racing.LOOKS[-1]) == (wrong in (0, 1, 1000, 2000))
        assert found.failure == racing.FAILURE, "a look may fail, also where it does not decide"


def test_a_radius_that_earlier_readings_chose_is_decided_by_pairs_of_its_own():
    """At 0.5 only those pairs are wrong that were read at 1: far fewer than allowed, but all of one sample."""
    seen = np.zeros((10, 200), dtype=bool)

    def read(s: float, draw: int, rows: np.ndarray) -> np.ndarray:
        seen[draw, rows] |= s == 1
        return np.ones(len(rows)) if s == 1 else seen[draw, rows]

    found = Race(read, np.zeros(200), 10, 0.1, 0)
    assert found.excess(1.0) > 0
    assert seen.sum() == racing.LOOKS[0]
    assert found.excess(0.5) <= 0


def test_few_pairs_are_all_read_and_cannot_fail():
    found = race(population(20, 2, 100, 0))
    assert found.excess(1.0) <= 0
    assert found.failure == 0


def test_excess_is_exact_where_all_was_read():
    found = race(population(200, 10, 200, 3))
    excess = found.excess(1.0)
    assert (found.known[1.0] != racing.UNREAD).all()
    assert excess == pytest.approx(-0.5 / 2000)


def test_no_pair_is_read_twice_at_a_radius():
    seen: list[tuple[float, int, int]] = []

    def read(s: float, draw: int, rows: np.ndarray) -> np.ndarray:
        seen.extend((s, draw, int(row)) for row in rows)
        return (np.arange(200)[rows] * 7 + draw) % 200 < 40 * s

    found = Race(read, np.zeros(200), 10, 0.1, 0)
    low, high = found.bracket(2.0, 0.01)
    assert len(seen) == len(set(seen))
    assert low <= 0.525
    assert high >= 0.5


def test_nothing_is_read_where_nothing_more_can_go_wrong():
    def read(*_: object) -> np.ndarray:
        raise AssertionError

    assert Race(read, np.ones(50), 4, 0.1, 0).bracket(2.0, 0.01) == (2.0, 2.0)
