"""Correlation of a measure with a target: scipy, cases by hand, invariances, intervals, and what is not defined."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from robflat_bench.analysis import association
from robflat_bench.analysis.correlation import STATISTICS, Statistic, resampled, statistics
from robflat_bench.analysis.models import Model

OF_PAIRS = ("granulated-kendall", "sign-error-mean", "sign-error-worst")
OF_AXES = (*OF_PAIRS, "conditional-mutual-information")
FIELDS = ("measure", "target", "confidence")
PARTIAL = {
    "partial-spearman": "confidence",
    "partial-spearman-logit-scale": "logit_scale",
    "partial-spearman-train-loss": "train_loss",
}
NOT_OF_RANKS = ("pearson", "regret")


def zoo(
    measure: ArrayLike, target: ArrayLike, confidence: ArrayLike | None = None, **axes: Sequence[Any]
) -> list[Model]:
    """One seed each; axes: name -> a value of each model, None where it has none. confidence: also of the other
    controls."""
    x, y = np.asarray(measure, dtype=float), np.asarray(target, dtype=float)
    z = None if confidence is None else np.asarray(confidence, dtype=float)
    return [
        Model(
            label=f"model {i}",
            measure=[x[i]],
            target=[y[i]],
            axes={name: values[i] for name, values in axes.items() if values[i] is not None},
            **{} if z is None else {control: [z[i]] for control in PARTIAL.values()},
        )
        for i in range(len(x))
    ]


def of(models: Sequence[Model], resamples: int = 20) -> dict[str, Statistic]:
    found = statistics(models, resamples)
    assert [one.name for one in found] == list(STATISTICS)
    for one in found:
        numbers = [number for number in (one.value, one.low, one.high) if number is not None]
        assert all(math.isfinite(number) and -1 <= number <= 1 for number in numbers)
        assert one.low is None or one.high is None or one.low <= one.high
    return {one.name: one for one in found}


def normals(rng: np.random.Generator, models: int, rho: float, seeds: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """[models,seeds] each, whose means over seeds correlate with rho."""
    one, other = rng.normal(size=(2, models, seeds))
    return one, rho * one + math.sqrt(1 - rho**2) * other


def random_zoo(seed: int, models: int = 12, ties: bool = False, set_by: Sequence[int] = (0, 0)) -> list[Model]:
    """Ragged seeds, three axes. set_by: how much a and b move measure and target."""
    rng = np.random.default_rng(seed)

    def column(size: int, i: int = 0) -> list[float]:
        moved = set_by[0] * (i % 2) + set_by[1] * (i // 2 % 3)
        return list(map(float, (rng.integers(4, size=size) if ties else rng.normal(size=size)) + moved))

    return [
        Model(
            label=f"model {i}",
            measure=column(seeds, i),
            target=column(seeds, i),
            axes={"a": i % 2, "b": i // 2 % 3} | ({"c": 1} if 2 * i >= models else {}),
            **dict.fromkeys(PARTIAL.values(), column(seeds)),
        )
        for i, seeds in enumerate(rng.integers(1, 4, size=models))
    ]


# --- against scipy ----------------------------------------------------------------------------------------------------

RIVALS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("models", [3, 8, 31])
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_over_all_models_equal_scipys(name: str, models: int, ties: bool) -> None:
    zoo = random_zoo(models, models, ties)
    x, y = (np.array([np.mean(getattr(one, which)) for one in zoo]) for which in ("measure", "target"))
    assert of(zoo)[name].value == pytest.approx(RIVALS[name](x, y).statistic, abs=1e-9)


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_spearman_is_the_correlation_of_rank_residuals(name: str) -> None:
    zoo = random_zoo(0, 20)
    x, y, z = (stats.rankdata([np.mean(getattr(one, k)) for one in zoo]) for k in FIELDS)
    left = [of - np.polyval(np.polyfit(z, of, 1), z) for of in (x, y)]
    given = [
        dataclasses.replace(one, **{**dict.fromkeys(PARTIAL.values()), PARTIAL[name]: one.confidence}) for one in zoo
    ]
    assert of_value(given, name) == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-9)


def of_value(models: Sequence[Model], name: str) -> float:
    value = of(models)[name].value
    assert value is not None
    return value


def test_pearson_survives_a_measure_of_any_scale() -> None:
    x, y = np.array([1e300, -1e300, 3e299, 1.0]), np.array([1e-300, -2e-300, 0, 3e-300])
    assert of_value(zoo(x, y), "pearson") == pytest.approx(stats.pearsonr(x / 1e300, y * 1e300).statistic)


# --- by hand ----------------------------------------------------------------------------------------------------------

# A 2x2 grid, rows a, columns b:    x = 1 2    y = 1 3
#                                       3 4        4 2
TWO = {"a": [0, 0, 1, 1], "b": [0, 1, 0, 1]}
TWO_X, TWO_Y = [1, 2, 3, 4], [1, 3, 4, 2]


def test_a_two_by_two_grid() -> None:
    """Along b: a=0 has (1,1),(2,3): tau 1; a=1 has (3,4),(4,2): tau -1; psi_b = 0, e_b = 1/2.
    Along a: b=0 has (1,1),(3,4): tau 1; b=1 has (2,3),(4,2): tau -1; psi_a = 0, e_a = 1/2."""
    found = of(zoo(TWO_X, TWO_Y, **TWO))
    assert found["granulated-kendall"].value == 0
    assert found["sign-error-mean"].value == 0.5
    assert found["sign-error-worst"].value == 0.5


def test_a_two_by_three_grid() -> None:
    """x and y below. Along b, pairs (01, 02, 12): row 0 has s_x s_y = +,+,+: tau 1; row 1 has y 6 5 4 against x rising:
    -,-,-: tau -1; psi_b = 0, e_b = (1 - 0/6) / 2 = 1/2. Along a: x rises and y rises in all three columns: psi_a = 1,
    e_a = 0. Psi = (1 + 0) / 2, mean (0 + 1/2) / 2, worst 1/2."""
    x, y = [1, 2, 3, 4, 5, 6], [1, 2, 3, 6, 5, 4]
    found = of(zoo(x, y, a=[0, 0, 0, 1, 1, 1], b=[0, 1, 2] * 2))
    assert found["granulated-kendall"].value == 0.5
    assert found["sign-error-mean"].value == 0.25
    assert found["sign-error-worst"].value == 0.5


def test_groups_weigh_the_same_in_psi_and_pairs_the_same_in_an_environment() -> None:
    """Along b: the group a=0 has three models and three pairs in order, tau 1; the group a=1 has two models out of
    order, tau -1: psi_b = 0 and e_b = (1 - (3 - 1) / 4) / 2 = 1/4. Along a: b=0 and b=1 are in order, b=2 has one model
    and is no group: psi_a = 1, e_a = 0. Psi = 1/2, mean 1/8, worst 1/4."""
    found = of(zoo([1, 2, 3, 4, 5], [1, 2, 3, 6, 4], a=[0, 0, 0, 1, 1], b=[0, 1, 2, 0, 1]))
    assert found["granulated-kendall"].value == 0.5
    assert found["sign-error-mean"].value == 0.125
    assert found["sign-error-worst"].value == 0.25


def test_variants_of_a_baseline_pair_with_it_and_along_their_axis() -> None:
    """Baseline, three values of beta, one of gamma; what a model does not name is at its default, which is not 0. beta:
    default, 0, 3, 6 have x = 1 2 3 4 and y = 3 4 2 1: one pair in order, five not: tau -2/3, e = 5/6. gamma: both rise:
    tau 1, e = 0."""
    found = of(zoo([1, 2, 3, 4, 5], [3, 4, 2, 1, 5], beta=[None, 0, 3, 6, None], gamma=[None] * 4 + [0.01]))
    assert found["granulated-kendall"].value == pytest.approx((-2 / 3 + 1) / 2)
    assert found["sign-error-mean"].value == pytest.approx(5 / 12)
    assert found["sign-error-worst"].value == pytest.approx(5 / 6)


def test_ties_along_an_axis_count_half() -> None:
    """a: x 1 -> 1, y 1 -> 2: s_x s_y = 0; e = 1/2."""
    found = of(zoo([1, 1, 5], [1, 2, 3], a=[0, 1, 2], b=[0, 0, 1]))
    assert found["granulated-kendall"].value == 0
    assert found["sign-error-worst"].value == 0.5


def binary_entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q)


UNCONDITIONED = 1 - binary_entropy(2 / 3) / math.log(2)


def test_information_without_conditions() -> None:
    """TWO, all on one axis: given it each ordered pair is alone and V_y certain, so only the empty set is left. Against
    rising x, y = 1 3 4 2 has 01 02 03 12 in order and 13 23 not: of 12 ordered pairs 8 agree and 4 do not. V_x and V_y
    are fair coins that agree with probability 2/3: I = log 2 - h(2/3), H = log 2; the ratio is 0.082."""
    value = of_value(zoo(TWO_X, TWO_Y, a=[0, 1, 2, 3]), "conditional-mutual-information")
    assert value == pytest.approx(UNCONDITIONED)


def test_information_given_one_axis() -> None:
    """a = 0 in four models, 1 in four. y is 1 2 3 4 | 11 12 13 14 and x 2 1 2 1 | 12 11 12 11: x tells a, and little
    more. U = (0,0) has the ordered pairs (s_x, s_y) 01 +-, 02 0-, 03 +-, 12 --, 13 0-, 23 +-, and the same reversed:
    V_x = 0 in 4 of 12 leaves V_y a fair coin; V_x = + or - in 8 of 12 agrees with it in 1 of 4.
    I = log 2 - (4/12) log 2 - (8/12) h(1/4), H = log 2; (1,1) is alike; (0,1) and (1,0) are certain and add nothing.
    Without a there are 32 more ordered pairs, all in order: more."""
    x, y = [2, 1, 2, 1, 12, 11, 12, 11], [1, 2, 3, 4, 11, 12, 13, 14]
    value = of_value(zoo(x, y, a=[0] * 4 + [1] * 4), "conditional-mutual-information")
    assert value == pytest.approx(2 / 3 * (1 - binary_entropy(1 / 4) / math.log(2)))


def test_information_on_a_two_by_two_grid() -> None:
    """TWO. Given a: (0,0) has 01 -- and 10 ++, (1,1) has 23 -+ and 32 +-: I = H = log 2 for 4 ordered pairs;
    (0,1) has 02 --, 03 --, 12 --, 13 -+: V_x certain, I = 0, H = h(1/4) for 4, and (1,0) for 4 more:
    4 log 2 / (4 log 2 + 8 h(1/4)) = 0.381. Given b: (0,0) and (1,1) as before; (0,1) has 01 --, 03 --, 21 ++, 23 -+:
    I = h(1/4) + log 2 - 3/2 log 2, H = log 2: (4 log 2 + 8 I) / (12 log 2) = 0.541. Given both: no doubt, left out.
    Given nothing: 0.082, the least."""
    value = of_value(zoo(TWO_X, TWO_Y, **TWO), "conditional-mutual-information")
    assert value == pytest.approx(UNCONDITIONED)
    models, h = zoo(TWO_X, TWO_Y, **TWO), binary_entropy(1 / 4) / math.log(2)
    assert naive_information(models, ["a"]) == pytest.approx(1 / (1 + 2 * h))
    assert naive_information(models, ["b"]) == pytest.approx((4 + 8 * (h - 1 / 2)) / 12)
    assert naive_information(models, ["a", "b"]) == math.inf


def naive_information(models: Sequence[Model], axes: Sequence[str]) -> float:
    """From the joint distribution, one pair at a time."""
    tables: dict[Any, Counter[tuple[float, float]]] = {}
    for one in models:
        for other in models:
            if one is not other:
                u = tuple((one.axes.get(axis), other.axes.get(axis)) for axis in axes)
                tables.setdefault(u, Counter())[signs(one, other)] += 1
    shared = doubt = 0.0
    for table in tables.values():
        total = sum(table.values())
        margin_x = {x: sum(n for (one, _), n in table.items() if one == x) for x, _ in table}
        margin_y = {y: sum(n for (_, one), n in table.items() if one == y) for _, y in table}
        shared += sum(n * math.log(n * total / margin_x[x] / margin_y[y]) for (x, y), n in table.items())
        doubt -= sum(n * math.log(n / total) for n in margin_y.values())
    return shared / doubt if doubt > 1e-9 else math.inf


def signs(one: Model, other: Model) -> tuple[float, float]:
    x, y = (float(np.sign(np.mean(getattr(one, k)) - np.mean(getattr(other, k)))) for k in ("measure", "target"))
    return x, y


def naive_along(models: Sequence[Model]) -> dict[str, float]:
    """Psi and the sign-errors, one pair at a time."""
    names = sorted({name for one in models for name in one.axes})
    groups: dict[str, dict[Any, list[float]]] = {}
    for one, other in itertools.combinations(models, 2):
        differ = [name for name in names if one.axes.get(name) != other.axes.get(name)]
        if len(differ) == 1:
            rest = tuple(one.axes.get(name) for name in names if name not in differ)
            groups.setdefault(differ[0], {}).setdefault(rest, []).append(math.prod(signs(one, other)))
    errors = [(1 - np.mean([*itertools.chain(*of_axis.values())])) / 2 for of_axis in groups.values()]
    return {
        "granulated-kendall": float(np.mean([np.mean([np.mean(g) for g in a.values()]) for a in groups.values()])),
        "sign-error-mean": float(np.mean(errors)),
        "sign-error-worst": float(np.max(errors)),
    }


SETS = [axes for size in range(3) for axes in itertools.combinations("abc", size)]


@pytest.mark.parametrize(("set_by", "given"), [((9, 0), 1), ((0, 9), 1), ((9, 30), 2)])
@pytest.mark.parametrize("ties", [False, True])
def test_statistics_of_pairs_are_those_of_one_pair_at_a_time(ties: bool, set_by: tuple[int, int], given: int) -> None:
    """And the least information is given the axes that decide both measure and target."""
    models = random_zoo(2, 30, ties, set_by)
    found = of(models)
    least = min(SETS, key=lambda axes: naive_information(models, axes))
    assert len(least) == given
    assert found["conditional-mutual-information"].value == pytest.approx(naive_information(models, least))
    for name, value in naive_along(models).items():
        assert found[name].value == pytest.approx(value)


# --- the picked model -------------------------------------------------------------------------------------------------


def naive_choice(models: Sequence[Model]) -> dict[str, float]:
    """Regret and hit of the models with the lowest measure, one model at a time; nan where all targets are equal."""
    x, y = ([float(np.mean(getattr(one, k))) for one in models] for k in ("measure", "target"))
    picked = [y[i] for i in range(len(models)) if x[i] == min(x)]
    if min(y) == max(y):
        return {"regret": math.nan, "top-20-hit": math.nan}
    return {
        "regret": float(np.mean([(t - min(y)) / (max(y) - min(y)) for t in picked])),
        "top-20-hit": float(np.mean([sum(other < t for other in y) / len(y) < 0.2 for t in picked])),
    }


def test_regret_and_hit_by_hand() -> None:
    """Ten models with targets 0, 1, ..., 9. The lowest measure picks target 1 (regret 1/9, the second best of ten is
    among the best 20 %), then target 2 (regret 2/9, the third is not), then 0 and 4 in a tie (mean regret 2/9)."""
    target = list(range(10))
    for picked, regret, hit in (([1], 1 / 9, 1), ([2], 2 / 9, 0), ([0, 4], 2 / 9, 0.5)):
        found = of(zoo([0 if i in picked else 1 + i for i in range(10)], target))
        assert found["regret"].value == pytest.approx(regret)
        assert found["top-20-hit"].value == hit
    for name in ("regret", "top-20-hit"):
        assert "where several" in STATISTICS[name].meaning, "the text says what a tie gives"


def test_a_measure_that_picks_the_worst_has_regret_1() -> None:
    found = of(zoo([3, 2, 1], [1, 2, 3]))
    assert (found["regret"].value, found["top-20-hit"].value) == (1, 0)


# --- differences of two measures, and the kink ------------------------------------------------------------------------


def drawn_values(models: Sequence[Model], count: np.ndarray, value: Callable[[Sequence[Model]], float]) -> list[float]:
    return [value([models[i] for i in np.repeat(np.arange(len(models)), row)]) for row in count]


def means(models: Sequence[Model], *fields: str) -> list[np.ndarray]:
    return [np.array([np.mean(getattr(one, k)) for one in models]) for k in fields]


def naive_spearman_lead(models: Sequence[Model]) -> float:
    x, y, rival = means(models, "measure", "target", "rival")
    return float(stats.spearmanr(x, y).statistic - stats.spearmanr(rival, y).statistic)


def naive_regret_lead(models: Sequence[Model]) -> float:
    rivals = [dataclasses.replace(one, measure=one.rival) for one in models]
    return naive_choice(models)["regret"] - naive_choice(rivals)["regret"]


def naive_kink(models: Sequence[Model]) -> float:
    x, y = means(models, "measure", "target")
    sides = [x <= 0, x > 0]
    if any(len(set(x[side])) < 2 for side in sides):
        return math.nan
    below, above = (np.polyfit(x[side], y[side], 1)[0] for side in sides)
    return float(below - above)


@pytest.mark.parametrize(
    ("statistic", "naive"),
    [
        (association.spearman_lead, naive_spearman_lead),
        (association.regret_lead, naive_regret_lead),
        (association.kink(0.0), naive_kink),
    ],
    ids=["spearman-lead", "regret-lead", "kink"],
)
def test_a_resampled_statistic_is_that_of_the_drawn_models(
    statistic: Any, naive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(8)
    x, y, z, rival = rng.normal(size=(4, 12))
    models = [dataclasses.replace(one, rival=[float(other)]) for one, other in zip(zoo(x, y, z), rival, strict=True)]
    models.sort(key=lambda one: one.measure)
    source = Source()
    monkeypatch.setattr(np.random, "default_rng", lambda _: source)
    found = resampled("it", statistic, models, 200)
    assert found.value == pytest.approx(naive(models))
    values = np.array(drawn_values(models, source.drawn, naive))
    assert [found.low, found.high] == pytest.approx(np.nanpercentile(values, (2.5, 97.5)))


def test_a_line_with_a_kink_has_the_difference_of_its_slopes() -> None:
    x = np.linspace(1, 3, 11)
    y = np.where(x <= 2, 3 * x, 6 + 0.5 * (x - 2))
    assert resampled("kink", association.kink(2.0), zoo(x, y)).value == pytest.approx(2.5)


def test_a_resampled_statistic_without_a_value_or_an_interval_says_why() -> None:
    line = zoo(range(5), range(5))
    assert resampled("kink", association.kink(9.0), line).reason == "not defined"
    assert resampled("kink", association.kink(9.0), []).reason == "not defined"
    assert resampled("kink", association.kink(2.0), line).reason == "fewer than 10 models: no interval"


# --- invariances ------------------------------------------------------------------------------------------------------


def test_order_and_labels_of_models_and_order_of_seeds_change_nothing() -> None:
    models = [
        *random_zoo(1),
        Model("cancels", [1e16, -1e16, 1.0], [1, 2, 3], **{control: [1, 2, 3] for control in PARTIAL.values()}),
    ]
    shuffled = [
        dataclasses.replace(
            models[i],
            label=f"other {i}",
            **{k: getattr(models[i], k)[::-1] for k in (*FIELDS[:2], *PARTIAL.values())},
            axes=dict(reversed(models[i].axes.items())),
        )
        for i in np.random.default_rng(0).permutation(len(models))
    ]
    assert statistics(models, 50) == statistics(shuffled, 50)


def test_renaming_axes_and_their_values_changes_nothing() -> None:
    models = random_zoo(1)
    renamed = [
        dataclasses.replace(one, axes={{"a": "z", "b": "m", "c": "k"}[name]: f"v{v}" for name, v in one.axes.items()})
        for one in models
    ]
    assert of(models, 50) == of(renamed, 50)


@pytest.mark.parametrize("name", [name for name in STATISTICS if name not in NOT_OF_RANKS])
def test_all_statistics_but_pearson_and_regret_depend_only_on_the_order(name: str) -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 12))
    axes = {"a": [0, 1] * 6, "b": [i // 2 % 3 for i in range(12)], "c": [i // 6 for i in range(12)]}
    plain, moved = of(zoo(x, y, z, **axes)), of(zoo(np.exp(3 * x), y**3, np.arctan(z), **axes))
    assert plain[name].value == pytest.approx(moved[name].value)
    for other in NOT_OF_RANKS:
        assert plain[other].value != pytest.approx(moved[other].value)


def test_a_negated_measure_negates_the_correlations() -> None:
    models = random_zoo(3)
    plain, turned = of(models), of([dataclasses.replace(one, measure=[-x for x in one.measure]) for one in models])
    for name in ("pearson", "spearman", "kendall", "granulated-kendall", "partial-spearman"):
        assert plain[name].value == pytest.approx(-(turned[name].value or 0))
    assert plain["sign-error-mean"].value == pytest.approx(1 - (turned["sign-error-mean"].value or 0))
    same = "conditional-mutual-information"
    assert plain[same].value == pytest.approx(turned[same].value)


def test_equal_means_of_different_fractions_tie() -> None:
    """0.1 and 0.2 have the mean of 0.15 and 0.15, in floats a last bit more."""
    assert (0.1 + 0.2) / 2 != (0.15 + 0.15) / 2
    models = [Model("a", [0.1, 0.2], [1, 1]), Model("b", [0.15, 0.15], [2, 2]), Model("c", [0.3], [3])]
    assert of_value(models, "kendall") == pytest.approx(2 / math.sqrt(2 * 3))


# --- intervals --------------------------------------------------------------------------------------------------------


def test_fewer_than_ten_models_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 10))
    axes = {"a": [0, 1] * 5}
    ten, nine = of(zoo(x, y, z, **axes), 200), of(zoo(x[:9], y[:9], z[:9], a=axes["a"][:9]), 200)
    for name in ("pearson", "spearman", "kendall", "conditional-mutual-information", "partial-spearman"):
        assert ten[name].low is not None
        assert ten[name].high is not None
        assert ten[name].reason == ""
        assert nine[name].value is not None
        assert (nine[name].low, nine[name].high) == (None, None)
        assert nine[name].reason == "fewer than 10 models: no interval"


class Source:
    """A generator that keeps what it drew."""

    def __init__(self) -> None:
        self.drawn = np.empty(0)

    def multinomial(self, *given: Any, **named: Any) -> np.ndarray:
        self.drawn = np.random.Generator(np.random.PCG64(0)).multinomial(*given, **named)
        return self.drawn


def test_a_resample_is_the_statistic_of_the_drawn_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws written out as lists of models, through scipy and the naive loops. Copies of a model tie in both
    measure and target: no pair of tau_b; the loops skip a pair of the same object."""
    models = sorted(random_zoo(4, 11, ties=True), key=lambda one: [np.mean(getattr(one, k)) for k in FIELDS])
    source = Source()
    monkeypatch.setattr(np.random, "default_rng", lambda _: source)
    found = of(models, 100)
    given = min(SETS, key=lambda axes: naive_information(models, axes))
    values: dict[str, list[float]] = {}
    for count in source.drawn:
        drawn = [models[i] for i in np.repeat(np.arange(11), count)]
        x, y = (np.array([np.mean(getattr(one, k)) for one in drawn]) for k in ("measure", "target"))
        every = {name: float(rival(x, y).statistic) for name, rival in RIVALS.items()} | naive_along(drawn)
        every |= naive_choice(drawn)
        for name, value in (every | {"conditional-mutual-information": naive_information(drawn, given)}).items():
            values.setdefault(name, []).append(value)
    for name, expected in values.items():
        assert [found[name].low, found[name].high] == pytest.approx(np.percentile(expected, (2.5, 97.5))), name


def test_a_model_is_drawn_with_all_its_seeds() -> None:
    """A model's interval is that of its means: seeds add no noise of their own."""
    models = random_zoo(5)
    fields = (*FIELDS[:2], *PARTIAL.values())
    of_means = [
        dataclasses.replace(one, **{k: [math.fsum(getattr(one, k)) / len(getattr(one, k))] for k in fields})
        for one in models
    ]
    assert of(models, 100) == of(of_means, 100)


def test_a_statistic_undefined_in_most_resamples_has_no_interval() -> None:
    """One pair along one axis: both of its models are drawn in about (1 - 1/e)^2 = 2 of 5 resamples."""
    axes = {"a": [0, 1, *range(2, 12)], "b": [0, 0, *range(2, 12)]}
    found = of(zoo(range(12), range(12), **axes), 200)["granulated-kendall"]
    assert (found.value, found.low, found.high) == (1, None, None)
    assert "not defined in most resamples" in found.reason


def covered(name: str, rho: float, models: int, seeds: int, repeats: int) -> float:
    """How often the interval holds the truth: the correlation of seed means is rho, Spearman's 6/pi asin(rho/2)."""
    rng = np.random.default_rng(6)
    truth = {"pearson": rho, "spearman": 6 / math.pi * math.asin(rho / 2), "kendall": 2 / math.pi * math.asin(rho)}[
        name
    ]
    hits = 0
    for _ in range(repeats):
        x, y = normals(rng, models, rho, seeds)
        found = of([Model(str(i), x[i], y[i]) for i in range(models)], 200)[name]
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / repeats


@pytest.mark.parametrize("name", RIVALS)
def test_intervals_cover(name: str) -> None:
    """Percentile intervals of 40 models cover a little less than 95 %: of 100, fewer than 85 would be a mistake."""
    assert covered(name, rho=0.6, models=40, seeds=3, repeats=100) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("models", [30, 100])
def test_intervals_cover_at_length(name: str, rho: float, models: int) -> None:
    assert 0.90 <= covered(name, rho, models, seeds=3, repeats=500) <= 0.98


# --- what is not defined ----------------------------------------------------------------------------------------------

R = list(range(12))
AXES = {"a": [i % 2 for i in R], "b": [i // 2 for i in R]}
SWAPPED = [i ^ 1 for i in R]  # neighbours change places
UNDEFINED: dict[str, tuple[list[Model], Sequence[str], str]] = {
    "no models": ([], list(STATISTICS), "fewer than 3 models"),
    "two models": (zoo([1, 2], [1, 2]), list(STATISTICS), "fewer than 3 models"),
    "measure ties": (zoo([1] * 12, R), list(STATISTICS), "all models tie in the measure"),
    "target ties": (zoo(R, [0.1] * 12), list(STATISTICS), "all models tie in the target"),
    "no axes": (zoo(R, R, SWAPPED), OF_AXES, "no axis has 2 values"),
    "an axis of one value": (zoo(R, R, SWAPPED, depth=[8] * 12), OF_AXES, "fewer than 2 values of depth"),
    "mixed axes": (zoo(R, R, SWAPPED, a=R, b=R), OF_PAIRS, "no two models differ along one axis only"),
    "no confidence": (zoo(R, R, **AXES), list(PARTIAL), "is not known of every model"),
    "three models": (zoo([1, 2, 3], [1, 3, 2], [3, 1, 2], a=[1, 2, 3]), list(PARTIAL), "fewer than 4 models"),
    "confidence ties": (zoo(R, R, [1] * 12, **AXES), list(PARTIAL), "all models tie in"),
    "confidence is the measure": (
        zoo(R, R[::-1], np.exp(R), **AXES),
        list(PARTIAL),
        "orders the models as the measure or the target",
    ),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_an_undefined_statistic_has_a_reason(case: str) -> None:
    models, names, reason = UNDEFINED[case]
    found = of(models)
    for name, one in found.items():
        assert (one.value is None) == one.reason.startswith("not defined:") == (name in names)
        if name in names:
            assert (one.low, one.high) == (None, None)
            assert reason in one.reason


def test_axes_that_a_statistic_leaves_out_are_named() -> None:
    """depth has one value; width changes only together with a."""
    found = of(zoo([1, 2, 3, 4], [1, 2, 4, 3], a=[0, 1, 2, 2], width=[1, 1, 2, 2], depth=[8] * 4, b=[0, 0, 0, 1]))
    assert found["granulated-kendall"].value == 0
    assert "fewer than 2 values of depth; no two models differ only in width" in found["granulated-kendall"].reason
    assert "fewer than 2 values of depth" in found["conditional-mutual-information"].reason
    assert "depth" not in found["kendall"].reason


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model("odd one", [], []), "odd one: .* one number for each seed"),
        (Model("odd one", [1, 2], [1]), "odd one: .* one number for each seed"),
        (Model("odd one", [1], [1], confidence=[1, 2]), "odd one: .* one number for each seed"),
        (Model("odd one", [math.nan], [1]), "odd one: .* must be finite"),
        (Model("odd one", [1], [math.inf]), "odd one: .* must be finite"),
    ],
)
def test_missing_or_infinite_numbers_of_a_model_are_refused(model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics([model])
