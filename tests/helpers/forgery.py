"""Forged entries: totals, hashes and estimates agree, and one thing is a lie.

    FORGERIES["history-emptied"](folder, np.random.default_rng(0))

A forgery rewrites record.json, outcomes.npz and entry.json of an entry of two checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.fake_records import REGISTRY
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.core.estimates import ESTIMATES
from robflat_bench.records.quantities import autoattack_missed
from robflat_bench.records.record import Gap, TestTrain, totals
from robflat_bench.records.store import read_arrays
from robflat_bench.registry.components import resolve

Forgery = Callable[[Path, np.random.Generator], None]


@dataclass
class Evidence:
    """What an entry says: the JSON of its record, and its outcomes."""

    record: dict[str, Any]
    outcomes: dict[str, np.ndarray]

    @property
    def last(self) -> dict[str, Any]:
        """The result of the last checkpoint."""
        return self.record["results"]["last"]

    def attacks(self) -> list[str]:
        """The attacks on the last checkpoint; the first is the reference."""
        return [*self.last["robust_error"]]

    def arrays(self, split: str, kind: str) -> list[np.ndarray]:
        """The arrays of errors or losses of the last checkpoint on one split."""
        return [array for name, array in self.outcomes.items() if name.startswith(f"last/{split}/") and kind in name]

    def measure(self) -> tuple[str, dict[str, Any]]:
        """The first measure of the last checkpoint that has a value and a standard error."""
        measured = self.last["measures"].items()
        return next((name, one) for name, one in measured if one["standard_error"] and one["value"] is not None)

    def recompute(self) -> None:
        """Every total, count and estimate anew."""
        for checkpoint, result in self.record["results"].items():
            attacks = [*result["robust_error"]]
            for name, value in totals(self.outcomes, checkpoint, attacks).items():
                result[name] = _plain(value)
            result["flags"]["pgd_beats_autoattack"] = autoattack_missed(self.outcomes, checkpoint, attacks)
            for name, measured in result["measures"].items():
                estimate, prefix = resolve(REGISTRY, "measure", name).info.estimate, f"{checkpoint}/measure/{name}/"
                own = {key.removeprefix(prefix): a for key, a in self.outcomes.items() if key.startswith(prefix)}
                if estimate and measured["value"] is not None:
                    numbers = ESTIMATES[estimate](own)
                    measured["details"] |= numbers.pop("details", {})
                    measured |= numbers


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value.model_dump() if isinstance(value, (TestTrain, Gap)) else value


def rewrite(folder: Path, change: Callable[[Evidence], None], *, recompute: bool = True) -> None:
    """Change an entry; afterwards its totals are computed again, unless not `recompute`, and its hashes always."""
    file, arrays, entry = folder / "record.json", folder / "outcomes.npz", folder / "entry.json"
    evidence = Evidence(json.loads(file.read_bytes()), read_arrays(arrays))
    change(evidence)
    if recompute:
        evidence.recompute()
    raw = arrays_bytes(evidence.outcomes)
    arrays.write_bytes(raw)
    evidence.record["outcomes"] = hashlib.sha256(raw).hexdigest()
    file.write_text(json.dumps(evidence.record))
    said = json.loads(entry.read_bytes())
    said["record"] = hashlib.sha256(file.read_bytes()).hexdigest()
    entry.write_text(json.dumps(said))


def turned_robust(count: int, split: str = "test") -> Forgery:
    """So many broken images withstand every attack (their clean errors included)."""

    def forge(folder: Path, rng: np.random.Generator) -> None:
        def change(found: Evidence) -> None:
            errors = found.arrays(split, "/error")
            common = min(map(len, errors))
            broken = np.flatnonzero(np.logical_or.reduce([error[:common] for error in errors]))
            for image in rng.permutation(broken)[:count]:
                for error in errors:
                    error[image] = False

        rewrite(folder, change)

    return forge


def loss_raised(amount: float, split: str = "train") -> Forgery:
    """The robust loss of one image is higher by `amount`."""

    def forge(folder: Path, rng: np.random.Generator) -> None:
        def change(found: Evidence) -> None:
            losses = found.outcomes[f"last/{split}/{found.attacks()[0]}/loss"]
            losses[rng.integers(len(losses))] += amount

        rewrite(folder, change)

    return forge


def measure_lowered(errors: float) -> Forgery:
    """The first measure is flatter by so many of its standard errors, in every array alike."""

    def forge(folder: Path, rng: np.random.Generator) -> None:
        def change(found: Evidence) -> None:
            name, measured = found.measure()
            for array in ("losses", "per_example"):
                found.outcomes[f"last/measure/{name}/{array}"] -= errors * measured["standard_error"]

        rewrite(folder, change)

    return forge


def _record(change: Callable[[dict[str, Any], Evidence], None]) -> Forgery:
    """A lie in the record alone: nothing is computed again."""

    def forge(folder: Path, rng: np.random.Generator) -> None:
        rewrite(folder, lambda found: change(found.record, found), recompute=False)

    return forge


def _clear_flags(record: dict[str, Any], found: Evidence) -> None:
    """Cleared where one is raised; else raised, so that the entry lies either way."""
    flags = found.last["flags"]
    clean = not flags["zero_gradients"] and not flags["random_forward"]
    flags |= {"zero_gradients": 0.5 if clean else 0.0, "random_forward": False}


def _flatter_history(record: dict[str, Any], found: Evidence) -> None:
    for row in record["history"]:
        for name in ("heldout_clean_error", "heldout_robust_error", "heldout_robust_loss"):
            row[name] = row[name] and row[name] / 2


FORGERIES: dict[str, Forgery] = {
    "standard-error-1e9": _record(lambda _, found: found.measure()[1].update(standard_error=1e9)),
    "standard-error-0": _record(lambda _, found: found.measure()[1].update(standard_error=0.0)),
    "standard-error-none": _record(lambda _, found: found.measure()[1].update(standard_error=None)),
    "n-of-a-measure": _record(lambda _, found: found.measure()[1].update(n=100_000)),
    "value-of-a-measure": _record(lambda _, found: found.measure()[1].update(value=found.measure()[1]["value"] / 2)),
    "passes-of-a-measure": _record(lambda _, found: found.measure()[1].update(forward=1, backward=1)),
    "training-loss-raised": loss_raised(10_000.0, "train"),
    "test-loss-raised": loss_raised(10_000.0, "test"),
    "train-loss-of-the-history-raised": _record(
        lambda record, _: record["history"][-1].update(train_loss=record["history"][-1]["train_loss"] + 10_000)
    ),
    "flags-cleared": _record(_clear_flags),
    "history-emptied": _record(lambda record, _: record.update(history=[])),
    "history-cut": _record(lambda record, _: record.update(history=record["history"][:-1])),
    "history-flattered": _record(_flatter_history),
    "budget-of-one-pass": _record(lambda record, _: record["budget"].update(forward=1, backward=1)),
    "budget-halved": _record(lambda record, _: record["budget"].update(forward=record["budget"]["forward"] // 2)),
    "40-images-robust": turned_robust(40),
    "40-training-images-robust": turned_robust(40, "train"),
    "measure-lowered": measure_lowered(5.0),
}
