"""How often `leaderboard verify` refuses honest second looks, and grants forged entries.

    uv run python benchmarks/verification_rates.py --store /tmp/rates --seeds 3 --epochs 8

Trains six methods under digits-linf, and looks at each network again: with two threads, in memory batches of 125 images,
and by training again with two threads. A network and its evaluations take about three minutes; finished ones are read
from the store. Then prints, for each tier, how many honest second looks are refused and how many forgeries are granted.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robflat_bench.config.protocol import Protocol, load
from robflat_bench.evaluation import evaluate as evaluating
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import build_model, initial_weights
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.numerics.weights import load_weights, read_weights
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import discover
from robflat_bench.results.store import INITIAL, Store, StoredJournal
from robflat_bench.runs.run import Run, execute

METHODS = ("at", "trades", "mart", "at+awp", "standard", "n-fgsm")
REGISTRY = discover()


def kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What the file holds; computed and written where there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(compute()))
    return pickle.loads(file.read_bytes())


def session(store: Path, epochs: int, threads: int) -> Session:
    """digits-linf in few epochs; the best checkpoint under PGD alone, to save time."""
    protocol: Protocol = load(REGISTRY, "digits-linf", (f"recipe.epochs={epochs}",))
    fixed = protocol.fixed
    first, *others = fixed.attacks
    alone = [row.model_copy(update={"checkpoints": ("last",)}) for row in others]
    measures = [row.model_copy(update={"checkpoints": ("last",)}) for row in fixed.measures]
    changed = fixed.model_copy(update={"threads": threads, "attacks": (first, *alone), "measures": tuple(measures)})
    return Session(REGISTRY, replace(protocol, fixed=changed), None, Store(store), "cpu")


def looked_again(run: Run, threads: int, batch: int) -> tuple[Any, Any]:
    """Result and outcomes of the last checkpoint."""
    configure(run.session.fixed)
    torch.set_num_threads(threads)
    evaluating.MEMORY_BATCH = batch
    try:
        model, folder = build_model(run.session, run.seed), run.folder
        load_weights(model, read_weights(folder.weights("last")), "last")
        subject = EvaluatedModel(model, "last", None, initial_weights(folder.weights(INITIAL)))
        journal = StoredJournal(folder.path / f"again-{threads}-{batch}")
        return evaluate(run.session, Plan.of(run.session.fixed, "last"), subject, journal)
    finally:
        evaluating.MEMORY_BATCH = 250


def collect(store: Path, seeds: int, epochs: int) -> None:
    one, two = (session(store / str(threads), epochs, threads) for threads in (1, 2))
    for seed in range(1, seeds + 1):
        for name in METHODS:
            run, again = (Run(each, compose(REGISTRY, name), seed) for each in (one, two))
            found = {
                "entry": kept(run.folder.path / "entry.pickle", lambda: (execute(run), run.folder.evidence()[1])),
                "threads": kept(run.folder.path / "threads.pickle", lambda: looked_again(run, 2, 250)),
                "batch": kept(run.folder.path / "batch.pickle", lambda: looked_again(run, 1, 125)),
                "retrained": kept(
                    again.folder.path / "entry.pickle", lambda: (execute(again), again.folder.evidence()[1])
                ),
            }
            print(seed, name, {k: len(v[1]) for k, v in found.items()}, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    asked = parser.parse_args()
    collect(asked.store, asked.seeds, asked.epochs)
