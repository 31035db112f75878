"""The golden run: the numbers of one tiny run, in `golden.json` with the `NUMERICS` they belong to.

A change that moves a number fails here until `NUMERICS` is raised and the numbers are written anew:

    uv run python tests/runs/test_golden.py

It runs in float64, where the numbers agree across machines to many digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

import robflat_bench
from robflat_bench.config.protocol import load
from robflat_bench.evaluation.session import Session
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import discover
from robflat_bench.runs.run import PlannedRun, execute

GOLDEN = Path(__file__).with_name("golden.json")

PROTOCOL = """
name = "golden"
version = "1.0"
summary = "A few steps of everything."

[fixed]
backbone = "resnet8(width=2)"
precision = "float64"
threads = 1

[fixed.data]
dataset = "digits"
train = { pool = "train", start = 0, stop = 48, count = 48 }
heldout = { pool = "train", start = 48, stop = 64, count = 16 }
test = { pool = "train", start = 64, stop = 84, count = 20 }

[fixed.threat]
epsilon = 0.1

[fixed.selection]
attack = "pgd(steps=1)"

[[fixed.attacks]]
attack = "pgd(steps=3, restarts=2)"
test = 20
train = 10

[[fixed.attacks]]
attack = "fgsm"
test = 20

[[fixed.measures]]
measure = "average-case(xi=0.3, draws=2, steps=2, reference=paper, reference_restarts=2)"
test = 20

[[fixed.measures]]
measure = "worst-case(xi=0.02, restarts=2, steps=2, batch=8)"
test = 20

[recipe]
epochs = 2
batch_size = 16
learning_rate = 0.1
schedule = "one-cycle"
epsilon = 0.1
attack_steps = 2
attack_step = 0.05
"""

METHODS = ("standard", "at", "trades")


def run(method: str, folder: Path) -> dict[str, float]:
    """Every number of the run that its key fixes, by name."""
    file = folder / "golden.toml"
    file.write_text(PROTOCOL)
    registry = discover()
    session = Session(registry, load(registry, str(file)), None, Store(folder), "cpu")
    record = execute(PlannedRun(session, compose(registry, method), 1))
    numbers = {f"epoch {row.epoch}: train loss": row.train_loss for row in record.history}
    numbers |= {f"epoch {row.epoch}: held-out loss": row.heldout_robust_loss for row in record.history}
    for name, result in record.results.items():
        numbers[f"{name}: clean error"] = result.clean_error
        numbers |= {f"{name}: {attack}": pair.test for attack, pair in result.robust_error.items()}
        numbers[f"{name}: robust loss"] = result.robust_loss.test
        numbers |= {f"{name}: {measure}": found.value for measure, found in result.measures.items()}
    return numbers


def pinned() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("method", METHODS)
def test_numbers_move_only_with_numerics(method, tmp_path):
    golden = pinned()
    assert golden["numerics"] == robflat_bench.NUMERICS, "NUMERICS was bumped: write golden.json anew (see above)"
    numbers = run(method, tmp_path)
    assert numbers.keys() == golden["numbers"][method].keys()
    moved = {
        name: (value, golden["numbers"][method][name])
        for name, value in numbers.items()
        if value != pytest.approx(golden["numbers"][method][name], rel=1e-8, abs=1e-10)
    }
    assert not moved, "a number moved: bump robflat_bench.NUMERICS and write golden.json anew (see above)"


def test_the_golden_run_notices_a_loss_that_is_larger_by_a_millionth(tmp_path, monkeypatch):
    from robflat_bench.training import composition

    original = composition.weighted_mean
    monkeypatch.setattr(composition, "weighted_mean", lambda values, weight: original(values, weight) * (1 + 1e-6))
    numbers = run("at", tmp_path)
    assert numbers["epoch 1: train loss"] != pytest.approx(
        pinned()["numbers"]["at"]["epoch 1: train loss"], rel=1e-8, abs=1e-10
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        written = {method: run(method, Path(scratch)) for method in METHODS}
    GOLDEN.write_text(json.dumps({"numerics": robflat_bench.NUMERICS, "numbers": written}, indent=2) + "\n")
    sys.exit(0)
