"""Methods in pairs: the difference of each quantity, and which test images each network gets wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from robflat_bench.analysis.statistics import Comparison, compare_methods
from robflat_bench.config.protocol import Checkpoint
from robflat_bench.leaderboard.model import Board, BoardColumn
from robflat_bench.leaderboard.rows import SeedGroup
from robflat_bench.records.quantities import WORST_CASE

ERRORS_AND_LOSS = (WORST_CASE, "clean_error", "robust_loss")
"""Columns that are compared first, per test image; measures are compared per network."""


@dataclass(frozen=True)
class Comparisons:
    """The rows of a board in pairs, at the board's checkpoint.

    Attributes
    ----------
    pairs : (row a, row b), where a is before b on the board -> column -> a minus b; columns that both rows have.
    wrong : row -> bool [S, n] by seed and test image: misclassified clean or under any attack.
    """

    pairs: Mapping[tuple[str, str], Mapping[str, Comparison]]
    wrong: Mapping[str, NDArray[np.bool_]]


def differences(
    one: SeedGroup, other: SeedGroup, checkpoint: Checkpoint, columns: Iterable[str]
) -> dict[str, Comparison]:
    """Column -> `compare_methods` of one minus other, for the columns that both have in all seeds."""
    return {
        column: compare_methods(a, b)
        for column in columns
        if (a := one.compared(checkpoint, column)).size and (b := other.compared(checkpoint, column)).size
    }


def compared_columns(board: Board) -> list[BoardColumn]:
    """The columns in which a board's rows are compared, in order."""
    return [board.column(id) for id in (*ERRORS_AND_LOSS, *board.primary) if id in board.titles]


def comparisons(board: Board, groups: Mapping[str, SeedGroup]) -> Comparisons:
    """Every pair of a board's rows. groups: run key -> the seeds of its row."""
    found = {row.id: groups[row.runs[0].key] for row in board.rows}
    columns = [column.id for column in compared_columns(board)]
    tables = {row: group.tables(board.checkpoint, WORST_CASE) for row, group in found.items()}
    return Comparisons(
        {
            (a, b): differences(found[a], found[b], board.checkpoint, columns)
            for a, b in combinations((row.id for row in board.rows), 2)
        },
        {row: wrong[0] for row, wrong in tables.items() if wrong},
    )
