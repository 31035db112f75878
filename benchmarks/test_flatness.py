"""Average-case flatness of the robust loss, ours against a textbook loop: value, time, and memory.

Memory is what torch's CPU allocator hands out, as its profiler reports each allocation and release (so neither what
oneDNN keeps for itself nor numpy's arrays count), on one image, where activations are small beside the weights; what
one attack takes, which moves no weight, is given beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import rivals
import torch
from limit import Limit
from race import Board, clock, race, replay
from subject import EPSILON, STEP, Settings, examples, network
from torch import nn

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Threat, Workspace
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams

XI = 0.5


def ours(model: nn.Module, here: Examples, draws: int, steps: int) -> float:
    params = AverageCaseParams(xi=XI, draws=draws, steps=steps, step=STEP)
    return AverageCase(params, Threat(EPSILON)).measure(model, here, Workspace(batch=len(here))).value


def textbook(model: nn.Module, here: Examples, draws: int, steps: int) -> float:
    return rivals.flatness(model, here.x, here.y, xi=XI, draws=draws, epsilon=EPSILON, step=STEP, steps=steps)


def test_flatness_of_ours_is_the_textbooks(board: Board) -> None:
    """In float64, on a small network."""
    here = examples(4, 8, torch.float64)
    mine, theirs = (
        work(network(4, ours=mine, dtype=torch.float64), here, 2, 5) for work, mine in ((ours, True), (textbook, False))
    )
    # Ours accumulates losses in float64 and moves weights by float64 draws, as the textbook does.
    board.check("flatness float64", "difference", abs(mine - theirs), 1e-10)


@pytest.fixture(scope="module")
def here(settings: Settings) -> Examples:
    return examples(settings.width, settings.batch)


@pytest.fixture(scope="module")
def times(settings: Settings, here: Examples) -> dict[str, Any]:
    model = network(settings.width, ours=True)
    limits = {"limit-fp32": Limit(model, here.x)}
    work: dict[str, Callable[[], object]] = {
        "ours-fp32": partial(ours, model, here, settings.draws, settings.flat_steps),
        "textbook": partial(textbook, network(settings.width, ours=False), here, settings.draws, settings.flat_steps),
    }
    return race({**work, **limits}, settings.rounds) | limits


def test_flatness_value(settings: Settings, board: Board, here: Examples) -> None:
    """In float32. A sign that rounding turns moves a pixel by a whole step, so the textbook differs from itself, too,
    once its network is laid out another way: that is reported beside ours."""
    work = f"flatness, {settings.draws} draws, {settings.batch} images"
    mine, theirs, relaid = (
        of(network(settings.width, ours=mine), here, settings.draws, settings.flat_steps)
        for of, mine in ((ours, True), (textbook, False), (textbook, True))
    )
    board.check(work, "value of ours", mine)
    board.check(work, "textbook, channels last and not, relative difference", abs(relaid / theirs - 1))
    board.check(work, "value, relative difference", abs(mine / theirs - 1), 1e-3)


@pytest.mark.benchmark(timer=clock, group="flatness vs textbook")
@pytest.mark.parametrize("who", ["ours-fp32", "textbook"])
def test_flatness_ours_vs_textbook(
    who: str, settings: Settings, board: Board, times: dict[str, Any], benchmark: Any
) -> None:
    if who == "ours-fp32":
        name = f"flatness, {settings.draws} draws, vs textbook [{who}]"
        attacks, steps = settings.draws + 1, settings.flat_steps
        limit = times["limit-fp32"].seconds(forward=attacks * (steps + 1), inputs=attacks * steps)
        benchmark.extra_info.update(board.ratio(name, times[who], times["textbook"], limit))
    replay(benchmark, times[who])


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch's CPU allocator had handed out at once, beyond what it had before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_flatness_memory(settings: Settings, board: Board) -> None:
    """As multiples of the weights; a report."""
    here, model = examples(settings.width, 1), network(settings.width, ours=True)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    attack = PGD(PGDParams(steps=2, step=STEP), Threat(EPSILON))
    attack.maximise(model, here, 0)  # looks once at how the network is built
    works: dict[str, Callable[[], object]] = {
        "our attack alone": lambda: attack.maximise(model, here, 0),
        "our flatness": lambda: ours(model, here, 2, 2),
        "textbook flatness": lambda: textbook(network_of_textbook, here, 2, 2),
    }
    network_of_textbook = network(settings.width, ours=False)
    textbook(network_of_textbook, here, 2, 1)
    board.table(
        "peak memory beyond the model, one image, multiples of its weights",
        [{"work": name, "peak / weights": peak_bytes(work) / weights} for name, work in works.items()],
    )
