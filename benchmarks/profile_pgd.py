"""Where the seconds of our PGD-10 go, by kind of operation: convolutions first, then everything else in order.

uv run python benchmarks/profile_pgd.py --batch 64 --precision bfloat16
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import nullcontext

import torch
from subject import EPSILON, STEP, bfloat16, examples, network

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Threat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model, here = network(options.width, ours=True), examples(options.width, options.batch)
    pgd = PGD(PGDParams(steps=options.steps, step=STEP), Threat(EPSILON))
    with bfloat16(model) if options.precision == "bfloat16" else nullcontext():
        pgd.maximise(model, here, 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            pgd.maximise(model, here, 0)
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profile.key_averages():
        spent[event.key] += event.self_cpu_time_total / 1e6
        calls[event.key] += event.count
    total = sum(spent.values())
    print(f"{total:.3f} s, batch {options.batch}, {options.precision}, {options.threads} threads")  # noqa: T201
    for name in sorted(spent, key=spent.__getitem__, reverse=True)[:25]:
        print(f"{100 * spent[name] / total:6.2f} %  {spent[name]:8.3f} s  {calls[name]:6d}  {name}")  # noqa: T201


if __name__ == "__main__":
    main()
