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
from robflat_bench.config.cost import declared_by_measure, passes_of_measure
from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, NoValue, Rescaling, Workspace
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.measures.rescaling import alone, louder, rescaled
from robflat_bench.numerics.folding import pairs
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import malformed, measure_path
from robflat_bench.testing.training import trained_world
from robflat_bench.testing.world import (
    COUNT,
    THREAT,
    Skipped,
    Watched,
    World,
    expect,
    expect_passes,
    leaves_no_trace,
    network,
    remembered,
    watch,
)


def _measure(component: Component, place: World) -> Measurement:
    measure: Measure = component.build(THREAT)
    try:
        return measure.measure(place.model, place.examples, Workspace(COUNT, initial=network().state_dict()))
    except NoValue as reason:
        raise Skipped(f"no value on the kit's network: {reason}") from None


@remembered
def _watched(component: Component, registry: Registry) -> Watched:
    return watch(trained_world(), trained_world(), functools.partial(_measure, component))


def check_value_is_finite(component: Component, registry: Registry) -> None:
    """Its value and details are finite numbers."""
    found = _watched(component, registry).made
    bad = [name for name, value in {"value": found.value, **found.details}.items() if not math.isfinite(value)]
    expect(not bad, f"not finite: {', '.join(bad[:3])}")


def check_standard_error(component: Component, registry: Registry) -> None:
    """Its standard error is finite and not negative, or None, over as many examples as it was given, or fewer."""
    found = _watched(component, registry).made
    error = found.standard_error
    expect(error is None or (math.isfinite(error) and error >= 0), f"the standard error is {error}")
    expect(0 <= found.n <= COUNT, f"n is {found.n}, of {COUNT} examples")


def check_arrays(component: Component, registry: Registry) -> None:
    """What it returns as arrays is what a record keeps: numbers, and of each example one that is finite."""
    path = measure_path("last", "test", component.canonical)
    problems = malformed({f"{path}/{name}": array for name, array in _watched(component, registry).made.arrays.items()})
    expect(not problems, "; ".join(problems))


def check_deterministic(component: Component, registry: Registry) -> None:
    """Equal inputs give equal bits of value, error, details and arrays, whatever the global random state."""
    watched = _watched(component, registry)
    with global_state(generator("kit", 2)):
        again = _measure(component, trained_world())
    expect(_equal(watched.made, again), "two uses differ")


def _equal(one: Measurement, other: Measurement) -> bool:
    numbers = [
        np.array([found.value, found.standard_error or 0.0, found.n, *found.details.values()]) for found in (one, other)
    ]
    arrays = [(numbers[0], numbers[1]), *((one.arrays[name], other.arrays.get(name)) for name in one.arrays)]
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in arrays)  # type: ignore[arg-type]


def check_declared_couplings(component: Component, registry: Registry) -> None:
    """It declares the couplings that its parameter `coupling` takes; without one, `clean` or none."""
    info = component.info
    assert isinstance(info, MeasureInfo)
    field = info.params.model_fields.get("coupling")
    if field is None:
        expect(info.couplings in ((), ("clean",)), f"without a parameter `coupling`, it declares {info.couplings}")
    else:
        taken = get_args(field.annotation)
        expect(set(taken) == {*info.couplings}, f"it takes the couplings {taken}, and declares {info.couplings}")


def check_declared_passes(component: Component, registry: Registry) -> None:
    """It makes the image passes that are declared; no more where they are an upper bound."""
    formulas, declared = declared_by_measure(component), passes_of_measure(component)
    if formulas is None or declared is None:
        raise Skipped("declares no passes: a search decides")
    expect_passes(_watched(component, registry), declared, formulas.at_most)


# ---------------------------------------------------------------------------------------------------------
# Rescalings
# ---------------------------------------------------------------------------------------------------------

FACTOR = 4.0
"""A power of two changes no digit of a float; of four, for who searches on a ladder of such."""


@torch.no_grad()
def _filters(model: nn.Module, examples: Examples, c: float) -> nn.Module:
    """The same function with every other filter of the convolutions that a normalisation follows times c."""
    made = copy.deepcopy(model)
    for (layer, norm), _ in pairs(made, examples.x):
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
    """The same function with what enters every other ReLU within a block times c, and what leaves it by its inverse."""
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


def check_declared_powers(component: Component, registry: Registry) -> None:
    """Weights rescaled by c move its value by the declared power of c (0: it is invariant)."""
    info = component.info
    assert isinstance(info, MeasureInfo)
    if not info.powers:
        raise Skipped("declares no rescaling that moves it by a fixed power")
    value = functools.cache(functools.partial(_rescaled_value, component))
    for rescaling, power in info.powers.items():
        same_at_one = "layers" if rescaling == "units" else rescaling
        before, after = value(same_at_one, 1.0, power != 0), value(rescaling, FACTOR, power != 0)
        if before == 0:
            raise Skipped("its value on the kit's network is 0, which no factor moves")
        expected = before * FACTOR**power
        close = math.isclose(after, expected, rel_tol=1e-3)
        expect(close, f"{rescaling} times {FACTOR:g}: {before:.5g} becomes {after:.5g}, not {expected:.5g}")


def _rescaled_value(component: Component, rescaling: Rescaling, c: float, alone_only: bool) -> float:
    """alone_only: a power other than 0 is that of a network with no other weights than the rescaled ones."""
    place = trained_world()
    place.model = RESCALINGS[rescaling](place.model, place.examples, c)
    if alone_only:
        place.model = alone(place.model, place.examples.x)
    return _measure(component, place).value


CHECKS = (
    check_value_is_finite,
    check_standard_error,
    check_arrays,
    *leaves_no_trace(_watched),
    check_deterministic,
    check_declared_couplings,
    check_declared_passes,
    check_declared_powers,
)
