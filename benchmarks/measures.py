"""What every measure costs under every coupling, on one batch and one ResNet-18.

    uv run python benchmarks/measures.py --json benchmarks/records/measures.json
    uv run python benchmarks/measures.py --only 'hessian*' --width 16 --images 32

Each is run with the parameters of a quick trial (those of its description's `example`), and its seconds per thousand
image passes are measured; `passes` and `seconds` at the default parameters follow from the formulas it declares and are
estimates: it was not run with them. "search": it decides itself how many passes it makes. The record is written anew
after each measure, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from pathlib import Path
from typing import Any

import torch
from subject import EPSILON, examples, network

from robflat_bench.backbones.parts import initialize
from robflat_bench.config.cost import passes_of
from robflat_bench.config.protocol import load
from robflat_bench.core import NoValue, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import Component, resolve
from robflat_bench.registry.registry import discover
from robflat_bench.runs import environment


def brief(component: Component, images: int) -> Component:
    """With the parameters of a quick trial."""
    quick = dict(component.info.example) | ({"m": images // 2} if component.name == "m-sharpness" else {})
    return Component(component.offer, component.info.params(**{**component.params.model_dump(), **quick}))


def once(component: Component, width: int, images: int) -> tuple[float, PassCounter, float | None, str]:
    """Seconds, passes, value or None, and why there is none."""
    here, model = examples(width, images), network(width, ours=True)
    begun = network(width, ours=True)
    initialize(begun, generator("begun"))
    counter, measure = PassCounter(model), brief(component, images).build(Threat(EPSILON))
    value, reason = None, ""
    began = time.perf_counter()
    try:
        value = measure.measure(model, here, Workspace(images, 0, initial=begun.state_dict())).value
    except NoValue as error:
        reason = str(error)
    return time.perf_counter() - began, counter, value, reason


def measured(component: Component, width: int, images: int) -> dict[str, Any]:
    """One row."""
    spent, counter, value, reason = once(component, width, images)
    passes = counter.forward + counter.backward
    declared = passes_of(component)
    row: dict[str, Any] = {
        "measure": component.name,
        "coupling": getattr(component.params, "coupling", "-"),
        "seconds": spent,
        "forward": counter.forward,
        "backward": counter.backward,
        "s_per_1000_passes": 1000 * spent / passes if passes else None,
        "default_passes": "search" if declared is None else sum(declared) * images,
        "default_seconds_estimate": "search"
        if declared is None
        else spent / passes * sum(declared) * images
        if passes
        else spent,
        "value": value,
    }
    return row | ({"reason": reason} if reason else {})


def kept(record: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record of the same network, images and machine, which an interrupted run left."""
    found = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    return found.pop("rows") if {name: found.get(name) for name in about} == about else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="*", help="a pattern of measures' names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    registry = discover()
    plan = choose_plan(registry, load(registry).fixed, "last", (), ("*",), None)
    found = [resolve(registry, "measure", row.measure) for row in plan.measures]
    chosen = [component for component in found if fnmatch.fnmatch(component.name, options.only)]
    machine = {**environment.describe(), **environment.torch_environment("cpu")}
    about = {"images": options.images, "width": options.width, "threads": options.threads, "environment": machine}
    rows: list[dict[str, Any]] = kept(options.json, about) if options.json else []
    done = {(row["measure"], row["coupling"]) for row in rows}
    columns = ("seconds", "forward", "backward", "s_per_1000_passes", "default_passes", "default_seconds_estimate")
    print(f"{'measure(coupling)':34s}" + "".join(f"{name:>26s}" for name in columns))  # noqa: T201
    for component in chosen:
        if (component.name, getattr(component.params, "coupling", "-")) in done:
            continue
        once(component, 4, 8)  # what it imports, and what torch sets up at its first use
        row = measured(component, options.width, options.images)
        rows.append(row)
        cells = (f"{v:.3f}" if isinstance(v := row[name], float) else "-" if v is None else str(v) for name in columns)
        name = f"{row['measure']}({row['coupling']})"
        print(f"{name:34s}" + "".join(f"{cell:>26s}" for cell in cells), row.get("reason", ""), flush=True)  # noqa: T201
        if options.json:
            options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", "utf-8")
    total = sum(row["seconds"] for row in rows)
    estimates = [value for row in rows if isinstance(value := row["default_seconds_estimate"], float)]
    print(  # noqa: T201
        f"{len(rows)} measures: {total:.0f} s as run; about {sum(estimates):.0f} s at the default parameters, "
        f"without the {len(rows) - len(estimates)} that search"
    )


if __name__ == "__main__":
    main()
