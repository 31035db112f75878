"""The runs of a store, for `results ls`, and their removal, for `results prune`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from robflat_bench.config.spec import RunSpec
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.records.quantities import Name, QuantityValue, quantity_values
from robflat_bench.records.removal import TEMPORARY, remove
from robflat_bench.records.store import Busy, Store, read_record


def overview(store: Store) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run with the results of its last checkpoint on test examples, and the problems of unreadable records.

    Returns
    -------
    list of dict
        key, protocol, run, seed, state, folder; worst_case (over all attacks, which boards rank), clean_error,
        robust_error (attack -> value), measures (measure -> value), and n: the numbers of test examples under the same
        names. Errors are fractions, None and {} before a run is finished.
    list of str
        What is wrong with records that cannot be read.
    """
    rows: list[dict[str, Any]] = []
    problems = []
    for run in store.runs():
        try:
            record, outcomes = run.evidence() if run.record_file.is_file() else (None, {})
            spec = record.spec if record else read_record(run.path / "spec.json", RunSpec)
        except CheckFailed as error:
            problems.append(str(error))
            continue
        found = [*quantity_values("last", record.results["last"], outcomes)] if record else []
        rows.append(
            {
                "key": spec.key,
                "protocol": spec.protocol.name,
                "run": spec.label,
                "seed": spec.seed,
                "state": run.state,
                **_by_name(found, "value"),
                "n": _by_name(found, "n"),
                "folder": str(run.path),
            }
        )
    return rows, problems


def _by_name(found: Sequence[QuantityValue], field: Literal["value", "n"]) -> dict[str, Any]:
    """A field of the values on test examples, under the names of a row."""
    test = {(one.quantity, one.of): getattr(one, field) for one in found if one.split == "test"}

    def each(name: Name) -> dict[str, Any]:
        return {of: value for (quantity, of), value in test.items() if quantity == name}

    return {
        "worst_case": next(iter(each("worst_case").values()), None),
        "clean_error": test.get(("clean_error", "")),
        "robust_error": each("robust_error"),
        "measures": each("measure"),
    }


def prune(store: Store, unfinished: bool, weights: bool, really: bool) -> Iterator[dict[str, Any]]:
    """List, or remove, failed runs; records of finished runs always stay.

    Parameters
    ----------
    unfinished
        Include interrupted runs, which could still resume.
    weights
        Include the weights of finished runs.
    really
        Remove what is listed, unless another process works on it or a part of it cannot be removed.
    """
    whole = {"failed", "unfinished"} if unfinished else {"failed"}
    for run in store.runs():
        state, target = run.state, run.path if run.state in whole else run.checkpoints
        if state not in whole and not (weights and state == "done" and target.is_dir()):
            continue
        size = sum(path.lstat().st_size for path in target.rglob("*") if path.is_file())
        row = {"folder": str(target), "state": state, "bytes": size, "removed": False, "error": ""}
        if really:
            try:
                if target.is_symlink():
                    raise UsageError(f"{target} is a link; remove it, or what it leads to, yourself")
                with run.locked():
                    if run.state == state:  # no other process finished it in the meantime
                        remove(target.parent, [target])
                        row["removed"] = True
            except (Busy, UsageError) as error:
                row["error"] = str(error)
        yield row
    for leftover in store.root.glob(f"*/*/{TEMPORARY}*") if really else ():
        shutil.rmtree(leftover, ignore_errors=True)
