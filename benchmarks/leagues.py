"""How often a board calls equal methods different, how often it keeps the best in the lead group, and which difference
it finds: simulated leagues, with the seed variances as observed (before) and moderated (after).

    uv run python benchmarks/leagues.py --output benchmarks/records/leagues.json

Equal methods: percentage of leagues in which any pair differs significantly (Holm, 5 %), and how often a method stays
in the lead group. All are equally good, so each is the best: the mean over methods. Power: the smallest difference in
robust error of two methods, in a league whose others are equal to one of them, that is significant in 80 % of leagues.
About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from robflat_bench.analysis.moderation import ALONE, Floats
from robflat_bench.analysis.statistics import lead_group, significant
from robflat_bench.analysis.variance import CrossedTable, common_prior, pair_spreads

EXAMPLES = 250
LEAGUES = {6: 1000, 30: 500}
"""Number of methods -> leagues of a cell. Standard error of a rate of 5 %: 0.7 and 1.0 points."""
RESIDUAL, OWN = 0.7, 0.3
"""Latent scales beside the common difficulty of 1: of network and example together, of method and example."""

Noises = Callable[[np.random.Generator, int], Floats]
"""Latent seed noise of each method."""


def constant(noise: float) -> Noises:
    return lambda source, methods: np.full(methods, noise)


def lognormal(width: float) -> Noises:
    """Median 0.1, one method in six has none. width: standard deviation of the logarithm."""

    def drawn(source: np.random.Generator, methods: int) -> Floats:
        return 0.1 * np.exp(width * source.standard_normal(methods)) * (np.arange(methods) % 6 > 0)

    return drawn


NOISES: dict[str, Noises] = {
    "none": constant(0.0),
    "small": constant(0.04),
    "dominant": constant(0.3),
    "half 0, half dominant": lambda source, methods: np.where(np.arange(methods) % 2, 0.3, 0.0),
    "one 15 times the others": lambda source, methods: np.where(np.arange(methods), 0.04, 0.6),
    "lognormal, width 0.5": lognormal(0.5),
    "lognormal, width 1": lognormal(1.0),
}
FLAT = {"equal": 0.0, "lognormal, width 0.25": 0.25, "lognormal, width 0.5": 0.5}


def latent(source: np.random.Generator, noises: Floats, seeds: int) -> list[Floats]:
    """A table [S, n] for each method, of mean 0 and variance 1: all equally good."""
    shared = source.standard_normal(EXAMPLES)
    tables = []
    for noise in noises:
        own = OWN * source.standard_normal(EXAMPLES) + noise * source.standard_normal((seeds, 1))
        table = shared + own + RESIDUAL * source.standard_normal((seeds, EXAMPLES))
        tables.append(table / math.sqrt(1 + OWN**2 + RESIDUAL**2 + noise**2))
    return tables


def outcomes(kind: str, noise: str, source: np.random.Generator, methods: int, seeds: int) -> list[Any]:
    """A league of equal methods."""
    if kind == "flatness":
        widths = np.exp(FLAT[noise] * source.standard_normal((methods, 1)))
        return [*(widths * source.standard_normal((methods, seeds)))]
    tables = latent(source, NOISES[noise](source, methods), seeds)
    threshold = {"errors, 40 %": 0.2533, "errors, 1 %": 2.3263}
    return tables if kind == "losses" else [table > threshold[kind] for table in tables]


def verdicts(tables: Sequence[Any]) -> dict[str, tuple[Any, Any]]:
    """Rule -> significance of the pairs, [m], and the lead group, [M]."""
    methods = [CrossedTable(table) for table in tables]
    first, second = np.triu_indices(len(methods), 1)
    means = np.array([method.mean for method in methods])
    distance, found = means[first] - means[second], {}
    for rule, prior in (("before", ALONE), ("after", common_prior(methods))):
        spreads = pair_spreads(methods, prior)
        found[rule] = significant(spreads, distance), lead_group(spreads, distance, len(methods))
    return found


def equal_cell(cell: tuple[str, str, int, int]) -> dict[str, Any]:
    """A row of the table of equal methods, in percent of leagues."""
    kind, noise, methods, seeds = cell
    source, count = np.random.default_rng(0), LEAGUES[methods]
    different, kept = {"before": 0, "after": 0}, {"before": 0.0, "after": 0.0}
    for _ in range(count):
        for rule, (pairs, lead) in verdicts(outcomes(kind, noise, source, methods, seeds)).items():
            different[rule] += bool(pairs.any())
            kept[rule] += float(lead.mean())
    return {
        "kind": kind,
        "seed noise": noise,
        "methods": methods,
        "seeds": seeds,
        "leagues": count,
        **{f"different, {rule}": round(100 * different[rule] / count, 2) for rule in different},
        **{f"best in the lead group, {rule}": round(100 * kept[rule] / count, 2) for rule in kept},
    }


def power_cell(cell: tuple[str, int, int]) -> dict[str, Any]:
    """The difference in robust error, in points, that is found with 80 % power; linear between steps of 2 points."""
    noise, methods, seeds = cell
    count = LEAGUES[methods] // 5
    found: dict[str, float | None] = {"before": None, "after": None}
    last = dict.fromkeys(found, (0.0, 0.0))
    for step in range(2, 60, 2):
        hits = dict.fromkeys(found, 0)
        source = np.random.default_rng(0)
        for _ in range(count):
            tables = latent(source, NOISES[noise](source, methods), seeds)
            worse = 0.4 + step / 100
            shifted = [table > 0.2533 for table in tables[:-1]] + [tables[-1] > -_quantile(worse)]
            for rule, (pairs, _) in verdicts(shifted).items():
                hits[rule] += bool(pairs[2 * methods - 4])  # the second method against the last
        for rule, hit in hits.items():
            (at, before), now = last[rule], hit / count
            if found[rule] is None and now >= 0.8:
                found[rule] = round(at + (step - at) * (0.8 - before) / (now - before), 1)
            last[rule] = step, now
        if None not in found.values():
            break
    return {"seed noise": noise, "methods": methods, "seeds": seeds, "leagues": count, **found}


def _quantile(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def cells() -> Iterator[tuple[str, str, int, int]]:
    kinds = [("errors, 40 %", noise) for noise in NOISES]
    kinds += [("losses", noise) for noise in ("none", "small", "dominant", "lognormal, width 0.5")]
    kinds += [("errors, 1 %", noise) for noise in ("none", "dominant")] + [("flatness", noise) for noise in FLAT]
    for (kind, noise), methods, seeds in product(kinds, LEAGUES, (3, 5)):
        yield kind, noise, methods, seeds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    powers = [*product(("small", "lognormal, width 0.5", "dominant"), LEAGUES, (3,))]
    with ProcessPoolExecutor(2) as pool:
        power = [*pool.map(power_cell, powers)]
        equal = [*pool.map(equal_cell, cells())]
    for row in [*power, *equal]:
        print(row)  # noqa: T201
    document = {"examples": EXAMPLES, "unit": "percent of leagues; power: points of robust error"}
    text = json.dumps({**document, "power": power, "equal": equal}, indent=1)
    asked.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
