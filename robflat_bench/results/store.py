"""Where evidence lies: one folder per run, every file written whole (temporary file, fsync, rename) or not at all.

<store>/<protocol>/<label>/seed-<n>-<key>/   spec.json  history.jsonl  checkpoints/  record.json  outcomes.npz
                                             evaluations/<hash>.json   work/ (units of an unfinished evaluation)
<store>/<protocol>/external/<weights-hash>/  evaluations of a model that has no run
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import ValidationError

from robflat_bench.config.spec import RunSpec
from robflat_bench.core import CheckFailed, Journal, RunFailed, Spent, UsageError, clock
from robflat_bench.registry.validation import explain
from robflat_bench.results import record as records
from robflat_bench.results.record import EvaluationRecord, Result, RunRecord

if TYPE_CHECKING:
    from robflat_bench.numerics.passes import PassCounter


class Busy(RunFailed):
    """Another process works on the run."""


INITIAL = "initial"
"""The checkpoint before the first step."""

MAX_OUTCOMES = 512 * 1024 * 1024


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Disk trouble in one line: a full disk fails the run (which resumes), an unwritable store is configuration."""
    try:
        yield
    except Timeout:  # an OSError, but not the disk's
        raise
    except OSError as error:
        reason = f"cannot write {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(f"{reason}; free some space and run the same command again, it resumes") from error
        raise UsageError(f"{reason}; choose another folder with --store DIR") from error


def write_atomically(path: Path, data: bytes) -> None:
    """All of `data` at `path`, or what was there before."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def arrays_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed .npz whose bytes depend on its content only (no time stamps)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            entry = io.BytesIO()
            # Not ascontiguousarray, which makes a scalar array one-dimensional.
            np.lib.format.write_array(entry, np.asarray(arrays[name], order="C"), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, entry.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_arrays(path: Path, limit: int = MAX_OUTCOMES) -> dict[str, np.ndarray]:
    """The arrays of an .npz; ValueError where it is damaged, unpacks to more than `limit` bytes, or holds anything but
    plain arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise ValueError(f"{path.name} unpacks to more than {limit} bytes")
            return {
                entry.filename.removesuffix(".npy"): np.lib.format.read_array(
                    io.BytesIO(archive.read(entry)), allow_pickle=False
                )
                for entry in archive.infolist()
            }
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # damage raises nearly anything: BadZipFile, MemoryError, OverflowError, TokenError ...
        raise ValueError(f"{path.name} is damaged: {error}") from error


SECONDS, PASSES = "spent.seconds", "spent.passes"
"""What a unit's file holds beside its own arrays."""


class StoredJournal(Journal):
    """Units on disk below `folder`; a damaged unit is computed again. `spent` sums what the units took, in
    whichever process, each once however often it is asked for; `counter` counts their passes."""

    def __init__(
        self,
        folder: Path,
        on_unit: Callable[[], None] = lambda: None,
        counter: PassCounter | None = None,
        parent: StoredJournal | None = None,
    ) -> None:
        self.folder = folder
        self.on_unit = on_unit
        self.counter = counter
        self.parent = parent
        self.spent = Spent()
        self._counted: set[Path] = set()

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        if not re.fullmatch(r"[\w.-]{1,200}", name):
            raise ValueError(f"a unit's name is [\\w.-], not {name!r}")  # it becomes a file's
        path = self.folder / f"{name}.npz"
        try:
            arrays = read_arrays(path)
            spent = _spent(arrays)
        except (ValueError, KeyError, FileNotFoundError):
            began, before = clock.now(), self._passes()
            arrays = dict(compute())
            arrays[SECONDS] = np.array(clock.now() - began)
            arrays[PASSES] = self._passes() - before
            write_atomically(path, arrays_bytes(arrays))
            spent = _spent(arrays)
        journal: StoredJournal | None = self
        while journal is not None:
            if path not in journal._counted:
                journal.spent += spent
                journal._counted.add(path)
            journal = journal.parent
        self.on_unit()
        return {name: array for name, array in arrays.items() if name not in (SECONDS, PASSES)}

    def _passes(self) -> np.ndarray:
        return np.array([self.counter.forward, self.counter.backward] if self.counter else [0, 0])

    def section(self, name: str, counter: PassCounter | None = None) -> StoredJournal:
        folder = hashlib.sha256(name.encode()).hexdigest()[:16]
        return StoredJournal(self.folder / folder, self.on_unit, counter or self.counter, self)


def _spent(unit: Mapping[str, np.ndarray]) -> Spent:
    """What it took to compute; KeyError where another version wrote it."""
    forward, backward = map(int, unit[PASSES])
    return Spent(float(unit[SECONDS]), forward, backward)


class RunFolder:
    """The folder of one run, locked by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    checkpoints = property(lambda self: self.path / "checkpoints")
    work = property(lambda self: self.path / "work")
    record_file = property(lambda self: self.path / "record.json")
    outcomes_file = property(lambda self: self.path / "outcomes.npz")
    failed_file = property(lambda self: self.path / "failed.json")

    @property
    def state(self) -> Literal["done", "failed", "unfinished"]:
        return "done" if self.record_file.is_file() else "failed" if self.failed_file.is_file() else "unfinished"

    def weights(self, checkpoint: str) -> Path:
        """The file of a checkpoint: best, last, initial or epoch-N."""
        return Path(self.checkpoints) / f"{checkpoint}.safetensors"

    def kept(self) -> dict[str, int]:
        """The epochs, counted from 0, at whose end the weights were kept, by checkpoint, in order."""
        names = sorted(path.stem for path in self.checkpoints.glob("epoch-*.safetensors"))
        return {name: int(number) for name in names if (number := name.removeprefix("epoch-")).isdecimal()}

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Exclusive use; if another process works here, wait for it or raise Busy naming it."""
        holder = self.path / "holder.json"
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
        try:
            with disk_errors(self.path):
                lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            try:
                who = json.loads(holder.read_text("utf-8"))
                name = f"process {int(who['pid'])} on {str(who['host'])[:100]!r}"
            except (OSError, ValueError, KeyError, TypeError):
                name = "another process"
            raise Busy(f"{name} is working on this run ({self.path}); wait for it or stop it") from None
        try:
            write_json(holder, {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def clear(self) -> None:
        """Forget everything but the lock (`--fresh`)."""
        for entry in self.path.iterdir():
            if entry.name in (".lock", "holder.json"):
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def finish(self, record: RunRecord, raw: bytes) -> None:
        """Write `outcomes_bytes`, then the record that makes the run count as done; drop what only resuming needed."""
        write_atomically(self.outcomes_file, raw)
        write_json(self.record_file, record.model_dump(mode="json"))
        self.failed_file.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        for state in self.checkpoints.glob("state-*.safetensors"):
            state.unlink()

    def record(self) -> RunRecord:
        """The finished run's record, checked against its outcomes; CheckFailed where they disagree."""
        return self.evidence()[0]

    def evidence(self, limit: int = MAX_OUTCOMES) -> tuple[RunRecord, dict[str, np.ndarray]]:
        """The finished run's record and the outcomes it was made from; CheckFailed where they disagree."""
        record: RunRecord = read_record(self.record_file, RunRecord)
        return record, read_outcomes(record, self.outcomes_file, limit)

    def evaluations(self, limit: int = MAX_OUTCOMES) -> list[tuple[EvaluationRecord, dict[str, np.ndarray]]]:
        """What `evaluate` added and its outcomes, oldest name first; each checked like the record."""
        found = []
        for path in sorted((self.path / "evaluations").glob("*.json")):
            evaluation = read_record(path, EvaluationRecord)
            found.append((evaluation, read_outcomes(evaluation, path.with_suffix(".npz"), limit)))
        return found


def read_record(path: Path, model: type[Any]) -> Any:
    """A record of that model; CheckFailed naming the file and the first problem."""
    try:
        if path.stat().st_size > records.MAX_BYTES:
            raise CheckFailed(f"{path} is larger than {records.MAX_BYTES} bytes")
        raw = path.read_bytes()
        _no_key_twice(raw)
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise CheckFailed(f"{path}: {explain(error, model)}") from None
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise CheckFailed(f"{path} cannot be read: {error.strerror}") from None


def _no_key_twice(raw: bytes) -> None:
    """ValueError for JSON in which readers may see different values under one key, or none at all."""

    def pairs(found: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in found]
        if len({*names}) < len(names):
            raise ValueError(f"the key {max(names, key=names.count)!r:.100} is there twice")

    json.loads(raw, object_pairs_hook=pairs)


def read_outcomes(record: RunRecord | EvaluationRecord, path: Path, limit: int = MAX_OUTCOMES) -> dict[str, np.ndarray]:
    """The outcomes of a record; CheckFailed unless it was made from them and they give its totals."""
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != record.outcomes:
            raise CheckFailed(f"{path} is not the file its record was made with (SHA-256 differs)")
        outcomes = read_arrays(path, limit)
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{path}: {error}") from None
    problems = _problems(record.results, outcomes)
    if problems:
        raise CheckFailed(f"{path.parent}: {problems[0]}")
    return outcomes


def outcomes_bytes(results: Mapping[Any, Result], outcomes: Mapping[str, np.ndarray]) -> bytes:
    """The outcomes as a record of these results is made with; CheckFailed where they could not be read again."""
    problems = _problems(results, outcomes)
    if problems:
        raise CheckFailed("; ".join(problems))
    return arrays_bytes(outcomes)


def _problems(results: Mapping[Any, Result], outcomes: Mapping[str, np.ndarray]) -> list[str]:
    return records.malformed(outcomes, results) or records.check(results, outcomes)


class Store:
    """All runs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, spec: RunSpec) -> RunFolder:
        return RunFolder(self.root / spec.folder)

    def runs(self, *holds: str) -> list[RunFolder]:
        """Every folder in a run's place that holds one of these files, by path: by default a spec, or the record of an
        entry that was submitted."""
        found = (
            path for name in holds or ("spec.json", "record.json") for path in self.root.glob(f"*/*/seed-*/{name}")
        )
        return [RunFolder(folder) for folder in sorted({path.parent for path in found})]

    def find(self, name: str) -> RunFolder:
        """A run by folder, or by key (or the beginning of one) within this store."""
        path = Path(name)
        if (path / "spec.json").is_file() or (path / "record.json").is_file():
            return RunFolder(path)
        matches = [run for run in self.runs() if run.path.name.rpartition("-")[2].startswith(name)]
        if len(matches) == 1:
            return matches[0]
        found = f"matches {len(matches)} runs" if matches else "is no run"
        raise UsageError(f"'{name}' {found} in {self.root}; see `robflat-bench results ls --store {self.root}`")
