"""How the cost of ours grows: with the batch, the network's width, attack steps, restarts, and draws of the weights.

One thing varies at a time. `exponent` is the slope of log seconds over log size, `r2` how well a line through the times
(a + b size) fits, `fixed` the part a has in the largest: a cost that is linear has exponents near 1 and a near 0.
Width enters a convolution's work squared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from race import Board, clock, race, replay
from subject import EPSILON, STEP, Settings, examples, network

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Threat, Workspace
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams

Work = Callable[[], object]


def attack(settings: Settings, *, batch: int = 0, width: int = 0, steps: int = 2, restarts: int = 1) -> Work:
    width, batch = width or settings.width, batch or settings.batch // 2
    pgd = PGD(PGDParams(steps=steps, step=STEP, restarts=restarts), Threat(EPSILON))
    return partial(pgd.maximise, network(width, ours=True), examples(width, batch), 0)


def flatness(settings: Settings, *, draws: int) -> Work:
    measure = AverageCase(AverageCaseParams(draws=draws, steps=1, step=STEP), Threat(EPSILON))
    count = settings.batch // 2
    return partial(
        measure.measure, network(settings.width, ours=True), examples(settings.width, count), Workspace(batch=count)
    )


SIZES: dict[str, Callable[[Settings], dict[int, Work]]] = {
    "batch": lambda s: {n: attack(s, batch=n) for n in (s.batch // 4, s.batch // 2, s.batch, 2 * s.batch)},
    "width": lambda s: {n: attack(s, width=n) for n in (s.width // 4, s.width // 2, s.width)},
    "steps": lambda s: {n: attack(s, steps=n) for n in (1, 2, 4, 8)},
    "restarts": lambda s: {n: attack(s, restarts=n) for n in (1, 2, 4)},
    "draws": lambda s: {n: flatness(s, draws=n) for n in (2, 4, 8)},
}


@pytest.mark.benchmark(timer=clock, group="growth")
@pytest.mark.parametrize("what", SIZES)
def test_growth_of_ours(what: str, settings: Settings, board: Board, benchmark: Any) -> None:
    works = SIZES[what](settings)
    times = race({str(size): work for size, work in works.items()}, min(settings.rounds, 3))
    sizes = np.array(list(works), dtype=float)
    medians = np.array([statistics.median(times[str(size)]) for size in works])
    slope, constant = np.polyfit(sizes, medians, 1)
    residual = medians - (constant + slope * sizes)
    spread = ((medians - medians.mean()) ** 2).sum()
    row = {
        "grows with": what,
        "sizes": " ".join(map(str, works)),
        "seconds": " ".join(f"{value:.3f}" for value in medians),
        "exponent": float(np.polyfit(np.log(sizes), np.log(medians), 1)[0]),
        "r2": float(1 - (residual**2).sum() / spread),
        "fixed": float(constant / medians[-1]),
    }
    board.table("growth of ours", [row])
    benchmark.extra_info.update(row)
    replay(benchmark, times[str(list(works)[-1])])
