"""The facts of a board that its claims are decided from: rows, columns, the baseline; and evidence as an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robflat_bench.analysis.statistics import RANKED_SEEDS
from robflat_bench.config.protocol import Checkpoint
from robflat_bench.core import UsageError
from robflat_bench.leaderboard.model import BoardColumn, BoardRow, Correlation
from robflat_bench.leaderboard.rows import SeedGroup
from robflat_bench.records.quantities import MEASURE
from robflat_bench.registry.grammar import parse


@dataclass(frozen=True)
class Evidence:
    """An estimate with its 95 % interval. n: what it counts, in words. reason: why there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Facts:
    """The rows of a board and the columns that claims are about.

    Attributes
    ----------
    groups, rows : outcomes by seed, and display, of the same rows in the same order.
    correlations : those of the board.
    average, worst : columns of average-case (`reattack`) and worst-case flatness; "" where the board has none.
    clean : column of average-case flatness of the clean loss; "" where the board has none.
    """

    groups: Sequence[SeedGroup]
    rows: Sequence[BoardRow]
    correlations: Sequence[Correlation]
    average: str
    worst: str
    clean: str

    @classmethod
    def of(
        cls,
        groups: Sequence[SeedGroup],
        rows: Sequence[BoardRow],
        columns: Sequence[BoardColumn],
        correlations: Sequence[Correlation],
    ) -> Facts:
        average, worst = _column(columns, "average-case", "reattack"), _column(columns, "worst-case", "joint")
        return cls(groups, rows, correlations, average, worst, _column(columns, "average-case", "clean"))

    @property
    def ranked(self) -> list[SeedGroup]:
        """Methods of at least three seeds: rows with fewer support no claim."""
        return [group for group in self.groups if group.ranked]

    @property
    def baseline(self) -> SeedGroup | None:
        """AT under the protocol's recipe, with the most seeds."""
        pairs = zip(self.groups, self.rows, strict=True)
        found = [group for group, row in pairs if row.method == "at" and not row.changes]
        return max(found, key=lambda group: len(group.runs), default=None)


def _column(columns: Sequence[BoardColumn], measure: str, coupling: str) -> str:
    """The first column of a measure with this coupling: the protocol's columns come first."""
    found = (column.id for column in columns if column.id.startswith(f"{MEASURE}{measure}("))
    return next((id for id in found if _coupling(id.removeprefix(MEASURE)) == coupling), "")


def _coupling(measure: str) -> Any:
    """The coupling in a measure's text; None where it has none. Added evaluations may hold text that is no measure."""
    try:
        return parse(measure)[1].get("coupling")
    except UsageError:
        return None


def of_baseline(measured: Callable[[SeedGroup, Facts], Evidence]) -> Callable[[Facts], Evidence]:
    """Evidence of AT alone, or why AT gives none."""

    def of(facts: Facts) -> Evidence:
        baseline = facts.baseline
        if baseline is None or not baseline.ranked:
            seeds = len(baseline.runs) if baseline else 0
            return Evidence(reason=f"AT has {seeds} of {RANKED_SEEDS} seeds")
        return measured(baseline, facts)

    return of


def lacking(group: SeedGroup, checkpoints: Sequence[Checkpoint], column: str) -> str:
    """Why a row has no value in a column at these checkpoints; "" where it has."""
    if not column:
        return "the board has no such measure"
    lacks = [name for name in checkpoints if not group.values(name, column).size]
    return f"{group.label} has no such value at its {lacks[0]} checkpoint" if lacks else ""


def seeds_of(group: SeedGroup) -> str:
    return f"{len(group.runs)} seeds"
