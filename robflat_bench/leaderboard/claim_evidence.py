"""What the records of a board say to each claim of `claims.py`: an estimate with a 95 % interval, or why there is none.

Every function takes the `Facts` of a board. Intervals over seeds are Student's t, intervals over methods are bootstrap
percentiles: both from `robflat_bench.analysis`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robflat_bench.analysis import association
from robflat_bench.analysis.association import Sample
from robflat_bench.analysis.correlation import FEWEST, resampled, statistics
from robflat_bench.analysis.models import Design, Floats, Model
from robflat_bench.analysis.statistics import RANKED_SEEDS, compare_methods, crossed, holm, over_seeds
from robflat_bench.analysis.variance import LEVEL, CrossedTable, Spread, pair_spreads
from robflat_bench.leaderboard.claim_facts import Evidence, Facts, lacking, of_baseline, seeds_of
from robflat_bench.leaderboard.correlations import board_model
from robflat_bench.leaderboard.model import RANKED_AT, BoardRow
from robflat_bench.leaderboard.rows import SeedGroup
from robflat_bench.records.quantities import MEASURE, WORST_CASE, column_id
from robflat_bench.records.record import measure_path
from robflat_bench.registry.grammar import members, parse

LOSS, GAP = column_id("robust_loss"), column_id("gap_robust_loss")
UNIFORM = math.log(10)
"""Loss of a uniform prediction over ten classes, in nats."""
HUGE = 200.0
"""Largest logarithm of a ratio: two seeds that differ by many orders of magnitude have an interval beyond floats."""
SIDE = 5
"""Fewest methods on each side of the kink."""


# --- AT through training ----------------------------------------------------------------------------------------------


@of_baseline
def overfitting(at: SeedGroup, facts: Facts) -> Evidence:
    """Robust test loss, last minus best: paired over the images; seeds and images are random."""
    if reason := lacking(at, ("last", "best"), LOSS):
        return Evidence(reason=reason)
    (last,), (best,) = (at.tables(name, LOSS)[:1] for name in ("last", "best"))
    found = crossed(last - best)
    return Evidence(found.mean, found.low, found.high, f"{seeds_of(at)} x {last.shape[1]} images")


@of_baseline
def rise_after_drop(at: SeedGroup, facts: Facts) -> Evidence:
    """Robust held-out loss of the last epoch minus that of the last check before the first drop of the rate by half."""
    rises = []
    for run in at.runs:
        history = run.record.history
        rates = [row.learning_rate for row in history]
        drop = next((k for k in range(1, len(rates)) if 0 < rates[k] <= rates[k - 1] / 2), 0)
        before = [row.heldout_robust_loss for row in history[:drop] if row.heldout_robust_loss is not None]
        end = history[-1].heldout_robust_loss
        if not before or end is None:
            return Evidence(reason="the learning rate has no drop by half after a check on held-out images")
        rises.append(end - before[-1])
    found = over_seeds(rises)
    return Evidence(found.mean, found.low, found.high, seeds_of(at))


def flatter_when_best(which: str) -> Callable[[Facts], Evidence]:
    """F(last) / F(best) of AT, a geometric mean over seeds. which: the field of `Facts` with the measure."""

    @of_baseline
    def of(at: SeedGroup, facts: Facts) -> Evidence:
        column = getattr(facts, which)
        if reason := lacking(at, ("last", "best"), column):
            return Evidence(reason=reason)
        last, best = at.values("last", column), at.values("best", column)
        if min(*last, *best) <= 0:
            return Evidence(reason="flatness of a seed is not positive, so there is no ratio")
        found = over_seeds(np.log(last) - np.log(best))  # the quotient may overflow
        mean, low, high = (math.exp(min(end or 0.0, HUGE)) for end in (found.mean, found.low, found.high))
        return Evidence(mean, low, high, seeds_of(at))

    return of


# --- over methods -----------------------------------------------------------------------------------------------------


def _enough(count: int, where: str = "") -> str:
    """Why these methods are too few for an interval; "" where they are enough."""
    few = f"{count} methods of {RANKED_SEEDS} seeds{where} have both values; an interval needs {FEWEST}"
    return few if count < FEWEST else ""


def spearman(which: str, target: str) -> Callable[[Facts], Evidence]:
    """The board's own rank correlation of a measure with a target, at the ranked checkpoint."""

    def of(facts: Facts) -> Evidence:
        wanted = (getattr(facts, which), target, RANKED_AT)
        found = next((c for c in facts.correlations if (c.quantity, c.target, c.checkpoint) == wanted), None)
        if reason := _enough(found.models if found and facts.ranked else 0):
            return Evidence(reason=reason)
        assert found is not None
        value = next(one for one in found.statistics if one.name == "spearman")
        reason = "" if value.low is not None else value.reason
        return Evidence(value.value, value.low, value.high, f"{found.models} methods", reason)

    return of


def _models(facts: Facts, measure: str, target: str) -> list[tuple[SeedGroup, Model]]:
    """The methods that have both columns at the ranked checkpoint."""
    known = [g for g in facts.ranked if all(g.values(RANKED_AT, name).size for name in (measure, target))]
    return [(group, board_model(group, RANKED_AT, measure, target)) for group in known]


def _over_methods(name: str, of: Callable[[Sample], Floats], models: Sequence[Model]) -> Evidence:
    if reason := _enough(len(models)):
        return Evidence(reason=reason)
    found = resampled(name, of, models)
    return Evidence(found.value, found.low, found.high, f"{len(models)} methods", found.reason)


def settings(row: BoardRow) -> dict[str, Any]:
    """The axes of a row, such that two rows are a pair only if they differ in one number.

    Everything that is no number is one family. It stands on two axes, so that two families differ along two."""
    numbers: dict[str, float] = {}
    family: list[str] = []
    parts = [(name, values) for name, values in map(parse, members(row.method))]
    for name, values in (*parts, ("recipe", row.changes)):
        family.append(name)
        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"{name}.{key}"] = value
            else:
                family.append(f"{name}.{key}={value}")
    return {"family": repr(family), "family again": repr(family), **numbers}


def within_grids(facts: Facts) -> Evidence:
    """Granulated Kendall of average-case flatness with robust loss, over grids: a method's variants in one number."""
    if not facts.average:
        return Evidence(reason="the board has no such measure")
    of_group = {id(group): settings(row) for group, row in zip(facts.groups, facts.rows, strict=True)}
    models = [replace(model, axes=of_group[id(group)]) for group, model in _models(facts, facts.average, LOSS)]
    design = Design.of([model.axes for model in models])
    inside = sorted({*design.first.tolist(), *design.second.tolist()})
    if reason := _enough(len(inside), " in grids"):
        return Evidence(reason=reason)
    grids = len(design.starts)
    found = next(one for one in statistics([models[k] for k in inside]) if one.name == "granulated-kendall")
    n = f"{len(inside)} methods in {grids} grids, {len(design.first)} pairs"
    return Evidence(found.value, found.low, found.high, n, "" if found.low is not None else found.reason)


def kink(facts: Facts) -> Evidence:
    """Slope of robust error on robust loss up to log(10), minus the slope above: two lines, as the paper fits them."""
    models = [model for _, model in _models(facts, LOSS, WORST_CASE)]
    below = sum(float(np.mean(model.measure)) <= UNIFORM for model in models)
    if min(below, len(models) - below) < SIDE:
        sides = f"{below} methods have a robust loss up to {UNIFORM:.2f}, {len(models) - below} above"
        return Evidence(reason=f"{sides}; each side needs {SIDE}")
    found = _over_methods("kink", association.kink(UNIFORM), models)
    return replace(found, n=f"{found.n}, {below} below") if found.n else found


def lead_over_clean(facts: Facts) -> Evidence:
    """Spearman with robust loss: that of average-case flatness minus that of flatness of the clean loss."""
    if not facts.average or not facts.clean:
        return Evidence(reason="no run of the board measures flatness of the clean loss")
    known = [(g, model) for g, model in _models(facts, facts.average, LOSS) if g.values(RANKED_AT, facts.clean).size]
    models = [replace(model, rival=g.values(RANKED_AT, facts.clean).tolist()) for g, model in known]
    return _over_methods("spearman lead", association.spearman_lead, models)


def regret_over_confidence(facts: Facts) -> Evidence:
    """Regret in robust loss: picking by average-case flatness minus picking by the clean loss (NLL)."""
    if not facts.average:
        return Evidence(reason="the board has no such measure")
    clean = f"{RANKED_AT}/test/clean/loss"
    models = [
        replace(model, rival=[float(run.outcomes[clean].mean()) for run in group.runs])
        for group, model in _models(facts, facts.average, LOSS)
    ]
    return _over_methods("regret lead", association.regret_lead, models)


# --- methods against AT -----------------------------------------------------------------------------------------------


def _difference(a: NDArray[Any], b: NDArray[Any], comparisons: int) -> tuple[float, float, float]:
    """Mean of a minus mean of b, with an interval that holds simultaneously for this many comparisons (Bonferroni)."""
    pair = [CrossedTable(a), CrossedTable(b)]
    reach = float(Spread(*pair_spreads(pair)[0]).reach(LEVEL / comparisons))
    difference = pair[0].mean - pair[1].mean
    return difference, difference - reach, difference + reach


def beaters(at: SeedGroup, facts: Facts) -> tuple[list[SeedGroup], int]:
    """The methods whose robust loss is significantly lower than AT's (Holm), and the number of methods compared."""
    others = [g for g in facts.ranked if g is not at and g.compared(RANKED_AT, LOSS).size]
    tests = [compare_methods(other.compared(RANKED_AT, LOSS), at.compared(RANKED_AT, LOSS)) for other in others]
    p = holm([1.0 if test.p is None else test.p for test in tests])
    better = [g for g, test, level in zip(others, tests, p, strict=True) if level <= LEVEL and test.difference < 0]
    return better, len(others)


def _beating(at: SeedGroup, facts: Facts) -> tuple[list[SeedGroup], str, str]:
    """The beaters that have average-case flatness; n in words; the reason where there is none to judge."""
    if reason := lacking(at, (RANKED_AT,), facts.average) or lacking(at, (RANKED_AT,), LOSS):
        return [], "", reason
    found, compared = beaters(at, facts)
    found = [group for group in found if group.values(RANKED_AT, facts.average).size]
    n = f"{len(found)} of {compared} methods beat AT in robust loss"
    return found, n, "" if found else f"{n} (significantly, at 5 % with Holm's correction)"


@of_baseline
def flatter_than_at(at: SeedGroup, facts: Facts) -> Evidence:
    """Least F(AT) - F(m) over the methods m that beat AT: positive exactly if all of them are flatter."""
    found, n, reason = _beating(at, facts)
    if reason:
        return Evidence(reason=reason)
    flat = at.values(RANKED_AT, facts.average)
    differences = [_difference(flat, group.values(RANKED_AT, facts.average), len(found)) for group in found]
    value, low, high = map(min, zip(*differences, strict=True))
    return Evidence(value, low, high, n)


def best_is_not_flattest(facts: Facts) -> Evidence:
    """Largest F(best) - F(m) over the other methods m, best: the lowest robust loss. Positive: another is flatter."""
    known = [g for g in facts.ranked if g.compared(RANKED_AT, LOSS).size and facts.average]
    known = [g for g in known if g.values(RANKED_AT, facts.average).size]
    if len(known) < 2:
        return Evidence(reason=f"{len(known)} methods of {RANKED_SEEDS} seeds have both values; 2 are needed")
    best = min(known, key=lambda group: float(group.compared(RANKED_AT, LOSS).mean()))
    flat, others = best.values(RANKED_AT, facts.average), [g for g in known if g is not best]
    differences = [_difference(flat, group.values(RANKED_AT, facts.average), len(others)) for group in others]
    value, low, high = map(max, zip(*differences, strict=True))
    return Evidence(value, low, high, f"{best.label} against {len(others)} methods")


@of_baseline
def share_of_sharper(at: SeedGroup, facts: Facts) -> Evidence:
    """Share of the methods that beat AT whose mean flatness is above AT's (sharper); exact interval."""
    from scipy.special import betaincinv

    found, n, reason = _beating(at, facts)
    if reason:
        return Evidence(reason=reason)
    flat = float(at.values(RANKED_AT, facts.average).mean())
    sharper, total = sum(float(g.values(RANKED_AT, facts.average).mean()) > flat for g in found), len(found)
    low = float(betaincinv(sharper, total - sharper + 1, LEVEL / 2)) if sharper else 0.0
    high = float(betaincinv(sharper + 1, total - sharper, 1 - LEVEL / 2)) if sharper < total else 1.0
    return Evidence(sharper / total, low, high, n)


# --- objections -------------------------------------------------------------------------------------------------------


@of_baseline
def fooled_are_flat(at: SeedGroup, facts: Facts) -> Evidence:
    """Rise of the loss when weights move, of correct test images that the attack leaves correct minus of those that it
    fools; one difference per seed."""
    if reason := lacking(at, (RANKED_AT,), facts.average):
        return Evidence(reason=reason)
    place = f"{measure_path(RANKED_AT, 'test', facts.average.removeprefix(MEASURE))}/per_example"
    rises, fooled = [], 0
    for run in at.runs:
        attack = next(iter(run.record.results[RANKED_AT].robust_error))
        if place not in run.outcomes:
            return Evidence(reason="a run keeps no flatness of single images")
        arrays = [run.outcomes[place], *(run.outcomes[f"{RANKED_AT}/test/{of}/error"] for of in ("clean", attack))]
        rise, clean, attacked = (array[: min(map(len, arrays))] for array in arrays)
        lost, kept = attacked & ~clean, ~attacked & ~clean
        if not lost.any() or not kept.any():
            return Evidence(reason="the attack fools all or none of the correct images of a seed")
        rises.append(float(rise[kept].mean() - rise[lost].mean()))
        fooled += int(lost.sum())
    found = over_seeds(rises)
    return Evidence(found.mean, found.low, found.high, f"{seeds_of(at)}, {fooled} fooled images")


def awp_ends(column: Callable[[Facts], str], sign: int) -> Callable[[Facts], Evidence]:
    """A column of AT+AWP at its largest gamma minus at its smallest, times the sign."""

    def of(facts: Facts) -> Evidence:
        found = []
        for group, row in zip(facts.groups, facts.rows, strict=True):
            names = [parse(part) for part in members(row.method)]
            penalised = [name for name, _ in names] == ["at", "awp"] and "gamma" in names[1][1]
            if (
                penalised
                and group.ranked
                and not row.changes
                and column(facts)
                and group.compared(RANKED_AT, column(facts)).size
            ):
                found.append((float(names[1][1]["gamma"]), group.compared(RANKED_AT, column(facts))))
        found.sort(key=lambda pair: pair[0])
        if len({gamma for gamma, _ in found}) < 2:
            return Evidence(reason=f"{len(found)} strengths of AWP have {RANKED_SEEDS} seeds; 2 are needed")
        (weak, low), (strong, high) = found[0], found[-1]
        difference = sign * np.array(_difference(high, low, 1))
        n = f"gamma {strong:g} against {weak:g}, {len(high)} and {len(low)} seeds"
        return Evidence(float(difference[0]), float(difference[1:].min()), float(difference[1:].max()), n)

    return of
