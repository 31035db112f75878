"""One training in several processes of torchrun (`recipe.shards=4`): the same weights, and the images per second.

    uv run python benchmarks/shards.py weights
    uv run python benchmarks/shards.py speed --json benchmarks/records/shards.json

`weights`: 1, 2 and 4 processes, each training killed once by SIGKILL to one of them and started again; compared, bit
for bit, with an undisturbed training of one process. The network has batch normalisation. Ten minutes on two cores.
`speed`: training images per second of 1 and 2 processes, of one thread each, in turn; needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from robflat_bench.runs.environment import describe

PROTOCOL = """
name = "shards"
version = "1.0"
summary = "A network with batch normalisation on digits."
[fixed]
backbone = "resnet8(width={width})"
precision = "float32"
threads = 1
[fixed.data]
dataset = "digits"
train = {{ pool = "train", start = 0, stop = {images}, count = {images} }}
heldout = {{ pool = "train", start = 1000, stop = 1050, count = 50 }}
test = {{ pool = "train", start = 1050, stop = 1100, count = 50 }}
[fixed.threat]
epsilon = 0.15
[fixed.selection]
every = 5
attack = "pgd(steps=2)"
[[fixed.attacks]]
attack = "pgd(steps=2)"
test = 50
[recipe]
epochs = {epochs}
batch_size = {batch}
learning_rate = 0.05
epsilon = 0.15
attack_steps = {steps}
attack_step = 0.05
shards = 4
"""
SMALL = {"width": 4, "images": 120, "epochs": 6, "batch": 24, "steps": 2}
LARGE = {"width": 32, "images": 960, "epochs": 2, "batch": 64, "steps": 10}
PROGRAM = """
from robflat_bench.training import loop
loop.SAVE_EVERY_SECONDS = {seconds}
from robflat_bench.cli import main
main()
"""
MARK = "ROBFLAT_SHARDS_BENCHMARK"
METHODS = {"at": 0, "trades+awp": -1, "gradalign": 1}
"""Method -> the process that is killed, counted as Python counts."""


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def start(folder: Path, method: str, processes: int, store: str) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    run = ["run", "--method", method, "--protocol", str(folder / "shards.toml"), "--store", str(folder / store)]
    with (folder / f"{store}.log").open("ab") as log:
        return subprocess.Popen(
            [*torchrun, str(folder / "program.py"), *run],
            env={**os.environ, MARK: store, "OMP_NUM_THREADS": "1", "ROBFLAT_BENCH_PLUGINS": ""},
            stdout=log,
            stderr=log,
        )


def finish(folder: Path, method: str, processes: int, store: str) -> Path:
    """The folder of the finished run."""
    if code := start(folder, method, processes, store).wait():
        raise SystemExit(f"exit code {code}: {(folder / f'{store}.log').read_text()}")
    (record,) = (folder / store).rglob("record.json")
    return record.parent


def process_of(store: str, rank: int) -> int:
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK}={store}".encode() in variables and f"RANK={rank}".encode() in variables:
            return int(path.parent.name)
    raise SystemExit(f"no process {rank} of {store}")


def kill_once(folder: Path, method: str, processes: int, rank: int, store: str) -> str:
    """Kill one process during training; returns the state that is left."""
    running = start(folder, method, processes, store)
    while not (states := sorted((folder / store).rglob("state-*.safetensors"))):
        if running.poll() is not None:
            raise SystemExit(f"ended before it was killed: {(folder / f'{store}.log').read_text()}")
        time.sleep(0.02)
    os.kill(process_of(store, rank), signal.SIGKILL)
    if not running.wait(timeout=120) or [*(folder / store).rglob("last.safetensors")]:
        raise SystemExit(f"{store} was not killed during training")
    return max(states).stem


def compare_weights(folder: Path) -> bool:
    prepare(folder, SMALL, seconds=0.05)
    say(f"{'method':12} processes  killed  state left       best and last weights")
    good = True
    for method, which in METHODS.items():
        expected = finish(folder, method, 1, f"{method}-undisturbed") / "checkpoints"
        for processes in (1, 2, 4):
            rank, store = range(processes)[max(-processes, min(which, processes - 1))], f"{method}-{processes}"
            left = kill_once(folder, method, processes, rank, store)
            found = finish(folder, method, processes, store) / "checkpoints"
            files = [f"{name}.safetensors" for name in ("best", "last")]
            same = all((expected / name).read_bytes() == (found / name).read_bytes() for name in files)
            good &= same
            say(f"{method:12} {processes:9} {rank:7}  {left}  {'identical' if same else 'DIFFERENT'}")
    return good


def compare_speed(folder: Path, rounds: int) -> dict:
    prepare(folder, LARGE, seconds=5.0)
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for processes, rates in found.items():
            home = finish(folder, "at", processes, f"{processes}-{number}")
            budget = json.loads((home / "record.json").read_text())["budget"]
            images = LARGE["images"] * LARGE["epochs"]
            rates.append(images / (budget["seconds"] - budget["evaluation_seconds"]))
            say(f"round {number + 1}, {processes} processes: {rates[-1]:.1f} images/s")
    ratio = statistics.median(two / one for one, two in zip(*found.values(), strict=True))
    say(f"2 processes / 1 process: {ratio:.2f} (median of {rounds} rounds; higher is better, 2 is the most)")
    return {"images_per_second": {str(n): rates for n, rates in found.items()}, "ratio": ratio, "training": LARGE}


def prepare(folder: Path, size: dict[str, int], seconds: float) -> None:
    (folder / "shards.toml").write_text(PROTOCOL.format(**size))
    (folder / "program.py").write_text(PROGRAM.format(seconds=seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["weights", "speed"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "weights":
            raise SystemExit(not compare_weights(Path(folder)))
        found = compare_speed(Path(folder), arguments.rounds)
    if arguments.json:
        document = {**found, "environment": describe()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
