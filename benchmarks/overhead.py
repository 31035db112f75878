"""Where the wall time of a run goes: what the harness adds to passes through the network and attack arithmetic.

    uv run python benchmarks/overhead.py --json benchmarks/records/overhead.json -- \\
        run --method at --protocol cifar10-mini --data ../shared/data --fresh

The command runs in this process, from its imports on, and a thread looks a hundred times a second at where it is.
`passes and attacks`: inside a module's forward, autograd, or attack code; `overhead` is wall time over that.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL = 0.01
PLACES = {
    "passes and attacks": (
        "torch/nn/modules/",
        "torch/nn/functional",
        "torch/autograd/",
        "torch/_tensor",
        "robflat_bench/attacks/",
        "pyautoattack/",
    ),
    "optimizer": ("torch/optim/",),
    "moving weights": ("robflat_bench/measures/", "robflat_bench/numerics/folding"),
    "data": ("robflat_bench/data/",),
    "saving": ("robflat_bench/records/store", "robflat_bench/numerics/weights", "robflat_bench/training/checkpoint"),
    "importing": ("importlib",),
}
"""What a moment counts as: the first place that is anywhere on the stack."""


def place(frame: FrameType | None) -> str:
    files = []
    while frame is not None:
        files.append(frame.f_code.co_filename.replace("\\", "/"))
        frame = frame.f_back
    for name, parts in PLACES.items():
        if any(part in file for part in parts for file in files):
            return name
    return "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("command", nargs="+", help="what comes after `robflat-bench`")
    arguments = parser.parse_args()
    began = time.perf_counter()
    here, done, seen = threading.get_ident(), threading.Event(), Counter[str]()

    def look() -> None:
        while not done.wait(INTERVAL):
            seen[place(sys._current_frames().get(here))] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        from robflat_bench.cli import cli

        cli.main(arguments.command, prog_name="robflat-bench", standalone_mode=False)
    finally:
        done.set()
        watcher.join()
    wall, moments = time.perf_counter() - began, seen.total()
    from robflat_bench.runs import environment

    found = {
        "command": arguments.command,
        "wall_seconds": wall,
        "moments": moments,
        "fractions": {name: count / moments for name, count in seen.most_common()},
        "overhead": moments / seen["passes and attacks"],
        "environment": {**environment.describe(), **environment.torch_environment("cpu")},
    }
    shown = {name: value for name, value in found.items() if name != "environment"}
    print(json.dumps(shown, indent=1))  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
