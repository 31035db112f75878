"""What lies below `leaderboard/`: one folder per run, read as a stranger's, for anyone may send one.

leaderboard/records/<protocol>/<label>/seed-<n>-<key>/   record.json  outcomes.npz  evaluations/   the run's evidence
                                                         entry.json                 what is said about it
leaderboard/references/<protocol>.toml                   numbers published elsewhere, never ranked

The tier is what verifications say, never what a record says of itself.
"""

from __future__ import annotations

import datetime
import hashlib
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import Attacked, Checkpoint, Measured, Protocol, Strict, load, read_text
from robflat_bench.config.spec import RunSpec, make_spec
from robflat_bench.core import CheckFailed, RobflatError
from robflat_bench.leaderboard.model import TIERS, Reference, Status, Tier
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import validate
from robflat_bench.results.record import EvaluationRecord, RunRecord
from robflat_bench.results.store import MAX_OUTCOMES as MAX_UNPACKED
from robflat_bench.results.store import RunFolder, Store, read_record, write_json

RECORDS, REFERENCES = "records", "references"
ENTRY = "entry.json"
MAX_OUTCOMES = 64 * 1024 * 1024
"""Bytes of a submitted file of outcomes, packed or unpacked."""

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
    """Somebody else's look at an entry: re-evaluated from its weights, or reproduced from its spec.

    checkpoints: which were looked at. identical: every outcome equal bit for bit. flags: examples with another outcome
    under an attack, and of how many. deviation: the largest difference of an error rate or a measure, in standard
    errors.
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
    """What is said about a run. record: SHA-256 of record.json. weights: of each checkpoint. reason: why it is not
    active any more. superseded_by: the key of the run that takes its place."""

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
            raise ValueError("an entry that is superseded or retracted has a reason, an active one has none")
        return self

    @property
    def tier(self) -> Tier:
        """The highest that a verification has granted."""
        granted = (verification.tier for verification in self.verifications)
        return max(granted, key=TIERS.index, default=TIERS[0])


@dataclass(frozen=True)
class Submission:
    """An entry that passed every check. folder: below `records`. evaluations: what was measured later, with its
    outcomes."""

    folder: str
    entry: Entry
    record: RunRecord
    outcomes: Outcomes
    evaluations: Evaluations


# ---------------------------------------------------------------------------------------------------------
# Submitting
# ---------------------------------------------------------------------------------------------------------


def submit(root: Path, run: RunFolder, today: str) -> Path:
    """Pack a finished run below `root`; its folder there. An entry that is there already keeps what is said about it.

    CheckFailed where the run's record disagrees with its outcomes, or another record lies there.
    """
    record = run.record()
    run.evaluations()
    target = root / RECORDS / record.spec.folder
    raw = run.record_file.read_bytes()
    entry = _entry(record, raw, today)
    if (target / ENTRY).is_file():
        known = read_record(target / ENTRY, Entry)
        if known.record != entry.record:
            raise CheckFailed(f"{target} holds another record of this run; remove it first if yours is to replace it")
        entry = known
    target.mkdir(parents=True, exist_ok=True)
    (target / "record.json").write_bytes(raw)
    (target / "outcomes.npz").write_bytes(run.outcomes_file.read_bytes())
    for path in sorted((run.path / "evaluations").glob("*.json")):
        (target / "evaluations").mkdir(exist_ok=True)
        for file in (path, path.with_suffix(".npz")):
            (target / "evaluations" / file.name).write_bytes(file.read_bytes())
    write_entry(target, entry)
    return target


def write_entry(folder: Path, entry: Entry) -> None:
    write_json(folder / ENTRY, entry.model_dump(mode="json"))


# ---------------------------------------------------------------------------------------------------------
# Reading and checking
# ---------------------------------------------------------------------------------------------------------


def folders(root: Path) -> list[Path]:
    """Every entry's folder below a leaderboard, by path."""
    return [run.path for run in Store(root / RECORDS).runs(ENTRY)]


def read(root: Path, registry: Registry) -> tuple[list[Submission], list[str]]:
    """Every entry below `root` that passes every check, and what is wrong with the others."""
    submissions, problems = [], []
    for folder in folders(root):
        try:
            submissions.append(read_entry(root, folder, registry))
        except CheckFailed as error:
            problems.append(str(error))
    return submissions, problems


def read_entry(root: Path, folder: Path, registry: Registry) -> Submission:
    """One entry; CheckFailed with the first thing that is wrong with it."""
    _only_known_files(folder)
    entry = read_record(folder / ENTRY, Entry)
    record, outcomes, evaluations = _evidence(RunFolder(folder), MAX_OUTCOMES)
    raw = (folder / "record.json").read_bytes()
    name = folder.relative_to(root / RECORDS).as_posix()
    for problem in (
        *_identity_problems(name, entry, record, hashlib.sha256(raw).hexdigest()),
        *_protocol_problems(registry, record, outcomes),
        *(_evaluation_problems(record, evaluation) for evaluation, _ in evaluations),
        *(
            problem
            for one in (record, *(evaluation for evaluation, _ in evaluations))
            for problem in registry.plugins.problems(one.model_dump(mode="json"))
        ),
    ):
        if problem:
            raise CheckFailed(f"{folder}: {problem}")
    return Submission(name, entry, record, outcomes, evaluations)


def own(store: Path, registry: Registry) -> tuple[list[Submission], Counter[str]]:
    """The finished runs of a store, under protocols that are known here, as if they had been submitted; and how many
    are under which others (a name alone does not make a protocol: its hash must be the same)."""
    found, others = [], Counter[str]()
    for run in Store(store).runs("record.json"):
        record, outcomes, evaluations = _evidence(run)
        ref, known = record.protocol, known_protocol(registry, record.protocol.name)
        if known is not None and known.hash == ref.hash:
            entry = _entry(record, run.record_file.read_bytes(), "1970-01-01")
            found.append(Submission(record.spec.folder, entry, record, outcomes, evaluations))
        else:
            others[f"{ref.name} {ref.version} ({ref.hash[:8]})"] += 1
    return found, others


def _evidence(run: RunFolder, limit: int = MAX_UNPACKED) -> tuple[RunRecord, Outcomes, Evaluations]:
    """A run's record and what was measured later, each with its outcomes, checked, each file read once."""
    return *run.evidence(limit), tuple(run.evaluations(limit))


def _entry(record: RunRecord, raw: bytes, today: str) -> Entry:
    return Entry(
        key=record.key,
        record=hashlib.sha256(raw).hexdigest(),
        weights={name: result.weights for name, result in record.results.items()},
        submitted=today,
    )


def _only_known_files(folder: Path) -> None:
    """No links, nothing else, nothing large: what is committed is read by machines of other people."""
    evaluations = folder / "evaluations"
    inside = sorted(evaluations.iterdir()) if evaluations.is_dir() and not evaluations.is_symlink() else []
    for path in (*sorted(folder.iterdir()), *inside):
        name = path.relative_to(folder).as_posix()
        known = name in ("record.json", "outcomes.npz", ENTRY) or (
            path.parent == evaluations and path.suffix in (".json", ".npz")
        )
        if path.is_symlink() or not (path.is_file() if known else path == evaluations):
            raise CheckFailed(f"{folder}: {name!r} does not belong to an entry")
        if path.stat().st_size > MAX_OUTCOMES:
            raise CheckFailed(f"{path} is larger than {MAX_OUTCOMES} bytes")


def _identity_problems(name: str, entry: Entry, record: RunRecord, digest: str) -> Iterator[str]:
    if name != record.spec.folder:
        yield f"a run of that spec lies in {record.spec.folder}"
    if entry.key != record.key or entry.record != digest:
        yield "entry.json is about another record; `robflat-bench leaderboard submit RUN` writes it anew"
    if entry.weights != {checkpoint: result.weights for checkpoint, result in record.results.items()}:
        yield "entry.json names other weights than the record"


@lru_cache(maxsize=64)
def known_protocol(registry: Registry, name: str) -> Protocol | None:
    """A protocol of this package or a plugin; None where none has that name."""
    return load(registry, name) if name in registry.protocols else None


@lru_cache(maxsize=4096)
def _derived(registry: Registry, name: str, recipe: Any, method: str, dataset: Any) -> tuple[str, str, str]:
    """Label, method and extra data of a spec, which follow from the rest."""
    protocol = known_protocol(registry, name)
    assert protocol is not None
    spec = make_spec(registry, replace(protocol, recipe=recipe), compose(registry, method), dataset, 0)
    return spec.label, spec.method, spec.extra_data


def _protocol_problems(registry: Registry, record: RunRecord, outcomes: Outcomes) -> Iterator[str]:
    """The record is of a protocol that is known here, and all of it."""
    protocol = known_protocol(registry, record.protocol.name)
    if protocol is None:
        yield f"there is no protocol {record.protocol.name!r}; there are {', '.join(registry.protocols)}"
        return
    if (record.protocol.version, record.protocol.hash) != (protocol.version, protocol.hash):
        yield (
            f"made under {record.protocol.name} {record.protocol.version} ({record.protocol.hash[:8]}); the board's "
            f"is {protocol.version} ({protocol.hash[:8]})"
        )
        return
    yield from _spec_problems(registry, record.spec)
    if set(record.results) != {"best", "last"}:
        yield "it lacks a checkpoint"
    for checkpoint, result in record.results.items():
        attacks = [row for row in protocol.fixed.attacks if checkpoint in row.checkpoints]
        measures = [row for row in protocol.fixed.measures if checkpoint in row.checkpoints]
        asked = [row.attack for row in attacks], [row.measure for row in measures]
        if ([*result.robust_error], [*result.measures]) != asked:
            yield f"{checkpoint}: its attacks and measures are not the protocol's"
        for name, size in _sizes(checkpoint, attacks, measures):
            if name not in outcomes or outcomes[name].shape != (size,):
                yield f"{name!r} is not of {size} examples, as the protocol says"


def _sizes(checkpoint: str, attacks: list[Attacked], measures: list[Measured]) -> Iterator[tuple[str, int]]:
    """Arrays of outcomes that a protocol asks for, and how many examples they have."""
    reference = attacks[0].attack
    for split in ("test", "train"):
        counts = {row.attack: getattr(row, split) for row in attacks if getattr(row, split)}
        if not counts:
            continue
        clean = max([*counts.values(), *(row.test for row in measures if split == "test")])
        yield f"{checkpoint}/{split}/clean/error", clean
        yield f"{checkpoint}/{split}/clean/loss", clean
        for attack, count in counts.items():
            yield f"{checkpoint}/{split}/{attack}/error", count
        if reference in counts:
            yield f"{checkpoint}/{split}/{reference}/loss", counts[reference]


def _spec_problems(registry: Registry, spec: RunSpec) -> Iterator[str]:
    """A row is called what this code calls it; a plugin's that is not installed here has to be believed."""
    if spec.numerics > NUMERICS:
        yield f"made with numerics {spec.numerics}, which this version ({NUMERICS}) does not know"
    try:
        made = _derived(registry, spec.protocol.name, spec.recipe, spec.method, spec.dataset)
    except RobflatError as error:
        if not spec.plugins:
            yield f"its method cannot be made here: {str(error).splitlines()[0]}"
        return
    if made[:2] != (spec.label, spec.method):
        yield f"a run of {spec.method!r} with this recipe is called {made[0]!r}, not {spec.label!r}"
    if made[2] != spec.extra_data:
        yield "its spec is wrong about the images it trained on beyond the protocol's"


def _evaluation_problems(record: RunRecord, evaluation: EvaluationRecord) -> str:
    """An added evaluation is of this record's weights, under its protocol and data."""
    of: dict[str, str] = {name: result.weights for name, result in record.results.items()}
    for name, result in evaluation.results.items():
        if of.get(name) != result.weights:
            return f"evaluation {evaluation.key} is of other weights than the record's {name!r}"
    if (evaluation.protocol, evaluation.dataset.checksum) != (record.protocol, record.dataset.checksum):
        return f"evaluation {evaluation.key} is of another protocol or data"
    return ""


# ---------------------------------------------------------------------------------------------------------
# Numbers published elsewhere
# ---------------------------------------------------------------------------------------------------------


class _References(Strict):
    rows: tuple[Reference, ...] = ()


def references(root: Path, protocol: str) -> tuple[Reference, ...]:
    """The reference rows of a protocol; UsageError where their file is not what it should be."""
    path = root / REFERENCES / f"{protocol}.toml"
    if not path.is_file():
        return ()
    try:
        content = tomllib.loads(read_text(path, "references"))
    except ValueError as error:
        raise CheckFailed(f"{path} is not valid TOML: {error}") from None
    return validate(_References, content, str(path)).rows
