"""Statistics: each test quotes the rule it enforces. scipy's where it has them, naive sums of squares, properties, and
simulated leagues whose truth is known (`-m slow`: at full size)."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter
from scipy import optimize, stats

from robflat_bench.analysis.moderation import Prior
from robflat_bench.analysis.statistics import (
    Comparison,
    Estimate,
    McNemar,
    Place,
    compare_methods,
    crossed,
    holm,
    lead_group,
    letters,
    over_seeds,
    places,
)
from robflat_bench.analysis.variance import CrossedTable, common_prior, pair_spreads
from robflat_bench.leaderboard.model import RowValue

Table = np.ndarray[Any, Any]

errors = hnp.arrays(bool, st.tuples(st.integers(2, 5), st.integers(2, 12)))
numbers = hnp.arrays(float, st.integers(2, 6), elements=st.integers(-1000, 1000), unique=True)


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


def mean_squares(table: Table) -> tuple[float, float, float]:
    """Of seeds, of examples, and of their interaction: the two-way analysis of variance, sum by sum."""
    S, n = table.shape
    grand = table.mean()
    rows = [table[s].mean() for s in range(S)]
    columns = [table[:, i].mean() for i in range(n)]
    rest = sum((table[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(S) for i in range(n))
    return (
        n * sum((row - grand) ** 2 for row in rows) / (S - 1),
        S * sum((column - grand) ** 2 for column in columns) / (n - 1),
        rest / ((S - 1) * (n - 1)),
    )


def quadrature(seed: float, freedom: float, example: float) -> float:
    return math.hypot(stats.t.ppf(0.975, freedom) * math.sqrt(seed), stats.norm.ppf(0.975) * math.sqrt(example))


@given(errors)
def test_an_interval_is_made_of_crossed_variance_components(table):
    """Value intervals from crossed variance components: Student t with S-1 on the seed part, examples in quadrature."""
    S, n = table.shape
    seeds, examples, rest = mean_squares(table)
    reach = quadrature(seeds / (n * S), S - 1, max(examples - rest, 0) / (n * S))
    found = crossed(table.astype(float))
    assert found.mean == table.mean()
    assert (found.high - found.mean) ** 2 == pytest.approx(reach**2, abs=1e-12)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.sd == pytest.approx(table.mean(1).std(ddof=1), abs=1e-12)
    assert found.seeds == S


def test_a_gap_has_the_seed_part_of_its_difference_and_both_example_parts():
    """The generalization gap: the same networks, independent sets of examples."""
    source = np.random.default_rng(0)
    test, train = source.random((3, 40)) + source.random(40), source.random((3, 25)) + source.random(25)
    gaps = test.mean(1) - train.mean(1)
    parts = [(examples - rest) / table.size for table in (test, train) for _, examples, rest in [mean_squares(table)]]
    reach = quadrature(gaps.var(ddof=1) / 3, 2, sum(parts))
    found = crossed(test, train, signs=(1, -1))
    assert (found.mean, found.high) == pytest.approx((gaps.mean(), gaps.mean() + reach))


def test_networks_that_never_differ_leave_the_examples_alone():
    """Noise is not counted twice: of S copies of one network, only the examples' normal interval remains."""
    network = np.random.default_rng(0).random(50)
    found = crossed(np.stack([network] * 3))
    assert found.high == pytest.approx(network.mean() + stats.norm.ppf(0.975) * network.std(ddof=1) / math.sqrt(50))


@given(numbers)
def test_numbers_per_seed_have_the_t_interval(values):
    """Flatness: t with S-1."""
    found = over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_one_seed_says_nothing_of_the_method():
    """mean and sd over seeds; with one seed only the network's standard error over examples."""
    table = np.array([[True, False, False, False]])
    assert crossed(table) == Estimate(0.25, None, None, None, pytest.approx(0.25), 1)
    test, train = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 1.0, 3.0, 3.0]])
    error = crossed(test, train, signs=(1, -1)).standard_error
    assert error == pytest.approx(math.hypot(stats.sem(test[0]), stats.sem(train[0])))
    assert over_seeds([0.3]) == Estimate(0.3, None, None, None, None, 1)


def test_an_interval_of_errors_ends_where_errors_end():
    """An error is a fraction: its interval lies in [0, 1], a gap's in [-1, 1]; losses and flatness have no such end."""
    few = np.zeros((3, 10), bool)
    few[0, :3] = True
    assert crossed(few).low == 0
    assert crossed(~few).high == 1
    assert crossed(~few, few, signs=(1, -1)).high == 1
    assert crossed(few, ~few, signs=(1, -1)).low == -1
    assert crossed(few.astype(float)).low < 0


def test_values_and_places_are_what_a_board_holds():
    """The board's RowValue takes an estimate field by field; its places are these places."""
    table = np.random.default_rng(0).random((3, 20)) < 0.5
    RowValue(**asdict(crossed(table)))
    TypeAdapter(Place).validate_python(asdict(places([table])[0]))


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: crossed(np.ones((3, 4)), np.ones((2, 4))), "same networks"),
        (lambda: crossed(), "same networks"),
        (lambda: crossed(np.array([[1.0, math.nan]])), "finite"),
        (lambda: crossed(np.ones((3, 0))), "finite"),
        (lambda: compare_methods(np.ones((3, 4)), np.ones((3, 5))), "same examples"),
        (lambda: places([np.ones((3, 4)), np.ones((3, 5))]), "same examples"),
        (lambda: places([np.ones((3, 4)), np.ones((2, 4))]), "fewer than 3 seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, complaint):
    """Fewer than 3 seeds: not ranked. Unequal n: refuse to compare."""
    with pytest.raises(ValueError, match=complaint):
        call()


# ---------------------------------------------------------------------------------------------------------
# Two methods
# ---------------------------------------------------------------------------------------------------------


@given(numbers, numbers)
def test_numbers_per_seed_are_compared_by_welchs_test(a, b):
    """Ties from pairwise tests; of one number per network: Welch's."""
    found = compare_methods(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_a_difference_is_paired_over_examples_and_its_seeds_are_independent():
    """The method difference with its interval: seed parts of both, the example part of the per-example difference."""
    source = np.random.default_rng(0)
    difficulty = 5 * source.random(60)
    a = difficulty + source.random(60) + source.random((3, 60)) + source.random((3, 1))
    b = difficulty + source.random(60) + source.random((4, 60)) + source.random((4, 1))
    parts = [mean_squares(table) for table in (a, b)]
    seed = [part[0] / table.size for part, table in zip(parts, (a, b), strict=True)]
    noise = parts[0][2] / 3 + parts[1][2] / 4
    example = ((a.mean(0) - b.mean(0)).var(ddof=1) - noise) / 60
    freedom = sum(seed) ** 2 / (seed[0] ** 2 / 2 + seed[1] ** 2 / 3)
    found = compare_methods(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert found.high == pytest.approx(found.difference + quadrature(sum(seed), freedom, example))
    assert example < 0.1 * a.mean(0).var() / 60


@given(errors, st.data())
def test_p_is_at_most_five_percent_where_the_interval_has_no_zero(a, data):
    """One rule makes every interval and every test."""
    b = data.draw(hnp.arrays(bool, st.tuples(st.integers(2, 5), st.just(a.shape[1]))))
    there, back = compare_methods(a, b), compare_methods(b, a)
    assert (there.p <= 0.05) == (there.low >= 0 or there.high <= 0) or there.difference == 0
    assert (there.p, there.low) == (back.p, -back.high)


def test_seed_means_that_agree_by_chance_make_no_difference_significant():
    """A test's seed part is never below what the residual makes of it: here networks make one error, or two, each on
    examples of its own."""
    a, b = np.eye(3, 60, dtype=bool), np.eye(3, 60, k=10, dtype=bool) | np.eye(3, 60, k=20, dtype=bool)
    assert a.mean(1).std() == b.mean(1).std() == 0
    assert compare_methods(a, b).p > 0.05


def test_methods_without_variance_are_equal_or_surely_different():
    """No variance at all: equal is equal, and different is different."""
    one, two = np.full(3, 1.0), np.full(3, 2.0)
    assert compare_methods(one, one).p == 1
    assert compare_methods(one, two).p == pytest.approx(1e-30)
    assert [place.letters for place in places([one, two, one])] == ["a", "b", "a"]


@given(errors, st.data())
def test_networks_are_compared_by_the_exact_test_of_mcnemar(a, data):
    """McNemar per seed pair (two networks, not two methods)."""
    b = data.draw(hnp.arrays(bool, st.tuples(st.integers(1, 5), st.just(a.shape[1]))))
    found = compare_methods(a, b)
    assert len(found.networks) == min(len(a), len(b))
    for k, network in enumerate(found.networks):
        only_a, only_b = int((a[k] & ~b[k]).sum()), int((~a[k] & b[k]).sum())
        p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
        assert network == McNemar(only_a, only_b, pytest.approx(p))


def test_one_seed_has_no_test_of_methods():
    """With one seed on either side, networks are compared and methods are not; losses have no McNemar."""
    a, b = np.array([[True, True, False]]), np.zeros((3, 3), bool)
    assert compare_methods(a, b) == Comparison(2 / 3, None, None, None, None, (McNemar(2, 0, 0.5),))
    assert compare_methods(a.astype(float), b.astype(float)).networks == ()


def power(difference: float, seed: float, freedom: int, example: float) -> float:
    """How often intervals of the two-sided test at 5 % miss 0."""
    source = np.random.default_rng(0)
    found = difference + math.sqrt(seed + example) * source.standard_normal(200_000)
    seeds = seed * source.chisquare(freedom, 200_000) / freedom
    return float((abs(found) > np.sqrt(stats.t.ppf(0.975, freedom) ** 2 * seeds + 1.96**2 * example)).mean())


def test_the_detectable_difference_is_found_four_times_in_five():
    """The minimal detectable difference at 80 % power: exact where seeds or examples are all, else on the safe side."""
    numbers = compare_methods(np.array([0.0, 1.0, 2.0]), np.array([5.0, 6.0, 7.0])).detectable
    assert numbers is not None
    assert power(numbers, 2 / 3, 4, 0.0) == pytest.approx(0.8, abs=0.005)
    source = np.random.default_rng(0)
    first, second = source.random(100), source.random(100)
    examples = compare_methods(np.stack([first] * 3), np.stack([second] * 3)).detectable
    assert examples is not None
    assert power(examples, 0.0, 4, (first - second).var(ddof=1) / 100) == pytest.approx(0.8, abs=0.005)
    spread = np.array([[-0.1], [0.0], [0.1]])
    both = compare_methods(np.stack([first] * 3) + spread, np.stack([second] * 3) + spread).detectable
    assert both is not None
    assert 0.8 < power(both, 0.01 * 2 / 3, 4, (first - second).var(ddof=1) / 100) < 0.9


# ---------------------------------------------------------------------------------------------------------
# Many methods
# ---------------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    """Holm correction: step down, never below an earlier one, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]).tolist() == [1, 1]
    assert holm([]).size == 0


@st.composite
def verdicts(draw: Any) -> tuple[list[int], Table]:
    size = draw(st.integers(1, 9))
    upper = np.triu(draw(hnp.arrays(bool, (size, size))), 1)
    return draw(st.permutations(range(size))), upper | upper.T


@given(verdicts())
def test_rows_share_a_letter_if_and_only_if_their_difference_is_not_significant(case):
    """Ties drawn as overlapping letters (compact letter display), not as a partition; the best row has the first."""
    order, different = case
    found = letters(order, different)
    for i, mine in enumerate(found):
        assert mine
        for j, other in enumerate(found):
            assert bool(set(mine) & set(other)) == (not different[i, j])
    assert found[order[0]][0] == "a"
    seen = "".join(dict.fromkeys("".join(found[row] for row in order)))
    assert sorted(seen) == list("abcdefghijklmnopqrstuvwxyz"[: len(seen)])
    sets = [{row for row in order if letter in found[row]} for letter in seen]
    assert not any(one < other for one in sets for other in sets)


def test_a_row_may_stand_in_two_groups():
    """Ties are not a partition: b is told from neither a nor c, which are told apart."""
    different = np.zeros((3, 3), bool)
    different[0, 2] = different[2, 0] = True
    assert letters([0, 1, 2], different) == ["a", "ab", "b"]
    assert letters([2, 1, 0], different) == ["b", "ab", "a"]


def pair_p(a: Table, b: Table, prior: Prior) -> float:
    """p of two methods with moderated seed variances."""
    parts, squares, noise = [], [], 0.0
    for table in (a, b):
        S, n = table.shape
        seeds, _, rest = mean_squares(table)
        moderated = (prior.freedom * prior.variance + (S - 1) * seeds / n) / (prior.freedom + S - 1)
        parts.append(max(moderated, rest / n) / S)
        squares.append(parts[-1] ** 2 / (prior.freedom + S - 1))
        noise += rest / S
    freedom = min(sum(parts) ** 2 / sum(squares), prior.pooled)
    example = max((a.mean(0) - b.mean(0)).var(ddof=1) - noise, 0) / a.shape[1]
    distance = abs(a.mean() - b.mean())

    def missing(level: float) -> float:
        student, normal = stats.t.isf(level / 2, freedom), stats.norm.isf(level / 2)
        return math.hypot(student * math.sqrt(sum(parts)), normal * math.sqrt(example)) - distance

    return 1.0 if distance == 0 else float(optimize.brentq(missing, 1e-30, 1))


@pytest.mark.parametrize("number", range(8))
def test_rows_share_no_letter_where_holm_rejects_their_pair_and_only_there(number):
    """All p, each from the pair's sums of squares and a root of the interval's width, corrected by Holm: the same
    pairs, in leagues near the border. The lead group loses those with p <= 5 % / (M - 1) against a better method."""
    source = np.random.default_rng(number)
    skills = source.choice([0.0, 0.1, 0.2, 0.4, 1.0], 9)
    difficulty = source.normal(size=500)
    tables = [source.normal(skill, 0.05, (5, 1)) + difficulty + source.normal(size=(5, 500)) > 0 for skill in skills]
    tables += [tables[0], np.zeros((5, 500), bool), np.zeros((5, 500), bool)]
    found = places(tables, draws=1)
    pairs = [(i, j) for i in range(len(tables)) for j in range(i + 1, len(tables))]
    prior = common_prior([CrossedTable(table) for table in tables])
    p = np.array([pair_p(tables[i], tables[j], prior) for i, j in pairs])
    apart = holm(p) <= 0.05
    assert 0 < apart.sum() < len(pairs)
    assert [place.lead for place in found] == [
        not any(
            q <= 0.05 / (len(tables) - 1) and tables[m].mean() > tables[i + j - m].mean()
            for (i, j), q in zip(pairs, p, strict=True)
            if m in (i, j)
        )
        for m in range(len(tables))
    ]
    assert [not {*found[i].letters} & {*found[j].letters} for i, j in pairs] == apart.tolist()


def test_a_method_without_variance_is_not_certain():
    """A method that errs on every example borrows a seed variance from the others, and its test has more degrees of
    freedom."""
    tables = [*league(), np.ones((3, 200), bool)]
    methods = [CrossedTable(table) for table in tables]
    prior = common_prior(methods)
    seed, freedom, _ = pair_spreads(methods, prior)[4]
    alone, few, _ = pair_spreads(methods)[4]
    own = prior.freedom * prior.variance / (prior.freedom + 2) / 3
    assert own > 0
    assert seed > own
    assert few < 2 + prior.freedom < freedom <= 12
    assert alone > 0


def test_the_last_bit_of_a_mean_is_no_seed_variance():
    """Three seeds at 0.7: their mean rounds to another number. What the others borrow is as with three seeds at 0.5."""
    others = [CrossedTable(np.array(values)) for values in ([0.1, 0.11, 0.13], [0.2, 0.22, 0.21], [0.3, 0.32, 0.29])]
    halves, sevens = (common_prior([*others, CrossedTable(np.full(3, value))]) for value in (0.5, 0.7))
    assert sevens == halves
    assert over_seeds([0.7] * 3).sd == 0


@pytest.mark.parametrize("unit", [1e-100, 1e99])
def test_places_do_not_depend_on_the_unit(unit):
    """Records hold numbers up to 1e100, whose variance has no square among floats."""
    tables = [np.array([0.3, 0.31, 0.29]) + 0.1 * k for k in range(4)]
    assert places([unit * table for table in tables], draws=10) == places(tables, draws=10)


def test_two_methods_have_no_more_degrees_of_freedom_than_their_seeds():
    """What is borrowed was estimated from the same seeds: 2 + 2, as in Student's pooled test."""
    methods = [CrossedTable(np.array(values)) for values in ([1.0, 2.0, 3.0], [2.0, 3.1, 4.0])]
    assert pair_spreads(methods, common_prior(methods))[0][1] == 4


def test_the_lead_group_corrects_for_all_other_methods():
    """Of three methods, one leaves at p = 0.05 / 2: a distance of 2.2414 standard errors."""
    spreads = np.tile([1.0, 1e9, 0.0], (3, 1))
    assert lead_group(spreads, np.array([-2.23, -2.25, -0.02]), 3).tolist() == [True, True, False]
    assert lead_group(spreads, np.array([2.25, 0.02, -2.23]), 3).tolist() == [False, True, True]


def test_the_best_method_leads_and_all_do_that_are_equal():
    """Multiple comparisons with the best: one group, and the lowest mean is in it."""
    network = np.arange(400) % 4 == 0
    worse = network | (np.arange(400) % 4 == 1)
    found = places([np.stack([each] * 3) for each in (network, worse, network, np.roll(network, 1))], draws=1)
    assert [place.lead for place in found] == [True, False, True, True]
    assert [place.groups for place in found][:2] == [f"{found[0].letters} lead", found[1].letters]
    assert places([np.eye(3, 4)], draws=1)[0].lead


def test_letters_do_not_end_with_the_alphabet():
    """More rows than letters: A-Z, then other alphabets, one character each."""
    found = letters(range(70), ~np.eye(70, dtype=bool))
    assert "".join(found[:53]) == "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZα"
    assert len(set(found)) == 70 == len("".join(found))


def league(methods: int = 5, seeds: int = 3, n: int = 200, step: float = 0.1) -> list[Table]:
    source = np.random.default_rng(0)
    difficulty = source.standard_normal(n)
    return [difficulty + source.standard_normal((seeds, n)) > 0.5 - step * m for m in range(methods)]


def test_permuting_methods_changes_nothing():
    """Permuting or renaming methods changes nothing but names: exact ties and twins too."""
    tables = league()
    tables += [tables[2].copy(), tables[3][:, ::-1], tables[0][[0, 1, 2, 0, 1, 2]]]
    before = places(tables)
    assert before[2] == before[5]
    for number in range(5):
        order = np.random.default_rng(number).permutation(len(tables))
        assert places([tables[m] for m in order]) == [before[m] for m in order]


def test_letters_of_a_tie_do_not_depend_on_the_order_of_entry():
    """Permuting methods changes nothing: x and y tie, each told from its own worse copy and not from the other's."""
    x, y = np.arange(400) % 2 == 0, np.arange(400) % 4 < 2
    of_x, of_y = x.copy(), y.copy()
    of_x[1:34:2] = of_y[2:40:4] = of_y[3:40:4] = True
    tables = [np.stack([network] * 3) for network in (x, y, of_x, of_y)]
    found = [place.letters for place in places(tables)]
    assert sorted(found[:2]) == ["ab", "ac"]
    assert [place.letters for place in places([tables[m] for m in (1, 0, 2, 3)])] == [found[m] for m in (1, 0, 2, 3)]


def test_a_method_that_comes_last_moves_no_rank_interval():
    """Adding a method changes no other method's value, value interval or pairwise order: random streams are keyed by
    outcomes, so here no draw of a rank changes either."""
    tables = league(step=0.02)
    before = places(tables)
    worse = np.ones((4, 200), bool)
    for position in (0, 2, 5):
        after = places([*tables[:position], worse, *tables[position:]])
        assert after.pop(position).rank == 6
        assert [(p.rank, p.low, p.high) for p in after] == [(p.rank, p.low, p.high) for p in before]
    assert any(place.low < place.high for place in before)


def test_exact_ties_share_a_rank():
    """Exact ties share a rank, in the ranking and in its draws, however many seeds each has."""
    network = np.arange(90) % 3 == 0
    tables = [np.stack([network] * count) for count in (3, 7, 5)] + [np.ones((3, 90), bool)]
    assert [(p.rank, p.low, p.high) for p in places(tables)] == [(1, 1, 1)] * 3 + [(4, 4, 4)]


def test_examples_are_resampled_alike_for_all_methods():
    """A paired bootstrap: whoever errs on some examples more never ranks before, though their errors vary far more."""
    network = np.arange(400) % 2 == 0
    worse = network.copy()
    worse[1:30:2] = True
    found = places([np.stack([worse] * 3), np.stack([network] * 3)])
    assert [(p.rank, p.low, p.high) for p in found] == [(2, 2, 2), (1, 1, 1)]


def test_seeds_are_resampled_within_each_method():
    """A hierarchical bootstrap over seeds and examples: seeds that overlap make ranks overlap; numbers have seeds
    alone."""
    a, b, c = np.array([1.0, 2.0, 6.0]), np.array([3.0, 4.0, 5.0]), np.array([7.0, 8.0, 9.0])
    assert [(p.rank, p.low, p.high) for p in places([a, b, c])] == [(1, 1, 2), (2, 1, 2), (3, 3, 3)]
    assert places([]) == []


def test_draws_have_the_moments_of_the_bootstrap():
    """Over draws a mean varies by (S - 1) / S of its seeds' share and (n - 1) / n of its examples'."""
    from robflat_bench.analysis.statistics import _bootstrap

    source = np.random.default_rng(0)
    table = source.standard_normal((4, 50)) * 0.01 + source.standard_normal(50) + source.standard_normal((4, 1))
    draws = _bootstrap([CrossedTable(table)], 4000)[0]
    assert draws.mean() == pytest.approx(table.mean(), abs=0.03)
    assert draws.var() == pytest.approx(table.mean(1).var() / 4 + table.mean(0).var() / 50, rel=0.1)


# ---------------------------------------------------------------------------------------------------------
# Leagues whose truth is known
# ---------------------------------------------------------------------------------------------------------

NOISE = {"none": 0.0, "small": 0.04, "dominant": 0.3}
N = 400


def latent(source: np.random.Generator, shifts: Table, n: int = N, residual: float = 1.0) -> Table:
    """Shift of each seed, difficulty of each example, and what they have of their own: [S, n], variance
    1 + residual^2 + that of shifts."""
    return shifts[:, None] + source.standard_normal(n) + residual * source.standard_normal((len(shifts), n))


def error_rate(threshold: float, noise: float) -> float:
    return float(stats.norm.sf(threshold / math.sqrt(2 + noise**2)))


KINDS: dict[str, tuple[Callable[[np.random.Generator, Table], Estimate], Callable[[float], float]]] = {
    "error": (
        lambda source, shifts: crossed(latent(source, shifts) > 0.6),
        lambda noise: error_rate(0.6, noise),
    ),
    "loss": (
        lambda source, shifts: crossed(np.exp(latent(source, shifts) / 2)),
        lambda noise: math.exp((2 + noise**2) / 8),
    ),
    "gap": (
        lambda source, shifts: crossed(latent(source, shifts) > 0.6, latent(source, shifts) > 1, signs=(1, -1)),
        lambda noise: error_rate(0.6, noise) - error_rate(1, noise),
    ),
    "flatness": (lambda source, shifts: over_seeds(shifts), lambda noise: 0.0),
}


@pytest.mark.parametrize(
    ("intervals", "least", "most"),
    [
        pytest.param(200, 0.92 - 0.058, 1, id="200"),  # three standard errors of 200 intervals
        pytest.param(4000, 0.92, 0.98, id="4000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_value_intervals_cover_the_truth(kind, seeds, noise, intervals, least, most, record_property):
    """Simulated leagues with known truth: 95 % value intervals cover 92 to 98 % in each cell of 3 and 5 seeds x seed
    noise none, small, dominant."""
    source = np.random.default_rng(0)
    estimate, truth = KINDS[kind]
    covered = 0
    for _ in range(intervals):
        found = estimate(source, (NOISE[noise] or 1e-9) * source.standard_normal(seeds))
        covered += found.low <= truth(NOISE[noise]) <= found.high
    record_property("covered", covered / intervals)
    assert least <= covered / intervals <= most


def equal(
    source: np.random.Generator, noises: list[float], own: float, residual: float, threshold: float
) -> list[Table]:
    """Six methods of one true error on shared examples. own: how far what a method finds difficult is its own."""
    shared = source.standard_normal(250)
    tables = []
    for noise in noises:
        scale = math.sqrt((1 + own**2 + residual**2 + noise**2) / (1 + own**2 + residual**2))
        moved = shared + own * source.standard_normal(250) + noise * source.standard_normal((3, 1))
        tables.append(moved + residual * source.standard_normal((3, 250)) > threshold * scale)
    return tables


LEAGUES: dict[str, Callable[[np.random.Generator, float], list[Table]]] = {
    "alike": lambda source, noise: equal(source, [noise] * 6, 0, 1, 0.6),
    "own difficulties": lambda source, noise: equal(source, [noise] * 6, 0.7, 0.7, 0.6),
    "unequal seed noise": lambda source, noise: equal(source, [noise, 0] * 3, 0.3, 0.7, 0.6),
    "one noisy method": lambda source, noise: equal(source, [2 * noise, *[0.04] * 5], 0.3, 0.7, 0.6),
    "lognormal seed noise": lambda source, noise: equal(
        source, [*(noise * np.exp(source.standard_normal(5) / 2)), 0], 0.3, 0.7, 0.6
    ),
    "hardly any error": lambda source, noise: equal(source, [noise] * 6, 0, 0.3, 2.7),
    "flatness": lambda source, noise: list((noise or 1) * source.standard_normal((6, 3))),
}


@pytest.mark.parametrize(
    ("leagues", "most", "least"),
    [
        pytest.param(200, 0.06 + 0.05, 0.95 - 0.046, id="200"),  # three standard errors of 200 leagues
        pytest.param(2000, 0.06, 0.95, id="2000", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("kind", LEAGUES)
def test_equal_methods_do_not_differ_significantly(kind, noise, leagues, most, least, record_property):
    """Equal methods are declared different pairwise in at most 6 % of 2,000 leagues. Each is the best, and in the lead
    group in at least 95 % of them."""
    source, wrong, lead = np.random.default_rng(0), 0, 0.0
    for _ in range(leagues):
        found = places(LEAGUES[kind](source, NOISE[noise]), draws=1)
        wrong += any(place.letters != "a" for place in found)
        lead += sum(place.lead for place in found) / len(found)
    record_property("wrong", wrong / leagues)
    record_property("lead", lead / leagues)
    assert wrong / leagues <= most
    assert lead / leagues >= least


def test_clearly_different_methods_differ_significantly():
    """Letters must be able to differ: five seeds, errors of 16 % and 50 %."""
    tables = league(methods=4, seeds=5, n=1000, step=0.3)
    assert [place.letters for place in places(tables)] == ["a", "b", "c", "d"]


def test_importing_the_statistics_loads_no_scipy():
    """scipy, 0.9 s, is imported where a quantile is asked for."""
    code = "import sys, robflat_bench.analysis.statistics; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
