"""The board's table as columns: the ranked quantities first, the rest in groups that the reader can switch on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from robflat_bench.core import LeaderboardColumn
from robflat_bench.leaderboard.model import TIERS, Board, BoardColumn, BoardRow, RowValue
from robflat_bench.leaderboard.site import words
from robflat_bench.records.quantities import MEASURE, QuantityValue, column_id, quantity_unit
from robflat_bench.registry.components import slug

GROUPS = {
    "flatness": ("Flatness", True),
    "loss": ("Loss and gap", True),
    "attacks": ("Single attacks", False),
    "more": ("More measures", False),
    "other": ("Other checkpoint", False),
    "budget": ("Budget", False),
    "plugins": ("Plugins", False),
}
"""Group -> label of its switch, and whether it is shown at first. Columns without a group are always shown."""
ICONS = {"self-reported": "\u25cb", "re-evaluated": "\u25d0", "reproduced": "\u25cf"}


class Cell(NamedTuple):
    """text: the content. note: a smaller second line, or a picture. value: the number that sorting uses."""

    text: str
    note: str | Markup = ""
    value: float | None = None


class TableColumn(NamedTuple):
    """key: name in addresses. note: a smaller second line of the heading. cells: row -> cell."""

    key: str
    title: str
    note: str
    group: str
    cells: dict[str, Cell]


def table_columns(board: Board, offered: Sequence[LeaderboardColumn] = ()) -> list[TableColumn]:
    """All columns but rank and method, in order. offered: the columns of plugins."""
    first = [board.column(board.rankings[0]), *(each for each in board.quantities if each.id == "clean_error")]
    flatness = [board.column(name) for name in board.rankings[1:]]
    rest = [each for each in board.quantities if each not in (*first, *flatness)]
    other = "best" if board.checkpoint == "last" else "last"

    def measured(columns: Iterable[BoardColumn], group: str, checkpoint: str = "") -> list[TableColumn]:
        return [_measured(board, column, group, checkpoint) for column in columns]

    def starting(*prefixes: str) -> list[BoardColumn]:
        return [each for each in rest if each.id.startswith(prefixes)]

    robust, *clean = measured(first, "")
    repeated = [*first, *flatness, *(each for each in rest if each.id in ("robust_loss", "gap_robust_loss"))]
    made = [
        _pictured(board, robust),
        *clean,
        *measured(flatness, "flatness"),
        *measured(starting("robust_loss", "gap_"), "loss"),
        TableColumn("evidence", "Evidence", "seeds", "", {row.id: _evidence(row) for row in board.rows}),
        *measured(starting("attack:"), "attacks"),
        *measured(starting(MEASURE), "more"),
        *measured(repeated, "other", other),
        *_budget(board),
        *(_offered(board, column) for column in offered),
    ]
    return [column for column in made if column.cells]


def _offered(board: Board, column: LeaderboardColumn) -> TableColumn:
    values = {row.id: column.values[row.id] for row in board.rows if row.id in column.values}
    cells = {row: Cell(format(value, column.form), value=value) for row, value in values.items()}
    return TableColumn(slug(f"plugin-{column.name}"), column.title, column.note, "plugins", cells)


def _measured(board: Board, column: BoardColumn, group: str, checkpoint: str) -> TableColumn:
    """A quantity at a checkpoint, or at the board's (""), where its cells say the ranks."""
    values = [(row, row.value(checkpoint or board.checkpoint, column.id)) for row in board.rows]
    cells = {row.id: _cell(row, column, value, not checkpoint) for row, value in values if value}
    key = slug(f"{column.id}-{checkpoint}" if checkpoint else column.id)
    title = f"{column.title}, {checkpoint}" if checkpoint else column.title
    return TableColumn(key, title, words.unit_and_n(column), group, cells)


def _pictured(board: Board, column: TableColumn) -> TableColumn:
    """The column with its intervals drawn on one scale instead of the ranks, which have a column of their own."""
    found = {row.id: row.value(board.checkpoint, board.rankings[0]) for row in board.rows}
    values = {row: value for row, value in found.items() if value}
    ends = [end for value in values.values() for end in (value.low, value.mean, value.high) if end is not None]
    low, width = min(ends, default=0.0), (max(ends, default=1.0) - min(ends, default=0.0)) or 1.0

    def picture(value: RowValue) -> Markup:
        shown = (value.mean if end is None else end for end in (value.low, value.mean, value.high))
        a, b, c = (4 + 92 * (end - low) / width for end in shown)
        line = "" if value.low is None else f'<path d="M{a:.1f} 4H{c:.1f}"/>'
        return Markup(f'<svg viewBox="0 0 100 8" aria-hidden="true">{line}<circle cx="{b:.1f}" cy="4" r="3"/></svg>')

    return column._replace(cells={row: cell._replace(note=picture(values[row])) for row, cell in column.cells.items()})


def _evidence(row: BoardRow) -> Cell:
    """The tier and the number of seeds; sorted by tier, then by seeds."""
    seeds = f"{len(row.runs)} seed{'s' * (len(row.runs) != 1)}"
    return Cell(f"{ICONS[row.tier]} {row.tier}", seeds, 1000 * TIERS.index(row.tier) + len(row.runs))


def _cell(row: BoardRow, column: BoardColumn, value: RowValue, ranked: bool) -> Cell:
    note = f"se {words.format_value(value.standard_error, column.unit)}" if value.standard_error is not None else ""
    if ranked and (place := row.places.get(column.id)):
        note = f"rank {place.rank} ({words.rank_interval(place)}) {place.groups}"
    return Cell(words.spread(value, column.unit), note, value.mean)


def _budget(board: Board) -> list[TableColumn]:
    def column(key: str, title: str, note: str, form: Callable[[float], str]) -> TableColumn:
        costs = {row.id: getattr(row, key) for row in board.rows}
        return TableColumn(
            key, title, note, "budget", {row: Cell(form(cost), value=cost) for row, cost in costs.items()}
        )

    extra = {row.id: Cell("yes" if row.extra_data else "no", value=row.extra_data) for row in board.rows}
    return [
        column("forward", "Forward passes", "images", words.format_count),
        column("backward", "Backward passes", "images", words.format_count),
        column("seconds", "Time", "training and evaluation", words.format_seconds),
        TableColumn("extra", "Extra data", "", "budget", extra),
    ]


def method_results(board: Board, row: BoardRow) -> list[tuple[BoardColumn, dict[str, tuple[str, str, str]]]]:
    """Every quantity of a row: checkpoint -> value, interval or standard error, and place."""
    made = []
    for column in board.quantities:
        cells = {}
        for checkpoint in ("best", "last"):
            value = row.value(checkpoint, column.id)
            if value is None:
                continue
            uncertainty = words.interval(value.low, value.high, column.unit)
            if not uncertainty and value.standard_error is not None:
                uncertainty = f"standard error {words.format_value(value.standard_error, column.unit)}"
            place = row.places.get(column.id) if checkpoint == board.checkpoint else None
            rank = f"rank {place.rank} ({words.rank_interval(place)}), {place.groups}" if place else ""
            cells[checkpoint] = (words.format_value(value.mean, column.unit), uncertainty, rank)
        if cells:
            made.append((column, cells))
    return made


class ResultRow(NamedTuple):
    """One quantity of one network. of: canonical text of its attack or measure, where the heading does not say it."""

    heading: str
    of: str
    unit: str
    test: QuantityValue
    train: float | None


def run_results(board: Board, values: Sequence[QuantityValue]) -> list[ResultRow]:
    """The errors, losses and measures of one network, on test and on training examples; gaps follow from them."""
    titles = {each.id: each.title for each in board.quantities}
    train = {value[:2]: value.value for value in values if value.split == "train"}
    rows = []
    for value in values:
        if value.split != "test":
            continue
        quantity, of = value[:2]
        unit, title = quantity_unit(quantity, of), titles.get(column_id(quantity, of), "")
        name = title or "Measure" if quantity == "measure" else quantity.replace("_", " ").capitalize()
        heading = ", ".join(filter(None, (name, words.UNITS.get(unit))))
        if quantity == "robust_error" and title:  # the board of a later version may have other attacks
            heading += f": {title}"
        shown = of if quantity in ("robust_error", "measure") else ""
        rows.append(ResultRow(heading, shown, unit, value, train.get((quantity, of))))
    return rows
