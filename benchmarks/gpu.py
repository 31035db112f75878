"""What a GPU makes of adversarial training: images/s, seconds per epoch, and the fraction of its bf16 matmul peak.

    uv run python benchmarks/gpu.py --record benchmarks/records/gpu.json
    uv run python benchmarks/gpu.py --quick --device cpu                   # whether it runs; its numbers mean nothing

The harness's own loop trains ResNet-18 by AT with PGD-10 on random images of CIFAR-10's shape: two epochs, of which
the second counts. An image costs 23 forward units: 12 passes forward (11 of the attack) and 11 backward, each counted
as one. A unit is two operations for each multiplication of convolutions and head. The peak is that of large square
bfloat16 matrices, the best of several sizes, in the same process. At the end every measure of the suite is read from
one model, on one batch, with the parameters of its description's example.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measures import brief
from subject import SHAPE
from torch import Tensor, nn

from robflat_bench.config.protocol import load
from robflat_bench.config.spec import DatasetRef
from robflat_bench.core import NoValue, Observer, Pool, Threat, Workspace
from robflat_bench.data.splits import Splits
from robflat_bench.evaluation.model import build_model
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.numerics.compilation import Compilation
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import discover
from robflat_bench.runs import environment
from robflat_bench.training.composition import Composition
from robflat_bench.training.inputs import TrainingInputs
from robflat_bench.training.loop import train

UNITS = 23
EPOCH = 50_000


@dataclass(frozen=True)
class Sizes:
    """width: of ResNet-18; images: of an epoch, in whole batches; matrices: sides for the peak; measured: images."""

    width: int = 64
    batch: int = 128
    steps: int = 10
    images: int = 128 * 100
    matrices: tuple[int, ...] = (4096, 8192, 16384)
    measured: int = 128

    @classmethod
    def quick(cls) -> Sizes:
        return cls(width=2, batch=4, steps=2, images=8, matrices=(64,), measured=4)


VARIANTS: dict[str, tuple[bool, bool]] = {
    "eager float32, TF32 off": (False, False),
    "eager bfloat16": (True, False),
    "compiled bfloat16": (True, True),
}
"""Whether under autocast, and whether compiled."""


def waiting(device: str) -> Callable[[], None]:
    """What ends the device's queue."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def peak(sides: tuple[int, ...], device: str, repetitions: int = 20) -> dict[int, float]:
    """Operations per second of square bfloat16 products, by side."""
    found, wait = {}, waiting(device)
    for side in sides:
        one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            one @ other
        wait()
        began = time.perf_counter()
        for _ in range(repetitions):
            one @ other
        wait()
        found[side] = 2 * side**3 * repetitions / (time.perf_counter() - began)
    return found


def operations(model: nn.Module, device: str) -> int:
    """Of one forward of one image: two for each multiplication of its convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.weight[0].numel()  # type: ignore[index,operator,union-attr]

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, SHAPE.channels, SHAPE.size, SHAPE.size, device=device))
    for handle in handles:
        handle.remove()
    return total


def random_splits(count: int) -> Splits:
    """Random bytes of CIFAR-10's shape; a few of them held out."""
    source = np.random.default_rng(0)

    def pool(size: int) -> Pool:
        x = source.integers(0, 256, (size, SHAPE.size, SHAPE.size, SHAPE.channels), dtype=np.uint8)
        return Pool(x, (np.arange(size) % SHAPE.classes).astype(np.uint8), np.arange(size))

    ref = DatasetRef(name="random", checksum="0" * 64, canonical=False, origin="random bytes")
    return Splits({"train": pool(count), "heldout": pool(8), "test": pool(8)}, ref, SHAPE, pool(0))


class Bench:
    """One network and one loop, in three variants."""

    def __init__(self, sizes: Sizes, device: str, method: str = "at") -> None:
        self.sizes, self.device, self.method = sizes, device, method
        self.registry = discover()
        self.splits = random_splits(sizes.images)
        recipe = {"batch_size": sizes.batch, "attack_steps": sizes.steps, "epochs": 2, "attack_step": "2/255"}
        self.protocol = load(
            self.registry, "cifar10-linf", tuple(f"recipe.{name}={json.dumps(value)}" for name, value in recipe.items())
        )
        configure(self.protocol.fixed)

    def model(self) -> nn.Module:
        backbone = f"resnet18(width={self.sizes.width})"
        session = Session(self.registry, self.protocol, self.splits, Store(Path()), self.device)
        return build_model(session, 1, backbone, "relu")

    def epoch(self, reduced: bool, compiled: bool) -> tuple[float, Compilation | None]:
        """Seconds of the second epoch, and how it was compiled."""
        model = self.model()
        session = Compilation(self.device, print) if compiled else None
        if session:
            session.add(model)
        with tempfile.TemporaryDirectory() as folder:
            job = TrainingInputs(
                model=model,
                composition=Composition(compose(self.registry, self.method)),
                helpers={},
                recipe=self.protocol.recipe,
                splits=self.splits,
                seed=1,
                selection=resolve(self.registry, "attack", "pgd(steps=1)").build(Threat(self.protocol.recipe.epsilon)),
                check_every=self.protocol.recipe.epochs,
                evaluation_seed=0,
                folder=Path(folder),
                device=self.device,
                dtype=torch.float32,
                reduced=reduced,
            )
            return train(job, Observer()).history[-1].seconds, session

    def measures(self) -> list[dict[str, Any]]:
        """Seconds of each measure, in every coupling."""
        model, threat = self.model().eval(), Threat(self.protocol.fixed.threat.epsilon)
        initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        here = self.splits.examples("train", self.device, torch.float32, self.sizes.measured)
        plan = choose_plan(self.registry, self.protocol.fixed, "last", (), ("*",), None)
        rows = []
        for row in plan.measures:
            component = brief(resolve(self.registry, "measure", row.measure), self.sizes.measured)
            began, reason = time.perf_counter(), ""
            try:
                component.build(threat).measure(model, here, Workspace(self.sizes.measured, 0, initial=initial))
            except NoValue as error:
                reason = str(error)
            waiting(self.device)()
            rows.append({"measure": row.measure, "seconds": time.perf_counter() - began, "reason": reason})
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs")
    parser.add_argument("--record", type=Path, help="write everything into this JSON file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch finds no CUDA device here; --quick --device cpu shows whether it runs")  # noqa: T201
        return

    sizes = Sizes.quick() if options.quick else Sizes()
    bench = Bench(sizes, options.device)
    products = peak(sizes.matrices, options.device)
    best, unit = max(products.values()), operations(bench.model(), options.device)
    print(f"bf16 matmul peak {best / 1e12:.3g} Tflop/s; a forward unit is {unit / 1e9:.4g} Gflop")  # noqa: T201
    print(f"{'':26s}{'images/s':>12s}{'s per epoch':>14s}{'of peak':>10s}{'x first':>10s}{'compiled in':>14s}")  # noqa: T201
    document: dict[str, Any] = {
        "sizes": vars(sizes),
        "units_per_image": UNITS,
        "operations_per_unit": unit,
        "matmul_peak": {str(side): value for side, value in products.items()},
        "rows": [],
        "measures": [],
        "environment": {**environment.describe(), **environment.torch_environment(options.device)},
    }
    for name, how in VARIANTS.items():
        seconds, session = bench.epoch(*how)
        rate = sizes.images / seconds
        row = {
            "variant": name,
            "images_per_second": rate,
            "seconds_per_epoch": EPOCH / rate,
            "fraction_of_peak": rate * UNITS * unit / best,
            "relative_to_first": rate / document["rows"][0]["images_per_second"] if document["rows"] else 1.0,
            "compiled": session.report() if session else None,
        }
        document["rows"].append(row)
        keep(document, options.record)
        print(  # noqa: T201
            f"{name:26s}{rate:12,.1f}{row['seconds_per_epoch']:14,.1f}{row['fraction_of_peak']:10.1%}"
            f"{row['relative_to_first']:10.2f}{f'{session.seconds:.0f} s' if session else '-':>14s}"
        )
    document["measures"] = bench.measures()
    total = sum(row["seconds"] for row in document["measures"])
    print(f"{len(document['measures'])} measures on {sizes.measured} images: {total:.0f} s")  # noqa: T201
    keep(document, options.record)


def keep(document: dict[str, Any], record: Path | None) -> None:
    """Written after every row: a call whose time is up leaves what it has."""
    if record:
        record.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
