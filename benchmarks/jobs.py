"""What --jobs saves: the wall time of whole commands with N processes over that with one, side by side.

    uv run python benchmarks/jobs.py --json benchmarks/records/jobs.json                  # needs N idle cores
    uv run python benchmarks/jobs.py --protocol cifar10-mini --data DIR --cases run
    uv run python benchmarks/jobs.py --protocol tiny.toml --rounds 1 --measure margin      # only tries the script

`run` trains and evaluates a method; `measures` evaluates that run by every measure under every coupling. In a round
both commands run one after the other, each in a store of its own, from the start of Python to its end; which is first
alternates. The ratio is the median over rounds. Records must be equal but for times. Training is one process:
`training` is its share of the wall time of the run with one process, so (training + evaluation / N) is the least ratio
that N processes can reach.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robflat_bench.numerics.capacity import cores
from robflat_bench.runs.environment import describe

TIMES = {"seconds", "evaluation_seconds", "peak_memory_bytes"}
"""Keys of a record that may differ."""


@dataclass(frozen=True)
class Bench:
    """The options of this benchmark."""

    jobs: int
    rounds: int
    method: str
    protocol: str
    data: str | None
    settings: tuple[str, ...]
    measure: str

    def command(self, case: str, store: Path, jobs: int) -> list[str]:
        common = ["--protocol", self.protocol, "--store", str(store), "--jobs", str(jobs), "--json"]
        common += ["--data", self.data] if self.data else []
        if case == "run":
            settings = [part for setting in self.settings for part in ("--set", setting)]
            return ["run", "--method", self.method, *settings, *common]
        (folder,) = store.glob("*/*/seed-*")
        return ["evaluate", str(folder), "--measure", self.measure, *common]

    def times(self, case: str, folder: Path, trained: Path) -> Iterator[dict[str, Any]]:
        """One round after the other: seconds of wall time by number of processes, and the share of training."""
        for number in range(self.rounds):
            found: dict[int, tuple[float, dict[str, Any]]] = {}
            for jobs in (1, self.jobs)[:: 1 if number % 2 else -1]:
                store = folder / f"{case}-{number}-{jobs}"
                if case != "run":
                    shutil.copytree(trained, store)
                arguments = [sys.executable, "-m", "robflat_bench", *self.command(case, store, jobs)]
                began = time.perf_counter()
                done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True)
                found[jobs] = time.perf_counter() - began, json.loads(done.stdout)
            (alone, record), (together, other) = found[1], found[self.jobs]
            if without_times(record) != without_times(other):
                sys.exit(f"{case}, round {number + 1}: the records of 1 and {self.jobs} processes differ")
            row = {"1": alone, str(self.jobs): together, "ratio": together / alone}
            if case == "run":
                budget = record["budget"]
                row["training"] = (budget["seconds"] - budget["evaluation_seconds"]) / alone
                row["evaluation"] = budget["evaluation_seconds"] / alone
            say(f"{case}, round {number + 1}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()))
            yield row


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def without_times(document: Any) -> Any:
    """A record without times."""
    if isinstance(document, dict):
        return {key: without_times(value) for key, value in document.items() if key not in TIMES}
    return [*map(without_times, document)] if isinstance(document, list) else document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=["run", "measures"], default=["run", "measures"])
    parser.add_argument("--method", default="at")
    parser.add_argument("--protocol", default="digits-linf")
    parser.add_argument("--data")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--measure", default="*", help="of `measures`")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    settings = tuple(chosen.settings)
    bench = Bench(chosen.jobs, chosen.rounds, chosen.method, chosen.protocol, chosen.data, settings, chosen.measure)
    if cores() < chosen.jobs or os.getloadavg()[0] > cores() - chosen.jobs + 0.5:
        say(f"warning: {chosen.jobs} idle cores are needed; {cores()} are here, load {os.getloadavg()[0]:.1f}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = folder / "trained"
        if "measures" in chosen.cases:
            line = bench.command("run", trained, chosen.jobs)
            subprocess.run([sys.executable, "-m", "robflat_bench", *line], stdout=subprocess.DEVNULL, check=True)
        for case in chosen.cases:
            rows = [*bench.times(case, folder, trained)]
            ratio = statistics.median(row["ratio"] for row in rows)
            found[case] = {"ratio": ratio, "rounds": rows}
            say(f"{case}: {ratio:.3f} of the time of one process, median of {len(rows)} rounds")
    if chosen.json:
        machine = {name: describe()[name] for name in ("cpu", "cores", "packages")}
        document = {"options": vars(bench) | {"settings": list(settings)}, **found, "machine": machine}
        chosen.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
