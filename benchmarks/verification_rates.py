"""How often `leaderboard verify` refuses honest second looks, and grants forged entries.

    OMP_WAIT_POLICY=PASSIVE uv run python benchmarks/verification_rates.py --store /tmp/rates --networks 18
    uv run python benchmarks/verification_rates.py --store /tmp/rates --networks 0      # what the store holds

Trains six methods under digits-linf, one seed after another, and looks at each network again: with two threads, in
memory batches of 125 images, and by training again with two threads. A network and its second looks take about three
minutes of an idle core; finished ones are read from the store. Then prints how many honest second looks are refused,
and how many forgeries are granted. The committed entries are looked at as well: each forged entry beside the true
one's last checkpoint (re-evaluated), and beside the same row's entries of other seeds (reproduced). Forgeries lie
about the last checkpoint. How far two trainings are apart is always read from the other rows of the board.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from robflat_bench.config.protocol import Protocol, load
from robflat_bench.core import CheckFailed
from robflat_bench.evaluation import evaluate as evaluating
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import build_model, initial_weights
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session, configure
from robflat_bench.leaderboard.agreement import agreement
from robflat_bench.leaderboard.entries import Submission
from robflat_bench.leaderboard.publish import read_leaderboard
from robflat_bench.leaderboard.verify import between_trainings, chance_of_training
from robflat_bench.numerics.weights import load_weights, read_weights
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.record import Result, RunRecord
from robflat_bench.records.store import INITIAL, Store
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import discover
from robflat_bench.runs.run import PlannedRun, execute

METHODS = ("at", "trades", "mart", "at+awp", "standard", "n-fgsm")
REGISTRY = discover()


def kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What the file holds; computed and written where there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(compute()))
    return pickle.loads(file.read_bytes())


def session(store: Path, threads: int) -> Session:
    """digits-linf; the best checkpoint under PGD alone, to save time."""
    protocol: Protocol = load(REGISTRY, "digits-linf")
    fixed = protocol.fixed
    first, *others = fixed.attacks
    alone = [row.model_copy(update={"checkpoints": ("last",)}) for row in others]
    measures = [row.model_copy(update={"checkpoints": ("last",)}) for row in fixed.measures]
    changed = fixed.model_copy(update={"threads": threads, "attacks": (first, *alone), "measures": tuple(measures)})
    return Session(REGISTRY, replace(protocol, fixed=changed), None, Store(store / str(threads)), "cpu")


def looked_again(run: PlannedRun, threads: int, batch: int) -> tuple[Any, Any]:
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


class Look(NamedTuple):
    """An entry and an honest second look: at its last checkpoint, or another training.

    training: the spread of trainings on its board.
    """

    entry: RunRecord
    outcomes: Mapping[str, np.ndarray]
    again: Result | RunRecord
    again_outcomes: Mapping[str, np.ndarray]
    training: Mapping[str, float]

    @property
    def refused(self) -> bool:
        """Whether verification refuses the entry."""
        entry, outcomes, again, again_outcomes, training = self
        try:
            if isinstance(again, RunRecord):
                between_trainings(entry, outcomes, again, again_outcomes, training)
            else:
                agreement(entry, outcomes, {"last": again}, again_outcomes, training)
        except CheckFailed:
            return True
        return False


def committed(entries: list[Submission]) -> Iterator[tuple[str, Look]]:
    """Each active entry beside itself, and beside the other seeds of its row."""
    rows = defaultdict(list)
    for one in entries:
        rows[one.record.protocol, one.row].append(one)
    for (protocol, _), seeds in rows.items():
        training = chance_of_training(seeds[0], entries)
        for one, other in itertools.product(seeds, repeat=2):
            again = one.record.results["last"] if other is one else other.record
            kind = f"{protocol.name} {protocol.version}, beside {'itself' if other is one else 'another seed'}"
            yield kind, Look(one.record, one.outcomes, again, other.outcomes, training)


def collected(store: Path, networks: int, entries: list[Submission]) -> Iterator[tuple[str, Look]]:
    """Honest second looks at networks of the store, up to so many of them trained here."""
    one, two = (session(store, threads) for threads in (1, 2))
    rows = {each.record.spec.label: each for each in entries if each.record.protocol.name == "digits-linf"}
    for seed, name in itertools.product(range(1, 100), METHODS):
        run, retrained = (PlannedRun(each, compose(REGISTRY, name), seed) for each in (one, two))
        folder, networks = run.folder.path, networks - 1
        if networks < 0 and not (folder / "batch.pickle").is_file():
            return

        def whole(run: PlannedRun) -> tuple[RunRecord, Any]:
            return kept(run.folder.path / "entry.pickle", lambda: (execute(run), run.folder.evidence()[1]))

        entry, outcomes = whole(run)
        training = chance_of_training(rows[entry.spec.label], entries)
        for kind, threads, batch in (("threads", 2, 250), ("batch", 1, 125)):
            again = kept(folder / f"{kind}.pickle", partial(looked_again, run, threads, batch))
            yield f"re-evaluated, another {kind}", Look(entry, outcomes, *again, training)
        other, its_outcomes = whole(retrained)
        yield "reproduced, two threads", Look(entry, outcomes, other, its_outcomes, training)


# ---------------------------------------------------------------------------------------------------------
# Forgeries
# ---------------------------------------------------------------------------------------------------------


def robust(look: Look, count: int, rng: np.random.Generator) -> Look:
    """So many broken test images withstand every attack."""
    outcomes = {name: array.copy() for name, array in look.outcomes.items()}
    errors = [array for name, array in outcomes.items() if name.startswith("last/test/") and name.endswith("/error")]
    common = min(map(len, errors))
    chosen = rng.permutation(np.flatnonzero(np.logical_or.reduce([error[:common] for error in errors])))[:count]
    for error in errors:
        error[chosen] = False
    return look._replace(outcomes=outcomes)


def raised(look: Look, amount: float, rng: np.random.Generator) -> Look:
    """The robust loss of one training image is higher."""
    name = next(name for name in look.outcomes if name.startswith("last/train/pgd") and name.endswith("/loss"))
    array = look.outcomes[name].copy()
    array[rng.integers(len(array))] += amount
    return look._replace(outcomes={**look.outcomes, name: array})


def flatter(look: Look, factor: float, rng: np.random.Generator) -> Look:
    """Every measure is multiplied by a factor, in its arrays too."""
    last = look.entry.results["last"]
    measures = {
        name: found.model_copy(update={"value": (found.value or 0.0) * factor}) for name, found in last.measures.items()
    }
    forged = last.model_copy(update={"measures": measures})
    entry = look.entry.model_copy(update={"results": {**look.entry.results, "last": forged}})
    outcomes = {name: a * factor if name.endswith("per_example") else a for name, a in look.outcomes.items()}
    return look._replace(entry=entry, outcomes=outcomes)


FORGED: dict[str, Callable[[Look, np.random.Generator], Look]] = {
    **{f"{k} images robust": lambda look, rng, k=k: robust(look, k, rng) for k in (1, 2, 5, 10, 20, 40)},  # type: ignore[misc]
    **{f"a loss + {k:g}": lambda look, rng, k=k: raised(look, k, rng) for k in (1.0, 10.0, 100.0, 1e4)},  # type: ignore[misc]
    **{f"measures x {k:g}": lambda look, rng, k=k: flatter(look, k, rng) for k in (0.99, 0.9, 0.5, 0.4, 0.25)},  # type: ignore[misc]
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--networks", type=int, default=18)
    parser.add_argument("--root", type=Path, default=Path("leaderboard"))
    asked = parser.parse_args()
    looks = defaultdict(list)
    entries = [one for one in read_leaderboard(asked.root, REGISTRY)[0] if one.entry.status == "active"]
    for kind, look in itertools.chain(committed(entries), collected(asked.store, asked.networks, entries)):
        looks[kind].append(look)
    rng = np.random.default_rng(0)
    for kind, found in looks.items():
        print(f"{kind}: n = {len(found)}, honest looks refused: {sum(look.refused for look in found)}")  # noqa: T201
        for name, forge in FORGED.items():
            granted = sum(not forge(look, rng).refused for look in found)
            print(f"    {name:20} granted {granted} of {len(found)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
