"""Entries: the evidence below `leaderboard/`, one folder per run. Anyone may submit one, so each is read with distrust.

leaderboard/records/<protocol>/<label>/seed-<n>-<key>/   record.json  outcomes.npz  evaluations/   the run's evidence
                                                         entry.json                 its status and verifications
leaderboard/references/<protocol>.toml                   numbers published elsewhere, never ranked

The tier of an entry follows from its verifications, which lie in entry.json and never in the record. The checks of an
entry against its protocol are in `entry_checks.py`.
"""

from __future__ import annotations

import datetime
import hashlib
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from robflat_bench.config.protocol import Checkpoint, Strict, read_text
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.derived import estimate_problems
from robflat_bench.leaderboard.entry_checks import evaluation_problems, known_protocol, protocol_problems
from robflat_bench.leaderboard.model import TIERS, Reference, Status, Tier
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import validate
from robflat_bench.results.record import EvaluationRecord, RunRecord
from robflat_bench.results.store import RunFolder, Store, read_record, write_json

RECORDS, REFERENCES = "records", "references"
ENTRY = "entry.json"
MAX_OUTCOMES = 64 * 1024 * 1024
"""Size limit, in bytes, of a submitted file of outcomes, packed or unpacked."""

Outcomes = dict[str, np.ndarray]
Evaluations = tuple[tuple[EvaluationRecord, Outcomes], ...]


def _is_a_date(text: str) -> str:
    if datetime.date.fromisoformat(text).isoformat() != text:
        raise ValueError("write YYYY-MM-DD")
    return text


Day = Annotated[str, AfterValidator(_is_a_date)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}$")]


class Verification(Strict):
    """An independent check of an entry: re-evaluated from its weights, or reproduced by training again.

    Attributes
    ----------
    checkpoints : the checkpoints that were checked.
    identical : every outcome is equal bit for bit.
    flags : number of examples with another outcome under an attack, and the number of examples compared.
    deviation : the largest difference of an error rate, a loss or a measure, in standard errors.
    """

    tier: Literal["re-evaluated", "reproduced"]
    date: Day
    checkpoints: tuple[Checkpoint, ...]
    identical: bool
    flags: tuple[int, int]
    deviation: float
    environment: dict[str, Any]
    provenance: dict[str, Any]


class Entry(Strict):
    """The content of entry.json.

    Attributes
    ----------
    record : SHA-256 of record.json.
    weights : checkpoint -> SHA-256.
    reason : why the entry is superseded or retracted.
    superseded_by : key of the run that replaces it.
    """

    schema_version: Literal[1] = 1
    key: str
    record: Digest
    weights: dict[Checkpoint, Digest]
    submitted: Day
    status: Status = "active"
    reason: Line = ""
    superseded_by: Line = ""
    verifications: tuple[Verification, ...] = ()

    @model_validator(mode="after")
    def _withdrawn_for_a_reason(self) -> Entry:
        if (self.status != "active") != bool(self.reason):
            raise ValueError("a superseded or retracted entry needs a reason, an active entry must not have one")
        return self

    @property
    def tier(self) -> Tier:
        """The highest tier that a verification has granted."""
        granted = (verification.tier for verification in self.verifications)
        return max(granted, key=TIERS.index, default=TIERS[0])

    @classmethod
    def of(cls, record: RunRecord, raw: bytes, today: str) -> Entry:
        """The entry of a newly submitted record. raw: the bytes of its record.json."""
        return cls(
            key=record.key,
            record=hashlib.sha256(raw).hexdigest(),
            weights={name: result.weights for name, result in record.results.items()},
            submitted=today,
        )


@dataclass(frozen=True)
class Submission:
    """An entry that passed every check. folder: below `records`. evaluations: added later, each with its outcomes."""

    folder: str
    entry: Entry
    record: RunRecord
    outcomes: Outcomes
    evaluations: Evaluations


# ---------------------------------------------------------------------------------------------------------
# Submitting
# ---------------------------------------------------------------------------------------------------------


def add_entry(root: Path, run: RunFolder, today: str) -> Path:
    """Copy a finished run below `root`; the folder of its entry. An existing entry.json stays as it is.

    Raises CheckFailed where the record disagrees with its outcomes, or the folder holds another record.
    """
    record = run.record()
    run.evaluations()
    target = root / RECORDS / record.spec.folder
    entry = Entry.of(record, run.record_file.read_bytes(), today)
    if (target / ENTRY).is_file():
        known = read_record(target / ENTRY, Entry)
        if known.record != entry.record:
            raise CheckFailed(f"{target} holds another record of this run. To replace it, remove that folder first")
        entry = known
    files = [run.record_file, run.outcomes_file]
    for evaluation in sorted((run.path / "evaluations").glob("*.json")):
        files += [evaluation, evaluation.with_suffix(".npz")]
    for file in files:
        copy = target / file.relative_to(run.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    write_entry(target, entry)
    return target


def write_entry(folder: Path, entry: Entry) -> None:
    """Write entry.json."""
    write_json(folder / ENTRY, entry.model_dump(mode="json"))


# ---------------------------------------------------------------------------------------------------------
# Reading and checking
# ---------------------------------------------------------------------------------------------------------


def folders(root: Path) -> list[Path]:
    """The folders of all entries of a leaderboard, by path."""
    return [run.path for run in Store(root / RECORDS).runs(ENTRY)]


def read_entries(root: Path, registry: Registry) -> tuple[list[Submission], list[str]]:
    """The entries below `root` that pass every check, and the problems of the others."""
    submissions, problems = [], []
    for folder in folders(root):
        try:
            submissions.append(read_entry(root, folder, registry))
        except CheckFailed as error:
            problems.append(str(error))
    return submissions, problems


def read_entry(root: Path, folder: Path, registry: Registry) -> Submission:
    """One entry; raises CheckFailed with its first problem."""
    _only_known_files(folder)
    entry = read_record(folder / ENTRY, Entry)
    record, outcomes, evaluations = _evidence(RunFolder(folder), MAX_OUTCOMES)
    found = Submission(folder.relative_to(root / RECORDS).as_posix(), entry, record, outcomes, evaluations)
    added = [evaluation for evaluation, _ in evaluations]
    evidence: list[tuple[RunRecord | EvaluationRecord, Outcomes]] = [(record, outcomes), *evaluations]
    documents = [one.model_dump(mode="json") for one in (record, *added)]
    for problem in (
        *_identity_problems(found, (folder / "record.json").read_bytes()),
        *protocol_problems(registry, record, outcomes),
        *(problem for one, arrays in evidence for problem in estimate_problems(registry, one.results, arrays)),
        *(problem for evaluation in added for problem in evaluation_problems(record, evaluation)),
        *(problem for document in documents for problem in registry.plugins.problems(document)),
    ):
        raise CheckFailed(f"{folder}: {problem}")
    return found


def store_submissions(store: Path, registry: Registry) -> tuple[list[Submission], Counter[str]]:
    """The finished runs of a store as if they had been submitted, where their protocol is known here; and the number
    of runs under each other protocol. A protocol is known by its hash, not by its name."""
    found, others = [], Counter[str]()
    for run in Store(store).runs("record.json"):
        record, outcomes, evaluations = _evidence(run)
        ref, known = record.protocol, known_protocol(registry, record.protocol.name)
        if known is not None and known.hash == ref.hash:
            entry = Entry.of(record, run.record_file.read_bytes(), "1970-01-01")
            found.append(Submission(record.spec.folder, entry, record, outcomes, evaluations))
        else:
            others[f"{ref.name} {ref.version} ({ref.hash[:8]})"] += 1
    return found, others


def _evidence(run: RunFolder, *limit: int) -> tuple[RunRecord, Outcomes, Evaluations]:
    """A run's record and added evaluations, each checked against its outcomes. limit: bytes of unpacked outcomes."""
    return *run.evidence(*limit), tuple(run.evaluations(*limit))


def _only_known_files(folder: Path) -> None:
    """Refuse links, unknown files and large files: the entry is read on other people's machines."""
    evaluations = folder / "evaluations"
    inside = sorted(evaluations.iterdir()) if evaluations.is_dir() and not evaluations.is_symlink() else []
    for path in (*sorted(folder.iterdir()), *inside):
        name = path.relative_to(folder).as_posix()
        known = name in ("record.json", "outcomes.npz", ENTRY) or (
            path.parent == evaluations and path.suffix in (".json", ".npz")
        )
        if path.is_symlink() or not (path.is_file() if known else path == evaluations):
            raise CheckFailed(f"{folder}: {name!r} does not belong to an entry; remove it")
        if path.stat().st_size > MAX_OUTCOMES:
            raise CheckFailed(f"{path} is larger than {MAX_OUTCOMES} bytes")


def _identity_problems(found: Submission, raw: bytes) -> Iterator[str]:
    """The entry lies in the folder of its spec and describes its record. raw: the bytes of record.json."""
    entry, record = found.entry, found.record
    if found.folder != record.spec.folder:
        yield f"a run of that spec lies in {record.spec.folder}"
    if (entry.key, entry.record) != (record.key, hashlib.sha256(raw).hexdigest()):
        yield "entry.json describes another record; `robflat-bench leaderboard submit RUN` writes it anew"
    if entry.weights != {checkpoint: result.weights for checkpoint, result in record.results.items()}:
        yield "entry.json names other weights than the record"


# ---------------------------------------------------------------------------------------------------------
# Numbers published elsewhere
# ---------------------------------------------------------------------------------------------------------


class _References(Strict):
    rows: tuple[Reference, ...] = ()


def references(root: Path, protocol: str) -> tuple[Reference, ...]:
    """The reference rows of a protocol. Raises UsageError or CheckFailed where their file is not valid."""
    path = root / REFERENCES / f"{protocol}.toml"
    if not path.is_file():
        return ()
    try:
        content = tomllib.loads(read_text(path, "references"))
    except ValueError as error:
        raise CheckFailed(f"{path} is not valid TOML: {error}") from None
    return validate(_References, content, str(path)).rows
