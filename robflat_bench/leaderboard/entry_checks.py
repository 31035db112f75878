"""Checks of a submitted record: it is of a protocol that is known here, complete, named as this code names it, and no
copy of another one."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import Attacked, Measured, Protocol, load, recorded
from robflat_bench.config.spec import ProtocolRef, RunSpec, make_spec
from robflat_bench.core import RobflatError
from robflat_bench.leaderboard.derived import example_problems, training_problems
from robflat_bench.records.quantities import SPLITS, Outcomes
from robflat_bench.records.record import EvaluationRecord, Result, RunRecord, measure_path
from robflat_bench.registry.components import compose
from robflat_bench.registry.registry import Registry

if TYPE_CHECKING:
    from robflat_bench.leaderboard.entries import Submission

MARK = 'mark the wrong or older one in its entry.json: "status": "superseded", with a "reason"'


@lru_cache(maxsize=64)
def known_protocol(registry: Registry, name: str) -> Protocol | None:
    """The protocol of that name in this package or a plugin; None where there is none."""
    return load(registry, name) if name in registry.protocols else None


@lru_cache(maxsize=64)
def _protocol_of(registry: Registry, ref: ProtocolRef) -> Protocol | None:
    """The protocol of a record; None where none is known (`recorded`)."""
    known = recorded(registry, ref.name, ref.version)
    return load(registry, known) if known else None


def protocol_problems(registry: Registry, record: RunRecord, outcomes: Outcomes, active: bool) -> Iterator[str]:
    """Ways in which a record is not a complete run under a known protocol, for an active entry the one in force."""
    ref = record.protocol
    protocol, now = _protocol_of(registry, ref), known_protocol(registry, ref.name)
    if protocol is None or now is None:
        yield f"there is no protocol {ref.name!r}; there are {', '.join(registry.protocols)}"
        return
    if (ref.version, ref.hash) != (protocol.version, protocol.hash):
        board = f"{protocol.version} ({protocol.hash[:8]})"
        yield f"made under {ref.name} {ref.version} ({ref.hash[:8]}); the board's is {board}"
        return
    if active and protocol != now:
        yield f"made under {ref.name} {ref.version}, which version {now.version} replaces; {MARK}"
        return
    yield from _spec_problems(registry, record.spec)
    dataset = record.dataset
    if protocol.checksum and dataset.canonical != (dataset.checksum == protocol.checksum):
        said = "canonical" if dataset.canonical else "not canonical"
        yield f"it calls its data {said}: their checksum is {dataset.checksum}, the canonical one {protocol.checksum}"
    for checkpoint, result in record.results.items():
        attacks = [row for row in protocol.fixed.attacks if checkpoint in row.checkpoints]
        measures = [row for row in protocol.fixed.measures if checkpoint in row.checkpoints]
        asked = [row.attack for row in attacks], [row.measure for row in measures]
        if ([*result.robust_error], [*result.measures]) != asked:
            yield f"{checkpoint}: its attacks and measures are not the protocol's"
        if {*result.measures_train} != {row.measure for row in measures if row.train}:
            yield f"{checkpoint}: its measures on training examples are not the protocol's"
        for name, size in _sizes(checkpoint, attacks, measures):
            if name not in outcomes or outcomes[name].shape != (size,):
                yield f"{name!r} is not of {size} examples, as the protocol says"
        yield from example_problems(registry, checkpoint, result, outcomes, measures)
    yield from training_problems(registry, protocol, record)


def _sizes(checkpoint: str, attacks: list[Attacked], measures: list[Measured]) -> Iterator[tuple[str, int]]:
    """The arrays of outcomes that a protocol asks for, and their numbers of examples."""
    reference = attacks[0].attack
    for split in SPLITS:
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


@lru_cache(maxsize=4096)
def _derived(registry: Registry, ref: ProtocolRef, recipe: Any, method: str, dataset: Any) -> tuple[str, str, str]:
    """Label, method and extra data of a spec, as this code derives them from the rest."""
    protocol = _protocol_of(registry, ref)
    assert protocol is not None
    spec = make_spec(registry, replace(protocol, recipe=recipe), compose(registry, method), dataset, 0)
    return spec.label, spec.method, spec.extra_data


def _spec_problems(registry: Registry, spec: RunSpec) -> Iterator[str]:
    """The spec's label, method and extra data are what this code derives. A method of a plugin that is not installed
    here cannot be checked and is believed."""
    if spec.numerics > NUMERICS:
        yield f"made with numerics {spec.numerics}; this version knows {NUMERICS}. Update robflat-bench"
    try:
        label, method, extra_data = _derived(registry, spec.protocol, spec.recipe, spec.method, spec.dataset)
    except RobflatError as error:
        if not spec.plugins:
            yield f"its method cannot be made here: {str(error).splitlines()[0]}"
        return
    if (label, method) != (spec.label, spec.method):
        yield f"a run of {spec.method!r} with this recipe is called {label!r}, not {spec.label!r}"
    if extra_data != spec.extra_data:
        yield "its spec states other training images beyond the protocol's than its method uses"


def stray_problems(results: Mapping[Any, Result], outcomes: Outcomes) -> Iterator[str]:
    """Arrays that belong to no checkpoint, attack or measure of the results."""
    totals, measured = set[str](), list[str]()
    for checkpoint, result in results.items():
        for split, measures in zip(SPLITS, (result.measures, result.measures_train), strict=True):
            attacked = [f"{checkpoint}/{split}/{attack}" for attack in ("clean", *result.robust_error)]
            totals |= {f"{place}/{kind}" for place in attacked for kind in ("error", "loss")}
            measured += [f"{measure_path(checkpoint, split, measure)}/" for measure in measures]
    places = tuple(measured)
    for name in outcomes:
        if name not in totals and not name.startswith(places):
            yield f"its array {name!r:.200} belongs to nothing that it states"


def evaluation_problems(record: RunRecord, evaluation: EvaluationRecord) -> Iterator[str]:
    """Ways in which an added evaluation is not of this record's weights, protocol and data."""
    weights: dict[str, str] = {name: result.weights for name, result in record.results.items()}
    for name, result in evaluation.results.items():
        if weights.get(name) != result.weights:
            yield f"evaluation {evaluation.key} is of other weights than the record's {name!r}"
    if (evaluation.protocol, evaluation.dataset.checksum) != (record.protocol, record.dataset.checksum):
        yield f"evaluation {evaluation.key} is of another protocol or data"


def board_id(submission: Submission) -> str:
    """The board of a run: its protocol. Data other than the canonical copy have a board of their own."""
    protocol, dataset = submission.record.protocol, submission.record.dataset
    return protocol.name if dataset.canonical else f"{protocol.name}-{dataset.checksum[:8]}"


def twin_problems(submissions: Iterable[Submission]) -> Iterator[tuple[Submission, str]]:
    """Active entries that contradict another one: each with a sentence that names the other."""
    claims: dict[tuple[str, ...], list[tuple[str, Submission, str]]] = defaultdict(list)
    for one in submissions:
        if one.entry.status == "active":
            for claim, value, problem in _claims(one):
                claims[claim].append((value, one, problem))
    for made in claims.values():
        for value, one, problem in made:
            if other := next((each for said, each, _ in made if said != value), None):
                yield one, f"{one.folder} {problem} {other.folder}; {MARK}"


def _claims(one: Submission) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(claim, value, problem): entries with one claim must state one value; else `problem` says so."""
    record, protocol = one.record, one.record.protocol.hash
    yield ("row and seed", one.row, str(record.seed)), one.folder, "is the same row and seed as"
    problem = (
        "calls other data canonical than"
        if record.dataset.canonical
        else "would name its board as other data do, those of"
    )
    yield ("data", protocol, board_id(one)), record.dataset.checksum, problem
    for checkpoint, result in record.results.items():
        # a modifier that begins late may leave the best checkpoint of a row as another row has it, and never the last
        row = "" if checkpoint == "last" else record.spec.label
        losses = one.outcomes[f"{checkpoint}/test/clean/loss"]
        yield ("weights", protocol, row, result.weights), one.folder, "has the weights of"
        if losses.min() < losses.max():  # networks that answer every image alike have equal losses
            digest = hashlib.sha256(losses.astype(np.float64).tobytes()).hexdigest()
            yield ("losses", protocol, row, digest), one.folder, "has the losses, image by image, of"
