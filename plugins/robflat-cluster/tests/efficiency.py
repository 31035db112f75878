"""How well a sweep fills two slots of a real SLURM: sum of run seconds / (slots x wall), and the overhead of a job.

    python plugins/robflat-cluster/tests/efficiency.py --runs 30 --epochs 600

Run it on two idle cores. It prints one JSON document. A job's seconds are those between its start and its end as SLURM
saw them; a record's are the run's own, without the start of Python and the import of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from one_machine import NODES, OneMachine, install

from robflat_bench.testing.tiny import tiny_protocol

STUDY = """
name = "efficiency"
version = "1.0"
summary = "Short runs."
protocol = "tiny.toml"

[[groups]]
title = "all"
methods = ["standard"]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=600, help="of three updates each")
    parser.add_argument("--jobs", type=int, default=30, help="in the queue at a time")
    asked = parser.parse_args()
    install()
    with tempfile.TemporaryDirectory() as place, OneMachine(Path(place) / "slurm") as machine:
        os.environ |= machine.environment
        print(json.dumps(measured(Path(place), machine, asked), indent=2))  # noqa: T201


def measured(folder: Path, machine: OneMachine, asked: argparse.Namespace) -> dict[str, float]:
    """Seconds of one sweep."""
    (folder / "tiny.toml").write_text(tiny_protocol("tiny", epochs=asked.epochs, every=asked.epochs))
    (folder / "study.toml").write_text(STUDY)
    words = ["sweep", "study.toml", "--seeds", str(asked.runs), "--launcher", "slurm", "--jobs", str(asked.jobs)]
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "robflat_bench", *words, "--store", "store"],
        cwd=folder,
        env={**os.environ, "ROBFLAT_BENCH_PLUGINS": "robflat-cluster", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    wall = time.monotonic() - began
    table = machine.command("squeue", "--states=all", "--noheader", "--Format=StartTime:|,EndTime:|")
    spans = [[datetime.fromisoformat(text) for text in line.split("|")[:2]] for line in table.splitlines()]
    jobs = sum((end - start).total_seconds() for start, end in spans)
    between = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
    records = [json.loads(file.read_text()) for file in (folder / "store").glob("*/*/seed-*/record.json")]
    own = sum(record["budget"]["seconds"] for record in records)
    return {
        "runs": len(records),
        "jobs": len(spans),
        "wall": wall,
        "wall_of_jobs": between,
        "job_seconds": jobs / len(spans),
        "record_seconds": own / len(records),
        "efficiency": jobs / (len(NODES) * wall),
        "efficiency_from_first_to_last_job": jobs / (len(NODES) * between),
        "efficiency_of_records": own / (len(NODES) * wall),
        "overhead_per_job": (len(NODES) * between - jobs) / len(spans),
        "start_per_run": (jobs - own) / len(spans),
    }


if __name__ == "__main__":
    main()
