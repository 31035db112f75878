"""The cases of `beside.py` that no command of ours runs. One process per case, whose package is that of either side.

It prints one JSON document. Only names are used that both sides have.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from limit import Limit
from subject import SHAPE, examples, network
from torch.nn import functional as F

import robflat_bench as rb
from robflat_bench.attacks.engine import attacked, cross_entropy
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.backbones.parts import initialize
from robflat_bench.config.cost import passes_of
from robflat_bench.config.protocol import load
from robflat_bench.core import Examples, ImageShape, Threat
from robflat_bench.core.randomness import generator
from robflat_bench.evaluation.model import layout
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.numerics.folding import folded
from robflat_bench.registry.components import Component, resolve
from robflat_bench.registry.registry import Registry, discover
from robflat_bench.runs import environment


def about() -> dict[str, Any]:
    """The machine and what is installed."""
    return {"machine": {**environment.describe(), **environment.torch_environment("cpu")}}


# ---------------------------------------------------------------------------------------------------------
# Measures on ResNet-18
# ---------------------------------------------------------------------------------------------------------


def every_measure(registry: Registry) -> list[Component]:
    """Every measure under every coupling, with its default parameters."""
    plan = choose_plan(registry, load(registry).fixed, "last", (), ("*",))
    return [resolve(registry, "measure", row.measure) for row in plan.measures]


QUICK = {"pac-bayes-sigma": {"draws": 2, "steps": 2, "tolerance": 0.25}}
"""Quick parameters where both sides have not had the same ones."""


def quick(component: Component, images: int) -> str:
    """The text of a measure with the parameters of a quick trial."""
    less = {**component.info.example, **QUICK.get(component.name, {})}
    less |= {"m": images // 2} if component.name == "m-sharpness" else {}
    return Component(component.offer, component.info.params(**{**component.params.model_dump(), **less})).canonical


def measures_resnet18(width: int = 64, images: int = 32, threads: int = 2) -> dict[str, Any]:
    """One evaluation with every measure; per measure the image passes that the defaults declare (None: a search)."""
    here, components = examples(width, images), every_measure(discover())
    texts = {quick(component, images): component for component in components}
    with tempfile.TemporaryDirectory() as store:
        found = rb.evaluate(
            network(width, ours=False),
            data=(here.x, here.y, here.index),
            protocol="cifar10-linf",
            settings=[f"fixed.threads={threads}"],
            measures=[*texts],
            store=store,
            device="cpu",
            progress=False,
        )
        results = found.record.model_dump(mode="json")["results"]
    declared = {text: passes_of(component) for text, component in texts.items()}
    return {
        "results": results,
        "declared": {text: images * sum(passes) if passes else None for text, passes in declared.items()},
    }


# ---------------------------------------------------------------------------------------------------------
# Steps of the laptop networks
# ---------------------------------------------------------------------------------------------------------

LAPTOP: dict[str, tuple[ImageShape, str, int]] = {
    "cifar10-mini": (SHAPE, "resnet8(width=24, stem_stride=2, strides=[2, 2, 1])", 64),
    "digits": (ImageShape(1, 8, 10, (0.3,), (0.3,)), "resnet8(width=8)", 50),
}
"""Name -> images, network and batch."""
REPETITIONS = 15


def median_ms(work: Callable[[], object]) -> float:
    """CPU time of one call, which other processes hardly change on one thread."""
    times = []
    for _ in range(2 + REPETITIONS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times[2:])


def steps_of(shape: ImageShape, backbone: str, batch: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds of one step of each kind, and those of its convolutions alone."""
    model = resolve(discover(), "backbone", backbone).build(shape, "relu")
    initialize(model, generator("benchmark weights"))
    x = torch.rand(batch, shape.channels, shape.size, shape.size, generator=generator("benchmark images"))
    y = torch.arange(batch) % shape.classes
    with torch.no_grad():
        model.train()(x)  # running statistics as a trained network's
    model = model.eval().to(memory_format=layout(model))
    here = Examples(x, y, torch.arange(batch))

    def attack_step() -> None:
        variable = x.clone().requires_grad_()
        torch.autograd.grad(cross_entropy(y)(model(variable)).sum(), variable)

    def training_step() -> None:
        F.cross_entropy(model(x), y).backward()
        for parameter in model.parameters():
            parameter.grad = None

    def pgd(steps: int) -> float:
        return median_ms(lambda: PGD(PGDParams(steps=steps), Threat(8 / 255)).maximise(model, here, 0))

    found = {}
    limit = Limit(model, x)
    with attacked(model), folded(model, x):
        found["gradient of the images, folded"] = median_ms(attack_step)
    limit(REPETITIONS)
    found["step of PGD: (PGD-21 - PGD-1) / 20"] = (pgd(21) - pgd(1)) / 20
    limit(REPETITIONS)
    model.train()
    found["training step, batch statistics"] = median_ms(training_step)
    limit(REPETITIONS)
    bounds = 2 * [limit.seconds(forward=1, inputs=1)] + [limit.seconds(forward=1, outer=1)]
    return {
        name: {"ms": found[name], "limit_ms": 1000 * bound, "over_limit": found[name] / (1000 * bound)}
        for name, bound in zip(found, bounds, strict=True)
    }


def attack_step() -> dict[str, Any]:
    """One thread."""
    torch.set_num_threads(1)
    found = {name: steps_of(*network) for name, network in LAPTOP.items()}
    return {"rows": {f"{network}: {step}": row for network, rows in found.items() for step, row in rows.items()}}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "about": about,
    "measures-resnet18": measures_resnet18,
    "attack-step": attack_step,
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]]()))  # noqa: T201
