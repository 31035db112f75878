"""Every measure under every coupling, its declarations, and networks rescaled without changing the function."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.measures import REGISTRY, stir
from robflat_bench.core import Examples, MeasureInfo, Measurement, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.registry.components import resolve

THREAT = Threat(0.05)

SEED = 5

SHAPES, NORMS = ("layer", "filter", "element", "global"), ("l2", "linf")
every_ball = pytest.mark.parametrize(("shape", "norm"), list(itertools.product(SHAPES, NORMS)))


def written(name: str, params: dict[str, Any]) -> str:
    """The component's text, as a user writes it."""
    text = ", ".join(f"{key}={str(value).lower()}" for key, value in params.items())
    return f"{name}({text})" if text else name


def measured(
    name: str, model: nn.Module, examples: Examples, place: Workspace | None = None, **params: Any
) -> Measurement:
    measure = resolve(REGISTRY, "measure", written(name, params)).build(THREAT)
    found: Measurement = measure.measure(model, examples, place or Workspace(batch=100, seed=SEED))
    assert math.isfinite(found.value)
    return found


def declared(name: str) -> MeasureInfo:
    info = REGISTRY.get("measure", name.partition("(")[0]).info
    assert isinstance(info, MeasureInfo)
    return info


def every() -> Iterator[str]:
    """Each measure under each coupling that it takes, e.g. lpf(coupling=clean)."""
    for name in REGISTRY.names("measure"):
        chosen = declared(name).couplings if "coupling" in declared(name).params.model_fields else ()
        yield from [f"{name}(coupling={coupling})" for coupling in chosen] or [name]


ALL = list(every())

every_measure = pytest.mark.parametrize("text", ALL)

TIGHT: dict[str, dict[str, Any]] = {
    "average-case": {"xi": 0.3, "draws": 3},
    "worst-case": {"xi": 0.3, "restarts": 2, "strong_steps": 3},
    "adaptive-average": {"rho": 0.3, "draws": 3},
    "lpf": {"std": 0.3, "draws": 3},
    "local-entropy": {"draws": 8, "gamma": 100},
    "pac-bayes-sigma": {"draws": 3, "tolerance": 1e-7, "largest": 50, "target": 0.05},
    "basin-width": {"directions": 2, "tolerance": 1e-7},
    "hessian-lambda-max": {"tolerance": 1e-9},
    "hessian-trace": {"probes": 3},
    "weighted-curvature": {"probes": 3, "tolerance": 1e-7},
    "sam-sharpness": {"rho": 0.5},
    "m-sharpness": {"rho": 0.5, "m": 10, "iterations": 3},
    "adaptive-worst": {"iterations": 5, "starts": 2},
    "keskar": {"epsilon": 0.05, "iterations": 5},
    "pac-bayes-sharpness": {"iterations": 4},
    "boundary-thickness": {"radius": 0.4, "points": 64},
    "gradient-alignment": {"draws": 2},
    "probabilistic-error": {"draws": 20},
    "soft-rank": {"probes": 2, "nodes": 30},
    "spectral-norm": {"iterations": 2000, "tolerance": 1e-11},
}


def tight(text: str, **changes: Any) -> dict[str, Any]:
    """Parameters of a measure and its coupling under which a factor shows up to rounding."""
    name, coupling = ([*text.rstrip(")").split("(coupling="), ""])[:2]
    steps = {"steps": 3} if "steps" in declared(name).params.model_fields else {}
    return {"name": name, **steps, **({"coupling": coupling} if coupling else {}), **TIGHT.get(name, {}), **changes}


class TwoLayers(nn.Module):
    """Images [B,1,4,4] -> 3 logits: two convolutions, each with a bias, a normalisation without eps and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.conv1, self.norm1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=0)
            self.conv2, self.norm2 = nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6, eps=0)
            self.head = nn.Linear(6, 3)
            stir(self)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu()
        logits: Tensor = self.head(x.flatten(1))
        return logits


def perceptron() -> nn.Sequential:
    """Images [B,1,4,4] -> 3 logits, one layer of ReLUs, biases."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    with torch.no_grad():
        net[1].weight *= 3
        net[1].bias -= net[1].weight.sum(1) / 2  # pixels have mean 1/2
        net[3].weight *= 3
    return net


def fixed(head: nn.Linear) -> None:
    """Turn the layer's parameters into buffers, so that no measure moves them."""
    for name in ("weight", "bias"):
        tensor = getattr(head, name).detach()
        delattr(head, name)
        head.register_buffer(name, tensor)


def exponents(count: int) -> Tensor:
    return torch.linspace(-1, 1.2, count, dtype=torch.float64)


@torch.no_grad()
def rescaled(kind: str, c: float, moving_head: bool) -> nn.Module:
    """The network, with: every convolution times c; each of their output channels times its own power of c; what
    enters each ReLU unit times its own power and what leaves it by the inverse; the last layer times c."""
    net: Any = perceptron() if kind == "units" else TwoLayers()
    if not moving_head:
        fixed(net[3] if kind == "units" else net.head)
    if kind == "units":
        factors = c ** exponents(6)
        net[1].weight *= factors[:, None]
        net[1].bias *= factors
        net[3].weight /= factors
    elif kind == "logits":
        net.head.weight *= c
        net.head.bias *= c
    else:
        for conv, norm in ((net.conv1, net.norm1), (net.conv2, net.norm2)):
            count = conv.out_channels
            factors = c ** (exponents(count) if kind == "filters" else torch.ones(count).double())
            conv.weight *= factors[:, None, None, None]
            conv.bias *= factors
            norm.running_mean *= factors
            norm.running_var *= factors**2
    return net


def examples_of(model: nn.Module, count: int = 30) -> Examples:
    """Images with labels; the model misclassifies every seventh."""
    x = torch.rand(count, 1, 4, 4, generator=generator("rescaled"), dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    wrong = torch.arange(count) % 7 == 3
    return Examples(x, torch.where(wrong, (y + 1) % 3, y), torch.arange(count))


INITIAL = {
    name: torch.full_like(tensor, 0.1)
    for net in (TwoLayers(), perceptron())
    for name, tensor in net.state_dict().items()
}

HERE = Workspace(batch=100, seed=SEED, initial=INITIAL)


def value(text: str, rescaling: str, c: float, *, moving_head: bool, **changes: Any) -> float:
    """The measure's value on the rescaled network, with the images and labels of the original network."""
    examples, model = examples_of(rescaled(rescaling, 1.0, moving_head)), rescaled(rescaling, c, moving_head)
    return measured(model=model, examples=examples, place=HERE, **tight(text, **changes)).value
