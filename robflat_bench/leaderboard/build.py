"""The board as a pure function of what was submitted: no clock, no machine, no order of files, no random state.

A row is a method under one recipe, all its seeds; rows are ranked at the last checkpoint, which every attack of every
protocol meets and which no selection has touched. Statistics are `robflat_bench.analysis`'s.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robflat_bench.analysis.correlation import Model, statistics
from robflat_bench.analysis.statistics import RANKED_SEEDS, crossed, over_seeds, places
from robflat_bench.config.protocol import Checkpoint, Protocol, content_hash
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.entries import REFERENCES, Submission, known_protocol, references
from robflat_bench.leaderboard.model import (
    TIERS,
    Board,
    Change,
    Correlation,
    Leaderboard,
    Place,
    Quantity,
    Row,
    Run,
    Statistic,
    Value,
    Withdrawn,
)
from robflat_bench.registry.components import members, parse, slug, title
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import Result, broken

CHECKPOINTS: tuple[Checkpoint, ...] = ("last", "best")
RANKED_AT: Checkpoint = "last"
IN_NATS = ("measure:average-case", "measure:worst-case")
PAIRS = 10_000_000
"""Pairs of models that the interval of a correlation looks at: a board of hundreds of rows takes fewer resamples."""
RESAMPLES = (100, 1000)
TARGETS = ("robust_loss", "robust_error", "gap_robust_loss", "gap_robust_error")


@dataclass(frozen=True)
class Network:
    """One run at one checkpoint. tables: quantity -> one outcome per test example, or of test and training examples,
    whose difference of means it is. numbers, errors: measure -> value and standard error. met: test examples that every
    attack met. confidence: mean probability of the true class of clean test images."""

    tables: Mapping[str, tuple[NDArray[Any], ...]]
    numbers: Mapping[str, float]
    errors: Mapping[str, float | None]
    met: int
    confidence: float

    def value(self, quantity: str) -> float | None:
        if quantity not in self.tables:
            return self.numbers.get(quantity)
        test, *train = (float(np.mean(table, dtype=np.float64)) for table in self.tables[quantity])
        return test - sum(train)


def sizes(submissions: Iterable[Submission]) -> dict[str, int]:
    """Of each measure that somebody added, on how many examples it counts: the number most runs have, of several the
    largest. Values on another number are another quantity, and nobody may choose among several."""
    runs = Counter(
        pair
        for one in submissions
        for pair in {
            (measure, found.n)
            for evaluation, _ in one.evaluations
            for result in evaluation.results.values()
            for measure, found in result.measures.items()
        }
    )
    return {measure: n for (measure, n), _ in sorted(runs.items(), key=lambda item: (item[1], item[0][1]))}


def networks(submission: Submission, counting: Mapping[str, int]) -> dict[Checkpoint, Network]:
    """What a run's networks did, by checkpoint. counting: the `sizes` of added measures."""
    return {name: _network(submission, name, result, counting) for name, result in submission.record.results.items()}


def _network(submission: Submission, checkpoint: Checkpoint, result: Result, counting: Mapping[str, int]) -> Network:
    outcomes = submission.outcomes

    def arrays(split: str, attack: str, kind: str) -> NDArray[Any] | None:
        return outcomes.get(f"{checkpoint}/{split}/{attack}/{kind}")

    wrong = partial(broken, outcomes, checkpoint)
    reference = next(iter(result.robust_error))
    attacked = {attack: found for attack in result.robust_error if (found := wrong("test", attack)) is not None}
    met = min(map(len, attacked.values()))
    every = max(len(other.robust_error) for other in submission.record.results.values())
    worst = np.logical_or.reduce([found[:met] for found in attacked.values()]) if len(attacked) == every else None
    wanted: dict[str, tuple[NDArray[Any] | None, ...]] = {
        "clean_error": (arrays("test", "clean", "error"),),
        "robust_error": (worst,),  # not of a checkpoint that was spared an attack
        **{f"attack:{attack}": (found,) for attack, found in attacked.items()},
        "robust_loss": (arrays("test", reference, "loss"),),
        "gap_robust_error": (attacked[reference], wrong("train", reference)),
        "gap_robust_loss": (arrays("test", reference, "loss"), arrays("train", reference, "loss")),
    }
    measures = dict(result.measures)
    for evaluation, _ in submission.evaluations:
        if checkpoint in evaluation.results:
            added = evaluation.results[checkpoint].measures
            measures = {name: found for name, found in added.items() if found.n == counting[name]} | measures
    read = {f"measure:{name}": found for name, found in measures.items()}
    return Network(
        {name: parts for name, parts in wanted.items() if all(part is not None for part in parts)},  # type: ignore[misc]
        {name: found.value for name, found in read.items() if found.value is not None},
        {name: found.standard_error for name, found in read.items()},
        met,
        float(np.mean(np.exp(-outcomes[f"{checkpoint}/test/clean/loss"]))),
    )


# ---------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seeds:
    """All seeds of a row, by seed: what was submitted and what its networks did. content: hash of all but the seed."""

    content: str
    runs: tuple[Submission, ...]
    networks: tuple[dict[Checkpoint, Network], ...]

    @property
    def label(self) -> str:
        return self.runs[0].record.spec.label

    @property
    def ranked(self) -> bool:
        return len(self.runs) >= RANKED_SEEDS

    def tables(self, checkpoint: Checkpoint, quantity: str) -> list[NDArray[Any]]:
        """[S, n] of test (and of training) examples; empty where a seed lacks it."""
        found = [each[checkpoint].tables.get(quantity) for each in self.networks]
        parts = [parts for parts in found if parts is not None]
        return [np.stack(part) for part in zip(*parts, strict=True)] if len(parts) == len(found) else []

    def numbers(self, checkpoint: Checkpoint, quantity: str) -> NDArray[np.float64]:
        """[S] of a quantity's values; empty where a seed lacks it."""
        found = [each[checkpoint].value(quantity) for each in self.networks]
        values = [value for value in found if value is not None]
        return np.array(values if len(values) == len(found) else [])

    def compared(self, checkpoint: Checkpoint, quantity: str) -> NDArray[Any]:
        """What rankings and comparisons are made of: outcomes [S, n], or of a measure one number per seed, [S]."""
        tables = self.tables(checkpoint, quantity)
        return tables[0] if tables else self.numbers(checkpoint, quantity)

    def value(self, checkpoint: Checkpoint, quantity: str) -> Value | None:
        """The quantity over seeds; None where a seed lacks it."""
        if tables := self.tables(checkpoint, quantity):
            return Value(**asdict(crossed(*tables, signs=(1, -1)[: len(tables)])))
        numbers = self.numbers(checkpoint, quantity)
        if not numbers.size:
            return None
        found = Value(**asdict(over_seeds(numbers)))
        alone = self.networks[0][checkpoint].errors[quantity] if len(numbers) == 1 else None
        return found.model_copy(update={"standard_error": alone})


def together(submissions: Iterable[Submission]) -> list[Seeds]:
    """Runs that differ in nothing but their seed belong together; rows by label."""
    submissions = list(submissions)
    counting = sizes(submissions)
    rows: dict[str, dict[int, Submission]] = defaultdict(dict)
    for one in submissions:
        spec = one.record.spec
        row = content_hash({name: value for name, value in spec.identity.items() if name not in ("seed", "helpers")})
        other = rows[row].setdefault(spec.seed, one)
        if other is not one:
            raise CheckFailed(f"{one.folder} and {other.folder} are one row and seed; let one supersede the other")
    made = []
    for content, runs in rows.items():
        ordered = tuple(runs[seed] for seed in sorted(runs))
        made.append(Seeds(content, ordered, tuple(networks(one, counting) for one in ordered)))
    return sorted(made, key=lambda row: (row.label, row.content))


def _run(one: Submission, seen: Mapping[Checkpoint, Network], quantities: Sequence[Quantity]) -> Run:
    record, entry = one.record, one.entry
    return Run(
        key=record.key,
        seed=record.seed,
        folder=one.folder,
        tier=entry.tier,
        submitted=entry.submitted,
        weights={str(name): digest for name, digest in entry.weights.items()},
        values={
            checkpoint: {
                quantity.id: value for quantity in quantities if (value := network.value(quantity.id)) is not None
            }
            for checkpoint, network in seen.items()
        },
        flags=tuple(
            dict.fromkeys(
                flag
                for checkpoint, result in record.results.items()
                for flag in result.flags.reasons(seen[checkpoint].met)
            )
        ),
        forward=record.budget.forward,
        backward=record.budget.backward,
        seconds=record.budget.seconds,
        evaluation_seconds=record.budget.evaluation_seconds,
    )


def _row(id: str, seeds: Seeds, quantities: Sequence[Quantity], protocol: Protocol) -> Row:
    runs = tuple(_run(*each, quantities) for each in zip(seeds.runs, seeds.networks, strict=True))
    record = seeds.runs[0].record
    return Row(
        id=id,
        label=seeds.label,
        method=record.method,
        changes=replace(protocol, recipe=record.spec.recipe).overrides,
        tier=min((run.tier for run in runs), key=TIERS.index),
        extra_data=record.extra_data,
        plugins=record.spec.plugins,
        values={
            checkpoint: {
                quantity.id: value
                for quantity in quantities
                if (value := seeds.value(checkpoint, quantity.id)) is not None
            }
            for checkpoint in CHECKPOINTS
        },
        unranked="" if seeds.ranked else f"{len(runs)} of {RANKED_SEEDS} seeds",
        forward=fmean(run.forward for run in runs),
        backward=fmean(run.backward for run in runs),
        seconds=fmean(run.seconds for run in runs),
        evaluation_seconds=fmean(run.evaluation_seconds for run in runs),
        runs=runs,
    )


# ---------------------------------------------------------------------------------------------------------
# Boards
# ---------------------------------------------------------------------------------------------------------


def build(submissions: Sequence[Submission], root: Path, registry: Registry) -> Leaderboard:
    """Every board that somebody submitted to, or that has reference rows below `root`; those that rank come first.

    CheckFailed where two active entries are the same row and seed, or call different data canonical.
    """
    boards: dict[str, list[Submission]] = {path.stem: [] for path in (root / REFERENCES).glob("*.toml")}
    for one in submissions:
        if one.entry.status == "active":
            boards.setdefault(board_id(one), []).append(one)
    made = [_board(name, found, root, registry) for name, found in boards.items()]
    return Leaderboard(
        boards=tuple(sorted(made, key=lambda one: (not any(row.places for row in one.rows), not one.rows, one.id))),
        withdrawn=_withdrawn(submissions),
        changes=_changes(submissions),
    )


def board_id(one: Submission) -> str:
    """What a run's board is called: data that are not the canonical copy have one of their own."""
    protocol, dataset = one.record.protocol, one.record.dataset
    return protocol.name if dataset.canonical else f"{protocol.name}-{dataset.checksum[:8]}"


def _board(name: str, submissions: Sequence[Submission], root: Path, registry: Registry) -> Board:
    records = [one.record for one in submissions]
    protocol = known_protocol(registry, records[0].protocol.name if records else name)
    if protocol is None:  # entries are checked, so only references can be of one
        raise CheckFailed(
            f"{root / REFERENCES / name}.toml is of no protocol; there are {', '.join(registry.protocols)}"
        )
    for one in submissions:
        if one.record.dataset.checksum != records[0].dataset.checksum:
            raise CheckFailed(f"{one.folder} and {submissions[0].folder} call different data canonical")
    rows = together(submissions)
    quantities = _quantities(rows, protocol, registry)
    made = [_row(id, seeds, quantities, protocol) for id, seeds in zip(_ids(rows), rows, strict=True)]
    rankings = ("robust_error", *(f"measure:{row.measure}" for row in protocol.fixed.measures))
    return Board(
        id=name,
        protocol=protocol.name,
        version=protocol.version,
        hash=protocol.hash,
        summary=protocol.summary,
        dataset=records[0].dataset.origin if records else protocol.fixed.data.dataset,
        canonical=records[0].dataset.canonical if records else True,
        epsilon=protocol.fixed.threat.epsilon,
        backbone=protocol.fixed.backbone,
        checkpoint=RANKED_AT,
        quantities=quantities,
        rankings=rankings,
        rows=_ranked(rows, made, rankings),
        correlations=_correlations(rows, made, quantities),
        references=references(root, protocol.name),
    )


def _ids(rows: Sequence[Seeds]) -> list[str]:
    """A slug of each label, with what else tells rows apart where they share it."""
    slugs = [slug(row.label) for row in rows]
    return [
        name if slugs.count(name) == 1 else f"{name[:71]}-{row.content[:8]}"
        for name, row in zip(slugs, rows, strict=True)
    ]


def _quantities(rows: Sequence[Seeds], protocol: Protocol, registry: Registry) -> tuple[Quantity, ...]:
    """The columns: the protocol's, then measures that somebody added."""
    fixed = protocol.fixed
    counts = {row.attack: row.test for row in fixed.attacks if RANKED_AT in row.checkpoints}
    met, reference = min(counts.values()), fixed.attacks[0]
    name = title(registry, "attack", reference.attack)
    errors = [
        Quantity(id="robust_error", title="robust error", unit="fraction", n=met),
        Quantity(id="clean_error", title="clean error", unit="fraction", n=max(counts.values())),
        *(
            Quantity(id=f"attack:{attack}", title=title(registry, "attack", attack), unit="fraction", n=count)
            for attack, count in counts.items()
        ),
        Quantity(id="gap_robust_error", title=f"gap in error, {name}", unit="fraction", n=reference.test),
        Quantity(id="robust_loss", title=f"robust loss, {name}", unit="nats", n=reference.test),
        Quantity(id="gap_robust_loss", title=f"gap in loss, {name}", unit="nats", n=reference.test),
    ]
    own = {f"measure:{row.measure}": row.test for row in fixed.measures}
    added = {f"measure:{measure}": n for measure, n in sizes(one for row in rows for one in row.runs).items()}
    measures = [
        Quantity(
            id=id,
            title=title(registry, "measure", id.removeprefix("measure:")),
            unit="nats" if id.startswith(IN_NATS) else "",
            n=n,
            protocol=id in own,
        )
        for id, n in {**dict(sorted(added.items())), **own}.items()
    ]
    return tuple(errors + sorted(measures, key=lambda quantity: not quantity.protocol))


def _ranked(rows: Sequence[Seeds], made: Sequence[Row], rankings: Sequence[str]) -> tuple[Row, ...]:
    """Rows with their places: the ranked ones by the first ranking, then the others by name."""
    ranked = [number for number, seeds in enumerate(rows) if seeds.ranked]
    found: dict[int, dict[str, Place]] = defaultdict(dict)
    for ranking in rankings:
        tables = {number: rows[number].compared(RANKED_AT, ranking) for number in ranked}
        present = {number: table for number, table in tables.items() if table.size}
        for number, place in zip(present, places(list(present.values())), strict=True):
            found[number][ranking] = Place(**asdict(place))
    placed = [row.model_copy(update={"places": found[number]}) for number, row in enumerate(made)]
    best = rankings[0]
    return tuple(
        sorted(placed, key=lambda row: (bool(row.unranked), row.places[best].rank if row.places else 0, row.label))
    )


# ---------------------------------------------------------------------------------------------------------
# Correlation
# ---------------------------------------------------------------------------------------------------------


def _axes(row: Row) -> dict[str, str]:
    """In what a row differs from others: its method, that method's parameters, each modifier and each change of the
    recipe. A row without an axis has its default there."""
    method, *modifiers = members(row.method)
    name, parameters = parse(method)
    found = {"method": name} | {f"{name}.{key}": str(value) for key, value in parameters.items()}
    found |= {f"+{parse(modifier)[0]}": modifier for modifier in modifiers}
    return found | {f"recipe.{key}": str(value) for key, value in row.changes.items()}


def _correlations(
    rows: Sequence[Seeds], made: Sequence[Row], quantities: Sequence[Quantity]
) -> tuple[Correlation, ...]:
    """Every measure with every target, over the ranked rows that have both; where none is ranked, over all of them,
    which says something of these networks and nothing of methods."""
    ranked = any(seeds.ranked for seeds in rows)
    measures = [quantity.id for quantity in quantities if quantity.id.startswith("measure:")]
    found = []
    for checkpoint, measure, target in itertools.product(CHECKPOINTS, measures, TARGETS):
        models = [
            Model(
                seeds.label,
                seeds.numbers(checkpoint, measure).tolist(),
                seeds.numbers(checkpoint, target).tolist(),
                _axes(row),
                [each[checkpoint].confidence for each in seeds.networks],
            )
            for seeds, row in zip(rows, made, strict=True)
            if seeds.ranked == ranked and {measure, target} <= {*row.values[checkpoint]}
        ]
        if models:
            few, many = RESAMPLES
            resamples = max(few, min(many, PAIRS // len(models) ** 2))
            found.append(
                Correlation(
                    quantity=measure,
                    target=target,
                    checkpoint=checkpoint,
                    models=len(models),
                    statistics=tuple(Statistic(**asdict(one)) for one in statistics(models, resamples)),
                )
            )
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------
# What happened
# ---------------------------------------------------------------------------------------------------------


def _withdrawn(submissions: Sequence[Submission]) -> tuple[Withdrawn, ...]:
    return tuple(
        Withdrawn(
            board=board_id(one),
            label=one.record.spec.label,
            seed=one.record.seed,
            key=one.record.key,
            folder=one.folder,
            status=one.entry.status,
            reason=one.entry.reason,
        )
        for one in sorted(submissions, key=lambda one: one.folder)
        if one.entry.status != "active"
    )


def _changes(submissions: Sequence[Submission]) -> tuple[Change, ...]:
    """Days on which something was submitted or verified, newest first."""
    events: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for one in submissions:
        label = one.record.spec.label
        events[one.entry.submitted, board_id(one), "submitted"].append(label)
        for verification in one.entry.verifications:
            events[verification.date, board_id(one), verification.tier].append(label)
    return tuple(
        Change(
            date=date,
            title=f"{board}: {len(labels)} {'run' if len(labels) == 1 else 'runs'} {what}",
            text=", ".join(sorted({*labels})),
        )
        for (date, board, what), labels in sorted(events.items(), reverse=True)
    )
