"""What one training step costs relative to AT's, at equal attack steps, and what EMA's update costs.

    uv run python benchmarks/training_step.py --batch 32 --repetitions 7 --json benchmarks/training_step.json

One ResNet-18 batch of random images; the methods take turns, so that a slow moment of the machine meets all of
them; ratios are of medians. `passes` is the ratio to expect from image passes alone: a forward is 1, a backward to
the input 1, a backward to the weights 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from robflat_bench.attacks.engine import TrainingAttack
from robflat_bench.backbones.parts import initialize
from robflat_bench.config.cost import passes_per_image
from robflat_bench.core import Batch, ImageShape, Training
from robflat_bench.core.randomness import generator
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import discover
from robflat_bench.runs import environment
from robflat_bench.training.composition import Composition

METHODS = ("at", "trades", "at+awp", "fgsm-rs")
SHAPE = ImageShape(3, 32, 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


class Step:
    """One method on its own network, ready to take steps on the same batch."""

    def __init__(self, name: str, batch: Batch, steps: int) -> None:
        registry = discover()
        self.batch, self.steps = batch, steps
        self.model = resolve(registry, "backbone", "resnet18").build(SHAPE, "relu")
        initialize(self.model, generator(0, "init"))
        self.model = self.model.to(batch.x.device, memory_format=torch.channels_last)
        self.composition = Composition(compose(registry, name))
        self.composition.setup(
            Training(self.model, SHAPE, len(batch.y), 8 / 255, {}, lambda: iter([]), lambda: torch.zeros(0))
        )
        self.optimizer = torch.optim.SGD(self.composition.parameters(self.model), lr=0.05, momentum=0.9)

    def __call__(self) -> None:
        source = generator("attack")
        inner = TrainingAttack(
            epsilon=8 / 255, step=2 / 255, steps=self.steps, start="uniform", bn="eval", source=source
        )
        self.composition.update(self.model, self.composition.prepare(self.batch), inner, self.optimizer)


def batch_of(count: int, device: str) -> Batch:
    x = torch.rand(count, 3, 32, 32, generator=generator("images"))
    y = torch.arange(count) % 10
    target = torch.nn.functional.one_hot(y, 10).float()
    tensors = (torch.arange(count), x, y, target, torch.ones(count))
    return Batch(*(tensor.to(device) for tensor in tensors))


def seconds(work: object, device: str) -> float:
    """Of one call, the device's queue empty before and after."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    began = time.perf_counter()
    work()  # type: ignore[operator]
    synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="attack steps of the iterated methods")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    registry, batch = discover(), batch_of(options.batch, options.device)
    work = {name: Step(name, batch, options.steps) for name in METHODS}
    ema = Step("at+ema", batch, options.steps)
    work["EMA's update alone"] = lambda: ema.composition.modifiers["ema"].after_step(ema.model)  # type: ignore[assignment]
    for step in work.values():
        step()  # caches, memory, kernels chosen
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.repetitions):
        for name, step in work.items():
            times[name].append(seconds(step, options.device))

    def units(name: str) -> int | None:
        if name not in METHODS:
            return None
        composed = compose(registry, name)
        forward, backward = passes_per_image(composed, options.steps)
        attack_backward = {"at": options.steps, "trades": options.steps, "at+awp": options.steps, "fgsm-rs": 1}[name]
        return forward + backward + (backward - attack_backward)

    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        {
            "step": name,
            "median_seconds": medians[name],
            "minimum": min(times[name]),
            "maximum": max(times[name]),
            "relative_to_at": medians[name] / medians["at"],
            "passes": None if units(name) is None else units(name) / units("at"),  # type: ignore[operator]
        }
        for name in work
    ]
    for row in rows:
        passes = "" if row["passes"] is None else f", passes alone {row['passes']:.3f}"
        print(f"{row['step']:20s} {row['median_seconds']:8.3f} s  {row['relative_to_at']:6.3f} x AT{passes}")  # noqa: T201
    if options.json:
        about = {key: getattr(options, key) for key in ("batch", "steps", "repetitions", "threads", "device")}
        machine = {**environment.describe(), **environment.torch_environment(options.device)}
        options.json.write_text(json.dumps({**about, "rows": rows, "environment": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
