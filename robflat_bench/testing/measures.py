"""What measures promise, on a network that was trained adversarially."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import nn

from robflat_bench.backbones.blocks import Block
from robflat_bench.core import Examples, MeasureInfo, Rescaling
from robflat_bench.core.estimates import ESTIMATES, contradictions, counted_examples, miscounted
from robflat_bench.measures.rescaling import alone, louder, rescaled
from robflat_bench.numerics.folding import pairs
from robflat_bench.records.record import malformed, measure_path
from robflat_bench.registry.components import Component
from robflat_bench.testing.evaluated import measured, watched
from robflat_bench.testing.expectations import Skipped, expect
from robflat_bench.testing.fixtures import COUNT
from robflat_bench.testing.trial_training import trained_world


def check_value_is_finite(component: Component[MeasureInfo]) -> None:
    """Its value and its details are finite numbers."""
    found = watched(component).made
    bad = [name for name, value in {"value": found.value, **found.details}.items() if not math.isfinite(value)]
    expect(not bad, f"not finite: {', '.join(bad[:3])}")


def check_standard_error(component: Component[MeasureInfo]) -> None:
    """Its standard error is None or finite and not negative, and its n is at most the number of examples."""
    found = watched(component).made
    error = found.standard_error
    expect(error is None or (math.isfinite(error) and error >= 0), f"the standard error is {error}")
    expect(0 <= found.n <= COUNT, f"n is {found.n}, of {COUNT} examples")


def check_estimate(component: Component[MeasureInfo]) -> None:
    """Its numbers follow from its arrays by the estimate that its row names, and these are of all examples and of as
    many draws as its parameters say; without an estimate, there is nothing to check."""
    found, estimate = watched(component).made, component.info.estimate
    if not estimate:
        return
    expect(estimate in ESTIMATES, f"there is no estimate {estimate!r}; there are {', '.join(ESTIMATES)}")
    stated = {**found.details, "value": found.value, "standard_error": found.standard_error, "n": found.n}
    params = component.params.model_dump()
    problems = contradictions(estimate, found.arrays, stated)
    problems += miscounted(estimate, found.arrays, params | counted_examples(COUNT, params))
    expect(not problems, "; ".join(problems))


def check_arrays(component: Component[MeasureInfo]) -> None:
    """A record can keep its arrays: they are numeric, and `per_example` has n finite numbers with the value as mean."""
    path, made = measure_path("last", "test", component.canonical), watched(component).made
    problems = malformed({f"{path}/{name}": array for name, array in made.arrays.items()})
    expect(not problems, "; ".join(problems))
    if (each := made.arrays.get("per_example")) is not None:
        expect(len(each) == made.n, f"n is {made.n}, and `per_example` has {len(each)} numbers")
        mean = float(np.mean(each, dtype=np.float64))
        expect(math.isclose(mean, made.value, rel_tol=1e-9, abs_tol=1e-12), f"its value is not the mean {mean}")


def check_declared_couplings(component: Component[MeasureInfo]) -> None:
    """It declares the couplings that its parameter `coupling` accepts; without that parameter, `clean` or none."""
    info = component.info
    field = info.params.model_fields.get("coupling")
    if field is None:
        expect(info.couplings in ((), ("clean",)), f"without a parameter `coupling`, it declares {info.couplings}")
    else:
        taken = get_args(field.annotation)
        expect(set(taken) == {*info.couplings}, f"it accepts the couplings {taken}, and declares {info.couplings}")


# ---------------------------------------------------------------------------------------------------------
# Rescalings
# ---------------------------------------------------------------------------------------------------------

FACTOR = 4.0
"""A power of two, so that no digit of a float changes; of four, for measures that search on a ladder of powers."""


@torch.no_grad()
def _filters(model: nn.Module, examples: Examples, c: float) -> nn.Module:
    """Multiply every other filter of the convolutions before a normalisation by c; the function stays the same."""
    made = copy.deepcopy(model)
    for layer, norm in pairs(made, examples.x):
        factors = c ** (torch.arange(layer.out_channels) % 2)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        layer.weight.mul_(factors.view(-1, 1, 1, 1))
        norm.running_mean.mul_(factors)
        norm.running_var.add_(norm.eps).mul_(factors**2)  # eps is one number for all filters: let it be 0
        norm.eps = 0.0
    return made


@torch.no_grad()
def _units(model: nn.Module, examples: Examples, c: float) -> nn.Module:
    """Multiply every other ReLU's inputs within a block by c, its outputs by 1/c; the function stays the same."""
    made = copy.deepcopy(model)
    for block in made.modules():
        if isinstance(block, Block):
            factors = c ** (torch.arange(block.norm1.num_features) % 2)
            block.norm1.weight.mul_(factors)
            block.norm1.bias.mul_(factors)
            block.conv2.weight.div_(factors.view(1, -1, 1, 1))
    return made


RESCALINGS: dict[Rescaling, Callable[[nn.Module, Examples, float], nn.Module]] = {
    "layers": lambda model, examples, c: rescaled(model, examples.x, c),
    "filters": _filters,
    "units": _units,
    "logits": louder,
}


def check_declared_powers(component: Component[MeasureInfo]) -> None:
    """Where weights are multiplied by c, its value is multiplied by the declared power of c (power 0: unchanged)."""
    info = component.info
    if not info.powers:
        raise Skipped("its row declares no power of c for any rescaling")
    value = functools.cache(functools.partial(_rescaled_value, component))
    for rescaling, power in info.powers.items():
        same_at_one = "layers" if rescaling == "units" else rescaling
        before, after = value(same_at_one, 1.0, power != 0), value(rescaling, FACTOR, power != 0)
        if before == 0:
            raise Skipped("its value on the kit's network is 0, which no factor changes")
        expected = before * FACTOR**power
        close = math.isclose(after, expected, rel_tol=1e-3)
        expect(close, f"{rescaling} times {FACTOR:g}: {before:.5g} becomes {after:.5g}, not {expected:.5g}")


def _rescaled_value(component: Component[MeasureInfo], rescaling: Rescaling, c: float, alone_only: bool) -> float:
    """The value on the rescaled network; alone_only: without its other weights, as powers other than 0 need."""
    place = trained_world()
    place.model = RESCALINGS[rescaling](place.model, place.examples, c)
    if alone_only:
        place.model = alone(place.model, place.examples.x)
    return measured(component, place).value
