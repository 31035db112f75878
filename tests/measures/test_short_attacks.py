"""Short attacks at every draw, corrected by the full attack at some: losses, passes and standard errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers.measures import EPSILON, REGISTRY, THREAT, small_examples, small_net

from robflat_bench.config.cost import passes_of
from robflat_bench.core import Measurement, Workspace
from robflat_bench.core.estimates import contradictions, crossed_errors, estimated
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.records.journal import StoredJournal
from robflat_bench.registry.components import Component, resolve

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("adaptive-average", "average-case", "local-entropy", "lpf")
DRAWS, STEPS = 7, 5


def chosen(name: str, **params: Any) -> Component:
    given = {"coupling": "reattack", "draws": DRAWS, "steps": STEPS, **params}
    return resolve(REGISTRY, "measure", f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})")


def measured(name: str, place: Workspace | None = None, **params: Any) -> Measurement:
    here = place or Workspace(batch=4, seed=5)
    found: Measurement = chosen(name, **params).build(THREAT).measure(small_net(), small_examples(), here)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [{}, {"warm": "true", "warm_steps": 3}, {"logits": "normalised"}])
def test_losses_are_those_of_short_attacks_plus_what_they_miss_at_the_first_draws(name, more):
    full = measured(name, **more).arrays
    plain = {"logits": more["logits"]} if "logits" in more else {}
    short = measured(name, steps=2, step=2 * EPSILON / 4, **plain).arrays["losses"]
    found = measured(name, full_draws=3, **more)
    missed = full["losses"][:3] - short[:3]
    assert found.arrays["shortfall"] == pytest.approx(missed, abs=1e-12)
    assert found.arrays["losses"] == pytest.approx(short + missed.mean(0), abs=1e-12)
    assert np.array_equal(found.arrays["reference"], full["reference"])
    assert abs(missed).max() > 1e-4, "the attacks differ"
    info = chosen(name).info
    stated = {"value": found.value, "standard_error": found.standard_error, "n": found.n, **found.details}
    assert contradictions(info.estimate, found.arrays, stated) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [DRAWS, DRAWS + 1])
def test_full_attacks_at_all_draws_change_no_bit(name, count):
    one, other = measured(name), measured(name, full_draws=count)
    assert (one.value, one.standard_error, one.arrays.keys()) == (
        other.value,
        other.standard_error,
        other.arrays.keys(),
    )


@pytest.mark.parametrize(("name", "still"), [("lpf", {"std": 0}), ("average-case", {"xi": 0})])
def test_the_rise_is_zero_where_nothing_moves(name, still):
    assert measured(name, full_draws=3, **still).arrays["per_example"] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("more", [{}, {"warm": "true"}, {"warm": "true", "warm_steps": 3}, {"coupling": "frozen"}])
def test_passes_are_those_declared_and_kept_units_need_none(name, more, tmp_path):
    given = {"full_draws": 2, "restarts": 2, **more}
    model, examples = small_net(), small_examples()
    counter = PassCounter(model)
    journal = StoredJournal(tmp_path, counter=counter)
    measure, place = chosen(name, **given).build(THREAT), Workspace(len(examples), 5, journal)
    found = measure.measure(model, examples, place)
    declared = passes_of(chosen(name, **given))
    assert declared is not None
    assert (counter.forward, counter.backward) == tuple(each * len(examples) for each in declared)
    assert (journal.spent.forward, journal.spent.backward) == (counter.forward, counter.backward)
    again = measure.measure(model, examples, place)
    assert (again.value, again.standard_error) == (found.value, found.standard_error)
    assert (counter.forward, counter.backward) == tuple(each * len(examples) for each in declared)


# ---------------------------------------------------------------------------------------------------------
# Standard errors
# ---------------------------------------------------------------------------------------------------------


def worlds(count: int, draws: int, n: int, m: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Short losses [draws, n] and shortfalls [m, n] of mean 0; what a draw does to both is correlated."""
    random, found = np.random.default_rng(2), []
    for _ in range(count):
        by_draw, by_example = random.standard_normal((2, draws, 1)), random.standard_normal((2, 1, n))
        noise = random.standard_normal((2, draws, n))
        short = 0.5 * by_draw[0] + 0.3 * by_example[0] + 0.4 * noise[0]
        missed = 0.3 * by_draw[1] - 0.2 * by_draw[0] + 0.2 * by_example[1] + 0.3 * noise[1] - 0.3 * noise[0]
        found.append((short, missed[:m]))
    return found


def test_standard_error_counts_the_draws_of_both_attacks():
    draws, n, m = 20, 15, 5
    found = [(short + missed.mean(0), missed) for short, missed in worlds(4000, draws, n, m)]
    spread = np.var([losses.mean() for losses, _ in found])
    errors = [crossed_errors(losses, missed) for losses, missed in found]
    assert np.mean([error["standard_error"] ** 2 for error in errors]) == pytest.approx(spread, rel=0.06)
    careless = [crossed_errors(losses)["standard_error"] ** 2 for losses, _ in found]
    assert np.mean(careless) < 0.9 * spread, "the correction's own noise counts"


def test_standard_errors_with_full_attacks_at_all_draws_are_those_of_full_attacks():
    ((short, missed),) = worlds(1, 9, 6, 9)
    found = crossed_errors(short + missed.mean(0), missed)
    for name, value in crossed_errors(short + missed).items():
        assert found[name] == pytest.approx(value, rel=1e-12), name


def test_free_energy_of_corrected_losses_counts_the_noise_of_the_correction():
    draws, n, m = 200, 400, 10
    values, errors, careless = [], [], []
    for short, missed in worlds(400, draws, n, m):
        arrays = {"losses": 0.1 * short + missed.mean(0), "reference": np.zeros(n), "shortfall": missed}
        found = estimated("draws and examples of a free energy", arrays)
        del arrays["shortfall"]
        values.append(found.value)
        errors.append(found.details["standard_error_draws"])
        careless.append(estimated("draws and examples of a free energy", arrays).details["standard_error_draws"])
    spread = math.sqrt(np.var(values) - (0.03**2 + 0.2**2) / n)  # without the examples'
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.1)
    assert math.sqrt(np.mean(np.square(careless))) < 0.5 * spread
