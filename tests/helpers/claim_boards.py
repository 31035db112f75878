"""Rows of a made-up board, with every number that claims read under control."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from robflat_bench.leaderboard.claims import claims
from robflat_bench.leaderboard.correlations import correlations
from robflat_bench.leaderboard.model import Claim
from robflat_bench.leaderboard.rows import Network, SeedGroup
from robflat_bench.records.record import MeasureResult

AVERAGE = 'measure:average-case(coupling="reattack", draws=5, xi=0.25)'
CLEAN = 'measure:average-case(coupling="clean", draws=7, xi=0.5)'
WORST = 'measure:worst-case(coupling="joint", xi=0.01)'
MEASURES = (AVERAGE, WORST, CLEAN)
IMAGES = 40
PROFILE = np.random.default_rng(1).normal(size=IMAGES)
"""Difficulty of each image, the same for all networks."""
DROPS = (0.1, 0.1, 0.01, 0.01)


def made(
    method: str = "at",
    *,
    loss: float = 1.0,
    flat: float = 1.0,
    best: dict[str, float] | None = None,
    worst: float | None = None,
    clean: float | None = None,
    gap: float = 0.1,
    error: float = 0.5,
    clean_loss: float = 0.3,
    noise: float = 0.01,
    seeds: int = 3,
    changes: dict[str, Any] | None = None,
    rates: Sequence[float] = DROPS,
    heldout: Sequence[float | None] = (2.0, 1.0, 0.9, 1.0),
    fooled_rise: float = 1.0,
    lacks: Sequence[str] = (),
) -> tuple[SeedGroup, Any]:
    """A row. Every number is a mean over seeds; seed s adds noise (s - 2). best: values of the best checkpoint that
    differ from the last. worst, clean: by default as flat. lacks: columns that no seed has."""
    values = {"loss": loss, "flat": flat, "worst": worst, "clean": clean, "gap": gap, "error": error}
    runs, networks = [], []
    for seed in range(1, seeds + 1):
        shift, outcomes, points = noise * (seed - 2), {}, {}
        for checkpoint, of in (("last", values), ("best", values | (best or {}))):
            test = of["loss"] + shift + PROFILE
            flatness = {
                AVERAGE: of["flat"] + shift,
                WORST: (of["flat"] if of["worst"] is None else of["worst"]) + shift,
                CLEAN: (of["flat"] if of["clean"] is None else of["clean"]) + shift,
            }
            samples = {
                "robust_loss": (test,),
                "gap_robust_loss": (test, np.full(IMAGES, test.mean() - of["gap"])),
                "robust_error": (np.arange(1000) < 1000 * of["error"] + seed - 2,),
            }
            points[checkpoint] = Network(
                {name: each for name, each in samples.items() if name not in lacks},
                {
                    name: MeasureResult(value=value, standard_error=None, n=IMAGES, seconds=1.0)
                    for name, value in flatness.items()
                    if name not in lacks
                },
                IMAGES,
                0.8,
            )
            attacked = np.arange(IMAGES) % 2 == 0
            outcomes |= {
                f"{checkpoint}/test/clean/loss": np.full(IMAGES, clean_loss),
                f"{checkpoint}/test/clean/error": np.arange(IMAGES) < 4,
                f"{checkpoint}/test/pgd/error": attacked,
                f"{checkpoint}/measure/{AVERAGE.removeprefix('measure:')}/per_example": np.where(
                    attacked, fooled_rise, 1.0
                )
                + shift * attacked,
            }
        history = [
            SimpleNamespace(learning_rate=rate, heldout_robust_loss=None if value is None else value + shift * (k > 1))
            for k, (rate, value) in enumerate(zip(rates, heldout, strict=True))
        ]
        spec = SimpleNamespace(label=method)
        results = dict.fromkeys(("last", "best"), SimpleNamespace(robust_error={"pgd": None}))
        record = SimpleNamespace(spec=spec, method=method, history=history, results=results)
        runs.append(SimpleNamespace(record=record, outcomes=outcomes))
        networks.append(points)
    present = {name: {*points.samples, *points.measures} for name, points in networks[0].items()}
    row = SimpleNamespace(method=method, changes=changes or {}, values=present)
    return SeedGroup(repr((method, changes)), tuple(runs), tuple(networks)), row  # type: ignore[arg-type]


def decided(*rows: tuple[SeedGroup, Any], measures: Sequence[str] = MEASURES) -> dict[str, Claim]:
    """Claim -> how it is decided on a board of these rows. measures: columns of the board."""
    groups, shown = [group for group, _ in rows], [row for _, row in rows]
    columns: list[Any] = [SimpleNamespace(id=name) for name in ("robust_error", "robust_loss", *measures)]
    found = correlations(groups, shown, [one for one in columns if one.id != CLEAN])  # no claim reads the others
    return {one.id: one for one in claims(groups, shown, columns, found)}
