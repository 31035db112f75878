"""The runs of a store, for `results ls`, and their removal, for `results prune`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from robflat_bench.config.spec import RunSpec
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.records.removal import TEMPORARY, remove
from robflat_bench.records.store import Busy, Store, read_record


def overview(store: Store) -> tuple[list[dict[str, Any]], list[str]]:
    """Every run with the results of its last checkpoint on test examples, and the problems of unreadable records."""
    rows: list[dict[str, Any]] = []
    problems = []
    for run in store.runs():
        try:
            record = run.record() if run.record_file.is_file() else None
            spec = record.spec if record else read_record(run.path / "spec.json", RunSpec)
        except CheckFailed as error:
            problems.append(str(error))
            continue
        last = record.results["last"] if record else None
        rows.append(
            {
                "key": spec.key,
                "protocol": spec.protocol.name,
                "run": spec.label,
                "seed": spec.seed,
                "state": run.state,
                "clean_error": last.clean_error if last else None,
                "robust_error": {name: pair.test for name, pair in last.robust_error.items()} if last else {},
                "measures": {name: found.value for name, found in last.measures.items()} if last else {},
                "folder": str(run.path),
            }
        )
    return rows, problems


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
