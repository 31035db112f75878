"""Contestants take turns, round by round, so that a slow moment of the machine meets all of them; what is read is the
ratio of two of them, round by round. Nothing here asserts on seconds.

pytest-benchmark keeps and prints the times: its clock (`clock`) shows what the race has measured.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def race(contestants: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after a call to warm up; another one begins each round."""
    names = list(contestants)
    for name in names:
        contestants[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            times[name].append(seconds(contestants[name]))
    return times


# ---------------------------------------------------------------------------------------------------------
# A clock that shows recorded times
# ---------------------------------------------------------------------------------------------------------

_shown = 0.0


def clock() -> float:
    """The timer of `pytest.mark.benchmark(timer=clock)`."""
    return _shown


def replay(benchmark: Any, times: Sequence[float]) -> None:
    """Let pytest-benchmark time these rounds."""
    recorded = iter(times)

    def advance() -> None:
        global _shown
        _shown += next(recorded)

    benchmark.pedantic(advance, rounds=len(times))


# ---------------------------------------------------------------------------------------------------------
# What is printed and recorded
# ---------------------------------------------------------------------------------------------------------


@dataclass
class Board:
    """Everything a session found: ratios, equalities, and further tables."""

    ratios: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def ratio(
        self, name: str, ours: Sequence[float], rival: Sequence[float], limit: float | None = None
    ) -> dict[str, Any]:
        """Rival over ours, round by round; limit: seconds of the convolutions alone."""
        ratios = [b / a for a, b in zip(ours, rival, strict=True)]
        row = {
            "benchmark": name,
            "ours_seconds": statistics.median(ours),
            "rival_seconds": statistics.median(rival),
            "rival_over_ours": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "limit_seconds": limit,
            "ours_over_limit": None if limit is None else statistics.median(ours) / limit,
            "rounds": len(ratios),
        }
        self.ratios.append(row)
        return row

    def check(self, name: str, what: str, value: float, bound: float | None = None) -> None:
        """Write down a difference, then fail where it is above its bound; without a bound it is only reported."""
        self.checks.append({"benchmark": name, "what": what, "value": float(value), "bound": bound})
        assert bound is None or value <= bound, f"{name}: {what} is {value:.3g}, at most {bound:g} is allowed"

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        self.tables.setdefault(title, []).extend(rows)


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows under one heading, columns aligned."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
