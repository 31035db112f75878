"""Ranks: each ranked row's place in every ranking, with the interval of its rank and its significance letters.

Rows with at least three seeds are ranked, at the last checkpoint: every attack of every protocol meets it, and no
selection on held-out examples has touched it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from robflat_bench.analysis.statistics import Place, places
from robflat_bench.config.protocol import Checkpoint
from robflat_bench.leaderboard.model import BoardRow
from robflat_bench.leaderboard.rows import SeedGroup

RANKED_AT: Checkpoint = "last"


def ranked(groups: Sequence[SeedGroup], rows: Sequence[BoardRow], rankings: Sequence[str]) -> tuple[BoardRow, ...]:
    """The rows with their places: ranked rows by the first ranking, then the others by label.

    Parameters
    ----------
    groups, rows : the same rows in the same order, as outcomes and as the board shows them.
    rankings : columns; lower ranks first.
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
