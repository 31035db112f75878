"""Two checkouts side by side: image passes, seconds, peak memory and numbers of the same work, in turn.

    python benchmarks/beside.py --base DIR attack-step run-digits
    python benchmarks/beside.py --base DIR --data DIR --rounds 3 --record benchmarks/records/beside.json

`base` is the package of DIR, a checkout of another commit; `here` is that of this file. Every piece of work is a
process of its own under this Python. Sides take turns to be first. Passes and numbers are exact; ratios are here over
base, medians over rounds. With --record, rounds that an interrupted command left are kept if machine and commits are
the same.

Bisections have no exact value: `overlap` says whether the last brackets of both sides have a point in common.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from race import lines

HERE = Path(__file__).resolve().parent
SIDES = ("base", "here")
Found = dict[str, Any]
"""What one side did in one round: `wall` and `cpu` seconds, `peak_mb`, and `printed`, its JSON document."""
KEPT = ("results", "budget", "declared", "rows", "machine")
"""Parts of the JSON documents that are compared."""
Round = dict[str, Found]
"""Side -> what it did."""


# ---------------------------------------------------------------------------------------------------------
# One piece of work of one side
# ---------------------------------------------------------------------------------------------------------


def work(checkout: Path, *arguments: str) -> Found:
    """Run Python with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "ROBFLAT_BENCH_PLUGINS": "", "ROBFLAT_BENCH_JOBS": "1"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as notes:
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *arguments], env=environment, cwd=tempfile.gettempdir(), stdout=printed, stderr=notes
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        notes.seek(0)
        if child.returncode:
            sys.exit(f"{' '.join(arguments)} under {checkout}:\n{notes.read()[-4000:]}")
        return {
            "wall": wall,
            "cpu": used.ru_utime + used.ru_stime,
            "peak_mb": used.ru_maxrss / 1024,
            "printed": {name: part for name, part in json.loads(printed.read()).items() if name in KEPT},
        }


def commit(checkout: Path) -> str:
    """The commit; with `-dirty` where files differ from it."""
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()


class Work:
    """The cases; each is a method that runs one side once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder

    def command(self, side: Path, *arguments: str) -> Found:
        """A command of robflat-bench, in a store that is removed afterwards."""
        store = Path(tempfile.mkdtemp(dir=self.folder))
        found = work(side, "-m", "robflat_bench", *arguments, "--store", str(store), "--device", "cpu", "--json")
        shutil.rmtree(store)
        return found

    def trained(self) -> Path:
        """The run of TRADES whose network is measured."""
        if self.options.run is None:
            store = self.folder / "trades"
            arguments = ("-m", "robflat_bench", "run", "--method", "trades", "--protocol", self.options.protocol)
            work(self.options.base, *arguments, "--store", str(store), "--device", "cpu", "--json")
            (record,) = store.rglob("record.json")
            self.options.run = record.parent
        return self.options.run  # type: ignore[no-any-return]

    def measures_digits(self, side: Path) -> Found:
        """Every measure of the run; a copy, because a finished evaluation is read from beside the run."""
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        shutil.copytree(self.trained(), copy, ignore=shutil.ignore_patterns("evaluations", "*.lock", "holder.json"))
        found = self.measured(side, copy, self.options.protocol)
        shutil.rmtree(copy.parent)
        return found

    def measures_float64(self, side: Path) -> Found:
        """The same weights under the same protocol in float64; without the weights of the run's first step."""
        given = Path(self.options.protocol)
        file = given if given.suffix else self.options.base / f"robflat_bench/config/protocols/{given}.toml"
        double = self.folder / "float64.toml"
        double.write_text(file.read_text("utf-8").replace('precision = "float32"', 'precision = "float64"'), "utf-8")
        return self.measured(side, self.trained() / "checkpoints" / "last.safetensors", str(double))

    def measured(self, side: Path, model: Path, protocol: str) -> Found:
        asked = ("--measure", self.options.measure, "--examples", str(self.options.examples))
        return self.command(side, "evaluate", str(model), "--protocol", protocol, *asked)

    def case(self, side: Path, name: str) -> Found:
        return work(side, str(HERE / "beside_cases.py"), name)

    def run_mini(self, side: Path) -> Found:
        """AT under the base's cifar10-mini on both sides."""
        data = ("--data", str(self.options.data)) if self.options.data else ()
        protocol = self.options.base / "robflat_bench/config/protocols/cifar10-mini.toml"
        return self.command(side, "run", "--method", "at", "--protocol", str(protocol), *data)

    def run_digits(self, side: Path) -> Found:
        return self.command(side, "run", "--method", "trades")

    def cases(self) -> dict[str, Callable[[Path], Found]]:
        return {
            "measures-digits": self.measures_digits,
            "measures-float64": self.measures_float64,
            "measures-resnet18": lambda side: self.case(side, "measures-resnet18"),
            "attack-step": lambda side: self.case(side, "attack-step"),
            "run-digits": self.run_digits,
            "run-mini": self.run_mini,
        }


ROUNDS = {"measures-float64": 1}
"""Its numbers are compared, not its seconds."""


# ---------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------

BRACKETS: dict[str, Callable[[float, Found], tuple[float, float]]] = {
    "basin-width": lambda value, details: (value - details["residual"] / 2, value + details["residual"] / 2),
    "pac-bayes-sigma": lambda _, details: (
        details["sigma"] - details["residual"] / 2,
        details["sigma"] + details["residual"] / 2,
    ),
    "pac-bayes-sharpness": lambda _, details: (details["alpha"], details["alpha"] + details["residual"]),
}
"""Measure -> the ends of the last bracket of its bisection, from its value and details."""


def passes_of(found: Any) -> int:
    """Forward and backward passes of all parts of a document; a part that counts passes has no counting parts."""
    if not isinstance(found, dict):
        return 0
    if "forward" in found and "backward" in found:
        return int(found["forward"] + found["backward"])
    return sum(map(passes_of, found.values()))


def short(text: str) -> str:
    """`name(coupling)` of a measure's text."""
    coupling = re.search(r'coupling="([a-z]+)"', text)
    return text.partition("(")[0] + (f"({coupling[1]})" if coupling else "")


def measures_of(found: Found) -> dict[str, Found]:
    """Measure -> its result."""
    (result,) = found["printed"]["results"].values()
    return result["measures"]  # type: ignore[no-any-return]


def medians(rounds: list[Round], number: Callable[[Found], float]) -> Found:
    """Of each side, and of the ratios here over base of the rounds."""
    taken = {side: [number(each[side]) for each in rounds] for side in SIDES}
    ratios = [here / base for base, here in zip(*taken.values(), strict=True) if base]
    ratio = statistics.median(ratios) if ratios else None
    return {**{side: statistics.median(taken[side]) for side in SIDES}, "ratio": ratio}


def prefixed(name: str, numbers: Found) -> Found:
    return {f"{side} {name}": number for side, number in numbers.items()}


def compared(name: str, base: Found, here: Found) -> Found:
    """The numbers of one measure on both sides, and their relative difference or whether their brackets overlap."""
    row: Found = {}
    for key, find in {
        "passes": passes_of,
        "value": lambda result: result["value"],
        "standard error": lambda result: result["standard_error"],
        "residual": lambda result: result["details"].get("residual"),
    }.items():
        row |= {f"base {key}": find(base), f"here {key}": find(here)}
    values = base["value"], here["value"]
    if None in values:
        return row | {"difference": 0.0 if values[0] == values[1] else math.inf}
    if bracket := BRACKETS.get(name.partition("(")[0]):
        (low, high), (other_low, other_high) = (bracket(side["value"], side["details"]) for side in (base, here))
        return row | {"overlap": low <= other_high and other_low <= high}
    return row | {"difference": abs(values[0] - values[1]) / (max(map(abs, values)) or 1)}


def measures_table(rounds: list[Round]) -> tuple[list[Found], Found]:
    """A row for each measure; passes, differences and estimates in all."""
    # A text may have another parameter on one side, so the order decides what belongs together.
    texts = list(zip(*(measures_of(rounds[0][side]) for side in SIDES), strict=True))
    rows = []
    for pair in texts:
        name = dict(zip(SIDES, pair, strict=True))
        results = {side: measures_of(rounds[0][side])[name[side]] for side in SIDES}
        row = {"measure": short(name["here"]), **compared(name["here"], results["base"], results["here"])}
        position = texts.index(pair)
        spent = medians(rounds, lambda found, i=position: [*measures_of(found).values()][i]["seconds"])
        rows.append(row | prefixed("seconds", spent))
    valued = [row for row in rows if "difference" in row]
    total: Found = {
        "passes": medians(rounds, lambda found: passes_of(found["printed"]["results"])),
        "measures' seconds": {side: sum(row[f"{side} seconds"] for row in rows) for side in SIDES},
        "values bit-identical": f"{sum(row['difference'] == 0 for row in valued)} of {len(valued)} that do not search",
        "largest relative difference": max(((row["difference"], row["measure"]) for row in valued), default=None),
        "searches apart": [row["measure"] for row in rows if row.get("overlap") is False],
    }
    if declared := {side: rounds[0][side]["printed"].get("declared") for side in SIDES}["base"]:
        total["searches without an estimate"] = sum(passes is None for passes in declared.values())
        total["default passes"] = medians(rounds, lambda found: sum(n or 0 for n in _declared(found)))
        total["default seconds, estimated"] = medians(rounds, default_seconds)
    return rows, total


def _declared(found: Found) -> list[int | None]:
    return [*found["printed"]["declared"].values()]


def default_seconds(found: Found) -> float:
    """At the default parameters: declared passes at each measure's seconds per pass; searches left out."""
    total = 0.0
    for passes, result in zip(_declared(found), measures_of(found).values(), strict=True):
        if passes is not None:
            made = passes_of(result)
            total += result["seconds"] * (passes / made if made else 1)
    return total


def steps_table(rounds: list[Round]) -> tuple[list[Found], Found]:
    """CPU time of each step, and over that of its convolutions."""
    rows = []
    for step, columns in rounds[0]["base"]["printed"]["rows"].items():
        row: Found = {"step": step}
        for column in columns:
            row |= prefixed(column, medians(rounds, lambda f, s=step, c=column: f["printed"]["rows"][s][c]))
        rows.append(row)
    return rows, {}


def run_table(rounds: list[Round]) -> tuple[list[Found], Found]:
    """The budget and the errors of the record."""
    budget = ("forward", "backward", "seconds", "evaluation_seconds")
    rows: list[Found] = [{"": key, **medians(rounds, lambda f, k=key: f["printed"]["budget"][k])} for key in budget]
    base, here = (rounds[0][side]["printed"]["results"] for side in SIDES)
    for checkpoint, result in base.items():
        for attack, errors in {"clean": {"test": result["clean_error"]}, **result["robust_error"]}.items():
            other = here[checkpoint]
            theirs = other["clean_error"] if attack == "clean" else other["robust_error"][attack]["test"]
            rows.append({"": f"{checkpoint}: error, {attack}", "base": errors["test"], "here": theirs})
    return rows, {}


TABLES = {"measures": measures_table, "attack": steps_table, "run": run_table}
"""First word of a case's name -> its table."""


def summary(case: str, rounds: list[Round]) -> Found:
    """All that the rounds of a case say."""
    rows, total = TABLES[case.partition("-")[0]](rounds)
    process = {key: medians(rounds, lambda found, key=key: found[key]) for key in ("wall", "cpu", "peak_mb")}
    return {"rounds": len(rounds), **process, **total, "rows": rows}


# ---------------------------------------------------------------------------------------------------------
# All rounds, the record and what is printed
# ---------------------------------------------------------------------------------------------------------


def absolute(text: str) -> Path:
    """A path that holds in processes which begin in another folder."""
    return Path(text).resolve()


def named(protocol: str) -> str:
    """The name of a protocol, or the absolute path of its file."""
    return str(absolute(protocol)) if protocol.endswith(".toml") else protocol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=absolute, required=True, help="checkout of another commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="JSON file to write, and to go on with")
    parser.add_argument("--run", type=absolute, help="run of digits to measure (default: TRADES, trained by base)")
    parser.add_argument("--protocol", type=named, default="digits-linf", help="of --run: its name or TOML file")
    parser.add_argument("--measure", default="*")
    parser.add_argument("--examples", type=int, default=250)
    parser.add_argument("--data", type=absolute, help="folder of CIFAR-10")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    options = parser.parse_args()
    checkouts = {"base": options.base, "here": HERE.parent}
    with tempfile.TemporaryDirectory() as folder:
        cases = Work(options, Path(folder)).cases()
        if unknown := set(options.cases) - set(cases):
            parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
        about = {
            "commits": {side: commit(checkout) for side, checkout in checkouts.items()},
            "environment": work(checkouts["here"], str(HERE / "beside_cases.py"), "about")["printed"]["machine"],
            "measured": {
                "run": options.run and options.run.name,
                "protocol": Path(options.protocol).name,
                "measure": options.measure,
                "examples": options.examples,
            },
        }
        rounds = kept(options.record, about)
        for case in options.cases or cases:
            done = rounds.setdefault(case, [])
            while len(done) < ROUNDS.get(case, options.rounds):
                order = SIDES if len(done) % 2 == 0 else SIDES[::-1]
                done.append({side: cases[case](checkouts[side]) for side in order})
                if options.record:
                    summaries = {name: summary(name, found) for name, found in rounds.items()}
                    document = about | {"summary": summaries, "rounds": rounds}
                    options.record.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            shown = summary(case, done)
            print("\n".join([case, *lines(shown.pop("rows")), *(f"{name}: {shown[name]}" for name in shown), ""]))  # noqa: T201


def kept(record: Path | None, about: Found) -> dict[str, list[Round]]:
    """The rounds of a record of the same commits, machine and network."""
    found = json.loads(record.read_text("utf-8")) if record and record.is_file() else {}
    same = {name: found.get(name) for name in about} == about
    clean = not any(each.endswith("-dirty") for each in about["commits"].values())
    return found["rounds"] if same and clean else {}


if __name__ == "__main__":
    main()
