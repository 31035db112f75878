"""Entries: the evidence below `leaderboard/`, one folder per run. Anyone may submit one, so each is read with distrust.

leaderboard/records/<protocol>/<label>/seed-<n>-<key>/   record.json  outcomes.npz  evaluations/   the run's evidence
                                                         entry.json                 its status and verifications
leaderboard/references/<protocol>.toml                   numbers published elsewhere, never ranked

The tier of an entry follows from its verifications, which lie in entry.json and never in the record. `submit.py` adds
entries, `tree.py` says which files may lie there, and `entry_checks.py` checks an entry against its protocol.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from robflat_bench.config.protocol import Checkpoint, Digest, content_hash
from robflat_bench.core import CheckFailed, Strict
from robflat_bench.leaderboard.derived import estimate_problems
from robflat_bench.leaderboard.entry_checks import (
    evaluation_problems,
    known_protocol,
    protocol_problems,
    stray_problems,
    twin_problems,
)
from robflat_bench.leaderboard.model import RANKED_AT, TIERS, Reference, Status, Tier
from robflat_bench.leaderboard.tree import ENTRY, KEY, MAX_OUTCOMES, RECORDS, REFERENCES, Problem, read_toml, walk
from robflat_bench.records.record import Count, EvaluationRecord, NonNegative, RunRecord
from robflat_bench.records.store import RunFolder, Store, read_record, write_json
from robflat_bench.registry.registry import Registry

Outcomes = dict[str, np.ndarray]
FIRST_DAY, LAST_DAY = "1970-01-01", "2199-12-31"
Evaluations = tuple[tuple[EvaluationRecord, Outcomes], ...]


def _is_a_date(text: str) -> str:
    if datetime.date.fromisoformat(text).isoformat() != text or not FIRST_DAY <= text <= LAST_DAY:
        raise ValueError(f"write YYYY-MM-DD, from {FIRST_DAY} to {LAST_DAY}")
    return text


Day = Annotated[str, AfterValidator(_is_a_date)]
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
    checkpoints: tuple[Checkpoint, ...] = Field(min_length=1)
    identical: bool
    flags: tuple[Count, Count]
    deviation: NonNegative
    environment: dict[str, Any]
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _is_possible(self) -> Verification:
        changed, compared = self.flags
        if changed > compared or (self.identical and changed):
            raise ValueError(f"flags {changed} of {compared} contradict the rest")
        if len({*self.checkpoints}) < len(self.checkpoints):
            raise ValueError("its checkpoints name one twice")
        if self.tier == "reproduced" and RANKED_AT not in self.checkpoints:
            raise ValueError(f"a training again sees the checkpoint {RANKED_AT}")
        return self


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
    superseded_by: str = Field(default="", pattern=rf"^({KEY})?$")
    verifications: tuple[Verification, ...] = ()

    @model_validator(mode="after")
    def _withdrawn_for_a_reason(self) -> Entry:
        if (self.status != "active") != bool(self.reason):
            raise ValueError("a superseded or retracted entry needs a reason, an active entry must not have one")
        return self

    @property
    def tier(self) -> Tier:
        """The highest tier that a verification of the ranked checkpoint has granted."""
        granted = (each.tier for each in self.verifications if RANKED_AT in each.checkpoints)
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

    @property
    def row(self) -> str:
        """Hash of the run's identity without the seed: the seeds of one row differ in nothing else."""
        identity = self.record.spec.identity
        return content_hash({name: value for name, value in identity.items() if name not in ("seed", "helpers")})


def write_entry(folder: Path, entry: Entry) -> None:
    """Write entry.json."""
    write_json(folder / ENTRY, entry.model_dump(mode="json"))


# ---------------------------------------------------------------------------------------------------------
# Reading and checking
# ---------------------------------------------------------------------------------------------------------


def read_entries(root: Path, registry: Registry) -> tuple[list[Submission], list[Problem]]:
    """The entries below `root` that pass every check, and the problems of the others and of other files there."""
    everything = [*walk(root)]
    problems = [Problem(root / each.place, each.problem) for each in everything if each.problem and not each.entry]
    found = []
    for folder in sorted({each.entry for each in everything} - {""}):
        try:
            found.append(read_entry(root, root / folder, registry))
        except CheckFailed as error:
            problems.append(Problem(root / folder, str(error)))
    return found, [*problems, *(Problem(root / RECORDS / one.folder, why) for one, why in twin_problems(found))]


def read_entry(root: Path, folder: Path, registry: Registry) -> Submission:
    """One entry; raises CheckFailed with its first problem."""
    place = folder.relative_to(root).as_posix()
    for each in walk(root, place):
        if each.problem:
            raise CheckFailed(each.problem)
    entry = read_record(folder / ENTRY, Entry)
    record, outcomes, evaluations = _evidence(RunFolder(folder), MAX_OUTCOMES)
    found = Submission(place.removeprefix(f"{RECORDS}/"), entry, record, outcomes, evaluations)
    added = [evaluation for evaluation, _ in evaluations]
    evidence: list[tuple[RunRecord | EvaluationRecord, Outcomes]] = [(record, outcomes), *evaluations]
    documents = [one.model_dump(mode="json") for one in (record, *added)]
    for problem in chain(  # lazily: a check may rely on those before it
        _identity_problems(found, folder),
        protocol_problems(registry, record, outcomes, entry.status == "active"),
        (problem for one, arrays in evidence for problem in stray_problems(one.results, arrays)),
        (problem for one, arrays in evidence for problem in estimate_problems(registry, one.results, arrays)),
        (problem for evaluation in added for problem in evaluation_problems(record, evaluation)),
        (problem for document in documents for problem in registry.plugins.problems(document)),
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


def _identity_problems(found: Submission, folder: Path) -> Iterator[str]:
    """The entry lies in the folder of its spec, describes its record, and has no evaluation under another's name."""
    entry, record = found.entry, found.record
    digest = hashlib.sha256((folder / "record.json").read_bytes()).hexdigest()
    if found.folder != record.spec.folder:
        yield f"a run of that spec lies in {record.spec.folder}"
    if (entry.key, entry.record) != (record.key, digest):
        yield "entry.json describes another record; `robflat-bench leaderboard submit RUN` writes it anew"
    if entry.weights != {checkpoint: result.weights for checkpoint, result in record.results.items()}:
        yield "entry.json names other weights than the record"
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    if (day := max([entry.submitted, *(each.date for each in entry.verifications)])) > tomorrow.isoformat():
        yield f"entry.json has the date {day}, which has not come yet"
    files = {file.stem: file.suffix for file in sorted((folder / "evaluations").glob("*"))}
    if strange := {*files} ^ {evaluation.key for evaluation, _ in found.evaluations}:
        yield f"evaluations/{min(strange)} is not the evaluation of that key"


# ---------------------------------------------------------------------------------------------------------
# Numbers published elsewhere
# ---------------------------------------------------------------------------------------------------------


class _References(Strict):
    rows: tuple[Reference, ...] = ()


def references(root: Path, protocol: str) -> tuple[Reference, ...]:
    """The reference rows of a protocol. Raises CheckFailed where their file is not valid."""
    return read_toml(root / REFERENCES / f"{protocol}.toml", "references", _References).rows
