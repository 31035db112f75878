"""The same seeds of AT on two processors: does the spread over machines exceed that over seeds?

    uv run python benchmarks/machines.py

Another processor rounds otherwise, so a seed gives another network there, as another seed does. Compared are the pilot
of `cifar10-mini` 2.0 (`records/pilot-mini.json`) and the board's entries. machines: root mean square of the difference
over sqrt(2), over the seeds that ran on both. seeds: standard deviation over seeds, root mean square of both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ENTRIES = HERE.parent / "leaderboard" / "records" / "cifar10-mini" / "at"
QUANTITIES = ("PGD error", "APGD error", "robust loss", "average-case", "clean average-case", "worst-case")


def of_entry(result: dict[str, Any]) -> list[float]:
    """The quantities of a checkpoint of an entry's record."""
    errors = [value["test"] for value in result["robust_error"].values()]
    return [*errors, result["robust_loss"]["test"], *(value["value"] for value in result["measures"].values())]


def of_pilot(result: dict[str, Any]) -> list[float]:
    """The same of the pilot's record."""
    return [result["pgd"], result["apgd"], result["robust_loss"], *(value for value, _ in result["measures"].values())]


def main() -> None:
    pilot = json.loads((HERE / "records" / "pilot-mini.json").read_text("utf-8"))
    there = {run["key"]: run for run in pilot["chosen"]["runs"]}
    entries = [json.loads(file.read_text("utf-8")) for file in sorted(ENTRIES.glob("seed-*/record.json"))]
    pairs = [(entry, there[entry["key"]]) for entry in entries if entry["key"] in there]
    processors = {pilot["environment"]["cpu"], *(entry["environment"]["cpu"] for entry, _ in pairs)}
    sys.stdout.write(f"{len(pairs)} seeds on {' and '.join(sorted(processors))}\n")
    for checkpoint in ("best", "last"):
        here = np.array([of_entry(entry["results"][checkpoint]) for entry, _ in pairs])
        other = np.array([of_pilot(run[checkpoint]) for _, run in pairs])
        machines = np.sqrt(((here - other) ** 2 / 2).mean(axis=0))
        seeds = np.sqrt((here.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)) / 2)
        for name, one, two in zip(QUANTITIES, machines, seeds, strict=True):
            sys.stdout.write(f"{checkpoint}  {name:20s} machines {one:.4f}  seeds {two:.4f}\n")


if __name__ == "__main__":
    main()
