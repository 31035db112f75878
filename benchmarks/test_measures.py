"""Three measures, ours against the way in which public code computes them: values first, then time.

| measure                         | the rival's way                                                                  |
|---------------------------------|----------------------------------------------------------------------------------|
| Hessian trace                   | PyHessian: a gradient for each probe (data loader), or one for all (one batch)   |
| adaptive worst-case sharpness   | Andriushchenko et al.: a deep copy; each step reads its loss in a pass of its own |
| average-case flatness, reattack | Stutz et al.: a deep copy for each draw, weight gradients in the attack          |

Trace and sharpness are of the clean loss, which is all that these implementations know. Rivals draw the numbers that
ours draws, and as many: PyHessian's rule for the number of probes says nothing about the error of the mean.
Networks: ResNet-18, and the digits network of the laptop protocol with `DIGITS` images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import rivals
import torch
from race import Board, clock, race, replay
from subject import EPSILON, STEP, Settings, digits, digits_network, examples, network
from torch import nn

from robflat_bench.core import Examples, Measurement, Threat, Workspace
from robflat_bench.measures.curvature.hessian_trace import HessianTrace, HessianTraceParams
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams
from robflat_bench.measures.sharpness.adaptive_worst import AdaptiveWorst, AdaptiveWorstParams

DIGITS = 250
LOADER = 128
"""Images of a batch of PyHessian's data loader."""
XI, RHO = 0.5, 0.5
SMALL = 4
"""Width of the ResNet-18 on which float64 is compared."""


class Sizes(NamedTuple):
    """How much each measure computes."""

    probes: int
    iterations: int
    draws: int
    steps: int


# ---------------------------------------------------------------------------------------------------------
# Contestants: (network, images, sizes) -> one number for each probe, or one number
# ---------------------------------------------------------------------------------------------------------

Contestant = Callable[[nn.Module, Examples, Sizes], "list[float]"]


def _measured(measure: Any, params: Any, model: nn.Module, here: Examples) -> Measurement:
    found: Measurement = measure(params, Threat(EPSILON)).measure(model, here, Workspace(batch=len(here)))
    return found


def our_trace(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    params = HessianTraceParams(coupling="clean", probes=sizes.probes)
    return list(_measured(HessianTrace, params, model, here).arrays["probes"])


def trace_of_loader(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    batches = list(zip(here.x.split(LOADER), here.y.split(LOADER), strict=True))
    return rivals.hessian_trace(model, batches, sizes.probes)


def trace_of_batch(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    return rivals.hessian_trace_of_one_batch(model, here.x, here.y, sizes.probes)


def our_sharpness(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    params = AdaptiveWorstParams(coupling="clean", rho=RHO, iterations=sizes.iterations)
    return [_measured(AdaptiveWorst, params, model, here).value]


def sharpness(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    return [rivals.adaptive_sharpness(model, here.x, here.y, rho=RHO, iterations=sizes.iterations)]


def our_flatness(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    params = AverageCaseParams(xi=XI, draws=sizes.draws, steps=sizes.steps, step=STEP)
    return [_measured(AverageCase, params, model, here).value]


def flatness(model: nn.Module, here: Examples, sizes: Sizes) -> list[float]:
    how = {"epsilon": EPSILON, "step": STEP, "steps": sizes.steps}
    return [rivals.flatness(model, here.x, here.y, xi=XI, draws=sizes.draws, **how)]  # type: ignore[arg-type]


RIVALS: dict[str, tuple[Contestant, Contestant]] = {
    "hessian trace vs pyhessian, loader": (our_trace, trace_of_loader),
    "hessian trace vs pyhessian, one batch": (our_trace, trace_of_batch),
    "adaptive sharpness vs andriushchenko": (our_sharpness, sharpness),
    "average-case vs stutz": (our_flatness, flatness),
}
NETWORKS = ("resnet18", "digits")


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


@cache
def subject(name: str, settings: Settings, ours: bool) -> tuple[nn.Module, Examples, Sizes]:
    """The network as ours or a rival lays it out, its images, and how much is computed."""
    draws = settings.draws
    if name == "resnet18":
        sizes = Sizes(5 * draws, 5 * draws, draws, settings.flat_steps)
        return network(settings.width, ours=ours), examples(settings.width, settings.batch), sizes
    sizes = Sizes(25 * draws, 10 * draws, 5 * draws, settings.flat_steps)
    return digits_network(ours=ours), digits(min(DIGITS, 4 * settings.batch)), sizes


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rival", RIVALS)
def test_values_of_ours_are_those_of(rival: str, name: str, board: Board) -> None:
    """In float64, on few images of a small network; every probe is compared."""
    here = examples(SMALL, 6, torch.float64) if name == "resnet18" else digits(150, torch.float64)
    make = partial(network, SMALL) if name == "resnet18" else digits_network
    mine, theirs = (
        np.array(of(make(ours=ours, dtype=torch.float64), here, Sizes(3, 20, 2, 5)))
        for of, ours in zip(RIVALS[rival], (True, False), strict=True)
    )
    apart = float(np.abs(mine / theirs - 1).max())
    board.check(f"{rival}, {name}, float64", "largest relative difference", apart, 1e-8)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rival", RIVALS)
def test_float32_values_of_ours_are_those_of(rival: str, name: str, settings: Settings, board: Board) -> None:
    """At the sizes that are timed. A ReLU or a sign that rounding turns moves a value, so the rival differs from itself
    once its network is laid out another way: ours may differ from it three times as much, or by `FLOOR`."""
    ours, theirs = RIVALS[rival]
    mine, found = (np.array(of(*subject(name, settings, of is ours))) for of in (ours, theirs))
    relaid = np.array(theirs(*subject(name, settings, True)))
    apart, alone = (float(np.abs(other / found - 1).max()) for other in (mine, relaid))
    board.check(f"{rival}, {name}", "rival, channels last and not, relative difference", alone)
    board.check(f"{rival}, {name}", "value, relative difference", apart, max(3 * alone, FLOOR))


FLOOR = 1e-3
"""A difference that is below a tenth of every standard error here."""


# ---------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def times(settings: Settings) -> Callable[[str], dict[str, list[float]]]:
    """Of all contestants on a network, in turns."""

    @cache
    def raced(name: str) -> dict[str, list[float]]:
        mine = {of for of, _ in RIVALS.values()}
        both = {of.__name__: of for pair in RIVALS.values() for of in pair}
        work = {who: partial(of, *subject(name, settings, of in mine)) for who, of in both.items()}
        return race(work, settings.rounds)

    return raced


@pytest.mark.benchmark(timer=clock, group="measures vs peers")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rival", RIVALS)
def test_time_of(rival: str, name: str, times: Any, board: Board, benchmark: Any) -> None:
    ours, theirs = (of.__name__ for of in RIVALS[rival])
    found = times(name)
    benchmark.extra_info.update(board.ratio(f"{rival}, {name}", found[ours], found[theirs]))
    replay(benchmark, found[ours])
