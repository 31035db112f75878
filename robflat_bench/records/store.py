"""The store: one folder per run. A file is written whole (temporary file, fsync, rename) or stays as it was.

<store>/<protocol>/<label>/seed-<n>-<key>/   spec.json  history.jsonl  checkpoints/  record.json  outcomes.npz
                                             evaluations/<hash>.json   work/ (units of an unfinished evaluation)
<store>/<protocol>/external/<weights-hash>/  evaluations of a model without a run
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from robflat_bench.config.spec import RunSpec
from robflat_bench.core import CheckFailed, RunFailed, UsageError
from robflat_bench.core.archives import MAX_UNPACKED, arrays_bytes, unpack_arrays
from robflat_bench.core.files import read_regular
from robflat_bench.records import lease
from robflat_bench.records import record as records
from robflat_bench.records.lease import Busy as Busy
from robflat_bench.records.record import EvaluationRecord, Result, RunRecord
from robflat_bench.records.removal import remove, sweep, temporary
from robflat_bench.registry.validation import explain

INITIAL = "initial"
"""The name of the checkpoint before the first step."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into one line: RunFailed for a full disk (the run resumes), else UsageError."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(f"{reason}; free some space and run the same command again, it resumes") from error
        raise UsageError(f"{reason}; choose another folder with --store DIR") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; after a failure the file is as it was before. Lost if another process took the run."""
    _write(path, data, os.replace)


def write_first(path: Path, data: bytes) -> bool:
    """As `write_atomically`, but a file that is there stays as it is; whether there was none."""
    return _write(path, data, _link) is not False


def _link(written: Path, path: Path) -> bool:
    """Give a file its second name; False if there is a file of that name."""
    try:
        os.link(written, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        os.replace(written, path)
    return True


def _write(path: Path, data: bytes, name: Callable[[Path, Path], bool | None]) -> bool | None:
    """Write a temporary file and let `name` give it the name `path`; returns what that returns."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        written = temporary(path.parent)
        try:
            with os.fdopen(os.open(written, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            lease.require(path)
            return name(written, path)
        finally:
            written.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, indented by two spaces; ValueError for NaN and infinity."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def regular_bytes(path: Path, limit: int) -> bytes:
    """The content of a file; CheckFailed if it is no regular file of at most `limit` bytes that can be read."""
    try:
        return read_regular(path, limit)
    except OSError as error:
        raise CheckFailed(f"{path} cannot be read: {error.strerror or error}") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; OSError or ValueError if it cannot be read."""
    return unpack_arrays(read_regular(path, MAX_UNPACKED))


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, or of a model without a run; it need not exist. One process at a time works in it."""

    path: Path

    checkpoints = property(lambda self: self.path / "checkpoints")
    work = property(lambda self: self.path / "work")
    record_file = property(lambda self: self.path / "record.json")
    outcomes_file = property(lambda self: self.path / "outcomes.npz")
    failed_file = property(lambda self: self.path / "failed.json")
    history_file = property(lambda self: self.path / "history.jsonl")
    log_file = property(lambda self: self.path / "log.txt")

    @property
    def store(self) -> Path:
        """The folder of the store that a run's folder lies in: <store>/<protocol>/<label>/seed-<n>-<key>."""
        return self.path.parents[2]

    @property
    def state(self) -> Literal["done", "failed", "unfinished"]:
        return "done" if self.record_file.is_file() else "failed" if self.failed_file.is_file() else "unfinished"

    def weights(self, checkpoint: str) -> Path:
        """The file of a checkpoint: best, last, initial or epoch-N."""
        return Path(self.checkpoints) / f"{checkpoint}.safetensors"

    def kept(self) -> dict[str, int]:
        """The kept epochs, counted from 0, by checkpoint name, in order."""
        names = sorted(path.stem for path in self.checkpoints.glob("epoch-*.safetensors"))
        return {name: int(number) for name in names if (number := name.removeprefix("epoch-")).isdecimal()}

    @contextmanager
    def locked(self, wait: bool = False, told: Callable[[str], None] | None = None) -> Iterator[None]:
        """Exclusive use of the folder. If another process works here: wait for it, or raise Busy with its name.

        `told`: as in `Lease.acquire`.
        """
        with ExitStack() as left:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                lease.Lease(self.path).acquire(left, wait, told)
            sweep(self.path)
            yield

    def worker(self) -> str:
        """Who works here now, in words; "" for nobody."""
        return lease.worker(self.path)

    def clear(self) -> None:
        """Delete everything but the lease; UsageError, with all in place, where that cannot be done."""
        if self.path.is_symlink():
            raise UsageError(f"{self.path} is a link, and what it leads to is not deleted: remove the link yourself")
        entries = (entry for entry in self.path.iterdir() if entry.name != lease.NAME)
        # The record goes first: after a kill in between, the run is unfinished, not finished without its outcomes.
        remove(self.path, sorted(entries, key=lambda entry: (entry != self.record_file, entry.name)))

    def finish(self, record: RunRecord, raw: bytes) -> None:
        """Write outcomes (of `outcomes_bytes`), then the record: the run is done. Delete what only resuming needed."""
        write_atomically(self.outcomes_file, raw)
        write_json(self.record_file, record.model_dump(mode="json"))
        self.failed_file.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        for state in self.checkpoints.glob("state-*.safetensors"):
            state.unlink()

    def evaluation_file(self, key: str) -> Path:
        """The file of the evaluation with this key."""
        return self.path / "evaluations" / f"{key}.json"

    def evaluation(self, key: str) -> EvaluationRecord:
        """The added evaluation with this key; CheckFailed where its file holds another one."""
        path = self.evaluation_file(key)
        found: EvaluationRecord = read_record(path, EvaluationRecord)
        read_outcomes(found, path.with_suffix(".npz"))
        if found.key != key:
            raise CheckFailed(f"{path} holds the evaluation {found.key}; remove it, and evaluate again")
        return found

    def add(self, evaluation: EvaluationRecord, raw: bytes) -> None:
        """Write an evaluation's outcomes (of `outcomes_bytes`) and its record."""
        path = self.evaluation_file(evaluation.key)
        write_atomically(path.with_suffix(".npz"), raw)
        write_json(path, evaluation.model_dump(mode="json"))

    def record(self) -> RunRecord:
        """The finished run's record; CheckFailed if its outcomes give other totals."""
        return self.evidence()[0]

    def evidence(self, limit: int = MAX_UNPACKED) -> tuple[RunRecord, dict[str, np.ndarray]]:
        """The finished run's record and its outcomes; CheckFailed if these give other totals."""
        record: RunRecord = read_record(self.record_file, RunRecord)
        return record, read_outcomes(record, self.outcomes_file, limit)

    def evaluations(self, limit: int = MAX_UNPACKED) -> list[tuple[EvaluationRecord, dict[str, np.ndarray]]]:
        """The added evaluations and their outcomes, sorted by file name; each is checked as the run's record is."""
        found = []
        for path in sorted((self.path / "evaluations").glob("*.json")):
            evaluation = read_record(path, EvaluationRecord)
            found.append((evaluation, read_outcomes(evaluation, path.with_suffix(".npz"), limit)))
        return found


def read_record(path: Path, model: type[Any]) -> Any:
    """The record in a file, validated as `model`; CheckFailed names the file and the first problem."""
    try:
        raw = regular_bytes(path, records.MAX_BYTES)
        _no_key_twice(raw)
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise CheckFailed(f"{path}: {explain(error, model)}") from None
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{path} is not valid JSON: {error}") from None


def _no_key_twice(raw: bytes) -> None:
    """ValueError if a key occurs twice in one object: readers would disagree on its value."""

    def pairs(found: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in found]
        if len({*names}) < len(names):
            raise ValueError(f"the key {max(names, key=names.count)!r:.100} is there twice")

    json.loads(raw, object_pairs_hook=pairs)


def read_outcomes(record: RunRecord | EvaluationRecord, path: Path, limit: int = MAX_UNPACKED) -> dict[str, np.ndarray]:
    """The outcomes of a record; CheckFailed if the record names another file, or they give other totals."""
    try:
        raw = regular_bytes(path, limit)
        if hashlib.sha256(raw).hexdigest() != record.outcomes:
            raise CheckFailed(f"{path} is not the file its record was made with (SHA-256 differs)")
        outcomes = unpack_arrays(raw, limit)
    except ValueError as error:
        raise CheckFailed(f"{path}: {error}") from None
    problems = _problems(record.results, outcomes)
    if problems:
        raise CheckFailed(f"{path.parent}: {problems[0]}")
    return outcomes


def outcomes_bytes(results: Mapping[Any, Result], outcomes: Mapping[str, np.ndarray]) -> bytes:
    """The outcomes of these results as a file; CheckFailed if `read_outcomes` would refuse them."""
    problems = _problems(results, outcomes)
    if problems:
        raise CheckFailed("; ".join(problems))
    return arrays_bytes(outcomes)


def _problems(results: Mapping[Any, Result], outcomes: Mapping[str, np.ndarray]) -> list[str]:
    return records.malformed(outcomes, results) or records.check(results, outcomes)


@dataclass(frozen=True)
class Store:
    """All runs below the folder `root`."""

    root: Path

    def folder(self, spec: RunSpec) -> RunFolder:
        return RunFolder(self.root / spec.folder)

    def runs(self, *holds: str) -> list[RunFolder]:
        """The folders that hold one of these files, sorted by path; by default spec.json, or record.json, which a
        submitted entry has without a spec."""
        names = holds or ("spec.json", "record.json")
        folders = {path.parent for name in names for path in self.root.glob(f"*/*/seed-*/{name}")}
        return [RunFolder(folder) for folder in sorted(folders)]

    def find(self, name: str) -> RunFolder:
        """A run by its folder, or in this store by its key or the beginning of its key."""
        path = Path(name)
        if (path / "spec.json").is_file() or (path / "record.json").is_file():
            return RunFolder(path)
        matches = [run for run in self.runs() if run.path.name.rpartition("-")[2].startswith(name)]
        if len(matches) == 1:
            return matches[0]
        found = f"matches {len(matches)} runs" if matches else "is no run"
        raise UsageError(f"'{name}' {found} in {self.root}; see `robflat-bench results ls --store {self.root}`")
