"""Ranks: each ranked row's place in every ranking, with the interval of its rank and its significance letters.

Rows with at least three seeds are ranked, at the last checkpoint: every protocol runs all its attacks on it, and no
held-out example selects it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from robflat_bench.analysis.statistics import Place, places
from robflat_bench.leaderboard.model import RANKED_AT, BoardRow
from robflat_bench.leaderboard.rows import SeedGroup


def ranked(groups: Sequence[SeedGroup], rows: Sequence[BoardRow], rankings: Sequence[str]) -> tuple[BoardRow, ...]:
    """The rows with their places: ranked rows by the first ranking, then the others by label.

    Parameters
    ----------
    groups, rows : outcomes by seed, and display, of the same rows in the same order.
    rankings : columns to rank by; the lowest value gets rank 1.
    """
    found: dict[int, dict[str, Place]] = defaultdict(dict)
    for ranking in rankings:
        tables = {k: group.compared(RANKED_AT, ranking) for k, group in enumerate(groups) if group.ranked}
        present = {k: table for k, table in tables.items() if table.size}
        for k, place in zip(present, places(list(present.values())), strict=True):
            found[k][ranking] = place
    placed = [row.model_copy(update={"places": found[k]}) for k, row in enumerate(rows)]
    best = rankings[0]
    return tuple(
        sorted(placed, key=lambda row: (bool(row.unranked), row.places[best].rank if row.places else 0, row.label))
    )
