"""The Compare page: every method against a baseline as a table, and the data from which a script shows any pair."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from robflat_bench.analysis.statistics import Comparison
from robflat_bench.leaderboard.comparison import Comparisons, compared_columns
from robflat_bench.leaderboard.model import Board, BoardColumn, BoardRow
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.export import embedded
from robflat_bench.leaderboard.site.names import full_name
from robflat_bench.leaderboard.site.thumbnails import Thumbnails
from robflat_bench.records.record import Epoch, RunRecord

CURVES = {
    "heldout_robust_error": ("Held-out robust error", "fraction"),
    "heldout_robust_loss": ("Held-out robust loss", "nats"),
}
"""Field of the history -> title and unit of its picture."""


class Against(NamedTuple):
    """A row against the baseline: difference with the reach of its interval, and p, of each column."""

    row: BoardRow
    cells: list[tuple[str, str]]


def baseline(board: Board) -> BoardRow:
    """Adversarial training under the protocol's recipe; where the board has none, its first row."""
    return next((row for row in board.rows if row.label == "at"), board.rows[0])


def against(board: Board, found: Comparisons, base: BoardRow) -> list[Against]:
    """Every other row, in the board's order, against one."""
    other, columns = base.id, compared_columns(board)

    def cell(row: str, column: BoardColumn) -> tuple[str, str]:
        one, sign = (found.pairs.get((row, other)), 1) if (row, other) in found.pairs else (found.pairs[other, row], -1)
        return _cell((one or {}).get(column.id), sign, column.unit)

    return [Against(row, [cell(row.id, column) for column in columns]) for row in board.rows if row.id != other]


def _cell(one: Comparison | None, sign: int, unit: str) -> tuple[str, str]:
    if one is None:
        return words.format_value(None), ""
    text = words.format_value(sign * one.difference, unit)
    if one.high is None or one.p is None:
        return text, "one seed"
    reach = words.format_value(one.high - one.difference, unit)
    return f"{text}\u00a0±\u00a0{reach}", words.p_value(one.p)


def content(
    board: Board,
    found: Comparisons,
    records: Mapping[str, RunRecord],
    base: BoardRow,
    images: Thumbnails | None,
    sheet: str,
) -> dict[str, Any]:
    """What the page's template shows of a board with two rows at least.

    Parameters
    ----------
    records : run key -> record.
    base : the row that every other one is compared with.
    images, sheet : the test images where they may be shown, and the address of their sheet.
    """
    return {
        "board": board,
        "base_row": base,
        "rows": against(board, found, base),
        "columns": compared_columns(board),
        "short": words.short_titles(board.quantities, board.primary),
        "chosen": {"a": next(row.id for row in board.rows if row is not base), "b": base.id},
        "credit": images.credit if images else "",
        "document": _document(board, found, records, images, sheet),
    }


def _document(
    board: Board, found: Comparisons, records: Mapping[str, RunRecord], images: Thumbnails | None, sheet: str
) -> Markup:
    """The data of the page as JSON that can stand inside a <script>."""
    columns = compared_columns(board)
    return embedded(
        {
            "columns": [_column(board, column) for column in columns],
            "curves": [{"title": title, "unit": unit} for title, unit in CURVES.values()],
            "rows": [_row(row, columns, board, found, records) for row in board.rows],
            "pairs": [
                [_numbers(found.pairs[a, b].get(column.id)) for column in columns]
                for a, b in combinations([row.id for row in board.rows], 2)
            ],
            "count": max((wrong.shape[1] for wrong in found.wrong.values()), default=0),
            "sheet": images and {**images.layout, "address": sheet},
        }
    )


def _column(board: Board, column: BoardColumn) -> dict[str, Any]:
    title = words.short_titles(board.quantities, board.primary)[column.id]
    flat = column.id in board.primary
    return {
        "title": words.clean(title),
        "within": words.clean(words.within(title)),
        "unit": column.unit,
        "less": "flatter" if flat else "lower",
        "more": "sharper" if flat else "higher",
    }


def _row(
    row: BoardRow,
    columns: Sequence[BoardColumn],
    board: Board,
    found: Comparisons,
    records: Mapping[str, RunRecord],
) -> dict[str, Any]:
    places = [row.places.get(column.id) for column in columns]
    histories = [records[run.key].history for run in row.runs]
    return {
        "id": row.id,
        "name": words.clean(full_name(row)),
        "seeds": [run.seed for run in row.runs],
        "values": [words.spread(row.value(board.checkpoint, column.id), column.unit) for column in columns],
        "letters": [place.letters if place else "" for place in places],
        "wrong": [_bits(one) for one in found.wrong.get(row.id, ())],
        "curves": [[_curve(history, field) for history in histories] for field in CURVES],
    }


def _bits(wrong: NDArray[np.bool_]) -> str:
    """[n] as base64, the first image in the lowest bit."""
    return base64.b64encode(np.packbits(wrong, bitorder="little").tobytes()).decode()


def _curve(history: Sequence[Epoch], field: str) -> list[float | None]:
    """By epoch, null where nothing was checked."""
    return [None if (value := getattr(each, field)) is None else float(f"{value:.4g}") for each in history]


def _numbers(one: Comparison | None) -> list[float | None] | None:
    """Difference, reach of its interval, p, detectable difference."""
    if one is None:
        return None
    reach = None if one.high is None else one.high - one.difference
    return [
        None if value is None else float(f"{value:.4g}") for value in (one.difference, reach, one.p, one.detectable)
    ]
