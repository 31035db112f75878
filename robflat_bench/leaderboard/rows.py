"""From submitted runs to the rows of a board: the seeds of a method together, each quantity with its interval."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from robflat_bench.analysis.statistics import RANKED_SEEDS, crossed, over_seeds
from robflat_bench.config.protocol import Checkpoint, Protocol
from robflat_bench.core import CheckFailed
from robflat_bench.leaderboard.entries import Submission
from robflat_bench.leaderboard.model import TIERS, BoardColumn, BoardRow, BoardRun, RowValue
from robflat_bench.records.quantities import WORST_CASE, Samples, column_id, mean, result_samples
from robflat_bench.records.record import MeasureResult

CHECKPOINTS: tuple[Checkpoint, ...] = ("last", "best")
COSTS = ("forward", "backward", "seconds", "evaluation_seconds")
T = TypeVar("T")


@dataclass(frozen=True)
class Network:
    """One run at one checkpoint.

    Attributes
    ----------
    samples : column -> per-example outcomes of an error, a loss or a gap: (test,) or (test, train).
    measures : column -> a measure that has a value.
    met : number of test examples that every attack met.
    confidence : mean probability of the true class on clean test images.
    """

    samples: Mapping[str, Samples]
    measures: Mapping[str, MeasureResult]
    met: int
    confidence: float

    def value(self, name: str) -> float | None:
        """The value of a column; None where the network has none."""
        if name in self.samples:
            return mean(*self.samples[name])
        return self.measures[name].value if name in self.measures else None


def measure_sizes(submissions: Iterable[Submission]) -> dict[str, int]:
    """The number of examples on which each added measure counts.

    It is the number that most runs have, of several such numbers the largest. A value on another number of examples
    is another quantity; a fixed rule keeps anyone from choosing the more flattering one.
    """
    runs = Counter(
        pair
        for submission in submissions
        for pair in {
            (measure, found.n)
            for evaluation, _ in submission.evaluations
            for result in evaluation.results.values()
            for measure, found in result.measures.items()
        }
    )
    return {measure: n for (measure, n), _ in sorted(runs.items(), key=lambda item: (item[1], item[0][1]))}


def submitted_network(submission: Submission, checkpoint: Checkpoint, sizes: Mapping[str, int]) -> Network:
    """A run's network at a checkpoint. sizes: the `measure_sizes` of its board."""
    outcomes, results = submission.outcomes, submission.record.results
    result = results[checkpoint]
    found = result_samples(checkpoint, result, outcomes)
    samples = {column_id(name, of): arrays for (name, of, split), arrays in found.items() if split != "train"}
    (worst,) = samples[WORST_CASE]
    if len(result.robust_error) < max(len(each.robust_error) for each in results.values()):
        del samples[WORST_CASE]  # a checkpoint that met fewer attacks has an easier worst case: not comparable
    measures = dict(result.measures)
    for evaluation, _ in submission.evaluations:
        if checkpoint in evaluation.results:
            added = evaluation.results[checkpoint].measures
            measures = {name: each for name, each in added.items() if each.n == sizes[name]} | measures
    return Network(
        samples,
        {column_id("measure", name): each for name, each in measures.items() if each.value is not None},
        len(worst),
        float(np.mean(np.exp(-outcomes[f"{checkpoint}/test/clean/loss"]))),
    )


@dataclass(frozen=True)
class SeedGroup:
    """All seeds of a row, in order of the seed. content: hash of the run's identity without the seed."""

    content: str
    runs: tuple[Submission, ...]
    networks: tuple[dict[Checkpoint, Network], ...]

    @property
    def label(self) -> str:
        return self.runs[0].record.spec.label

    @property
    def ranked(self) -> bool:
        return len(self.runs) >= RANKED_SEEDS

    def tables(self, checkpoint: Checkpoint, name: str) -> list[NDArray[Any]]:
        """Outcomes [S, n] of test (and of training) examples; empty where a seed lacks them."""
        found = [each[checkpoint].samples.get(name) for each in self.networks]
        known = [arrays for arrays in found if arrays is not None]
        return [np.stack(split) for split in zip(*known, strict=True)] if len(known) == len(found) else []

    def values(self, checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
        """[S], one value per seed; empty where a seed lacks it."""
        found = [each[checkpoint].value(name) for each in self.networks]
        return np.array([] if None in found else found, np.float64)

    def compared(self, checkpoint: Checkpoint, name: str) -> NDArray[Any]:
        """The input of rankings and comparisons: outcomes [S, n], or of a measure one value per seed, [S]."""
        tables = self.tables(checkpoint, name)
        return tables[0] if tables else self.values(checkpoint, name)

    def value(self, checkpoint: Checkpoint, name: str) -> RowValue | None:
        """A column over seeds, with its interval; None where a seed lacks it."""
        if tables := self.tables(checkpoint, name):
            return RowValue(**asdict(crossed(*tables, signs=(1, -1)[: len(tables)])))
        values = self.values(checkpoint, name)
        if not values.size:
            return None
        found = RowValue(**asdict(over_seeds(values)))
        alone = self.networks[0][checkpoint].measures[name].standard_error if len(values) == 1 else None
        return found.model_copy(update={"standard_error": alone})


def group_seeds(submissions: Iterable[Submission]) -> list[SeedGroup]:
    """Runs that differ in nothing but the seed form one row; rows in order of their labels.

    Raises CheckFailed where two submissions are the same row and seed.
    """
    submissions = list(submissions)
    sizes = measure_sizes(submissions)
    rows: dict[str, dict[int, Submission]] = defaultdict(dict)
    for submission in submissions:
        other = rows[submission.row].setdefault(submission.record.seed, submission)
        if other is not submission:
            raise CheckFailed(
                f"{submission.folder} and {other.folder} are one row and seed. Mark the older one in its entry.json: "
                '"status": "superseded", with a "reason"'
            )
    groups = []
    for content, runs in rows.items():
        ordered = tuple(runs[seed] for seed in sorted(runs))
        networks = tuple({name: submitted_network(run, name, sizes) for name in run.record.results} for run in ordered)
        groups.append(SeedGroup(content, ordered, networks))
    return sorted(groups, key=lambda group: (group.label, group.content))


def _known(read: Callable[[str], T | None], columns: Sequence[BoardColumn]) -> dict[str, T]:
    """Column -> value, for the columns that have one."""
    return {each.id: value for each in columns if (value := read(each.id)) is not None}


def board_run(
    submission: Submission, networks: Mapping[Checkpoint, Network], columns: Sequence[BoardColumn]
) -> BoardRun:
    """A run as the board shows it."""
    record, entry = submission.record, submission.entry
    flags = [flag for name, each in networks.items() for flag in record.results[name].flags.reasons(each.met)]
    return BoardRun(
        key=record.key,
        seed=record.seed,
        folder=submission.folder,
        tier=entry.tier,
        submitted=entry.submitted,
        weights={str(name): digest for name, digest in entry.weights.items()},
        values={name: _known(each.value, columns) for name, each in networks.items()},
        flags=tuple(dict.fromkeys(flags)),
        **record.budget.model_dump(include={*COSTS}),
    )


def board_row(id: str, group: SeedGroup, columns: Sequence[BoardColumn], protocol: Protocol) -> BoardRow:
    """A row as the board shows it, before it is ranked."""
    runs = tuple(board_run(*each, columns) for each in zip(group.runs, group.networks, strict=True))
    record = group.runs[0].record
    costs: dict[str, Any] = {cost: fmean(getattr(run, cost) for run in runs) for cost in COSTS}
    return BoardRow(
        id=id,
        label=group.label,
        method=record.method,
        changes=replace(protocol, recipe=record.spec.recipe).overrides,
        tier=min((run.tier for run in runs), key=TIERS.index),
        extra_data=record.extra_data,
        plugins=record.spec.plugins,
        values={name: _known(partial(group.value, name), columns) for name in CHECKPOINTS},
        unranked="" if group.ranked else f"{len(runs)} of {RANKED_SEEDS} seeds",
        runs=runs,
        **costs,
    )
