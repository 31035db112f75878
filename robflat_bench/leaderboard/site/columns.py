"""The board's table as columns: what everybody looks at first, the rest in groups that the reader can switch on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from robflat_bench.analysis.statistics import Place
from robflat_bench.core import LeaderboardColumn
from robflat_bench.leaderboard.model import TIERS, Board, BoardColumn, BoardRow, RowValue
from robflat_bench.leaderboard.site import words
from robflat_bench.leaderboard.site.svg import cut
from robflat_bench.records.quantities import MEASURE, QuantityValue, column_id, quantity_unit
from robflat_bench.registry.components import slug

GROUPS = {
    "loss": "Loss and gap",
    "flatness": "More flatness",
    "attacks": "Single attacks",
    "more": "More measures",
    "other": "Other checkpoint",
    "budget": "Budget and seeds",
    "plugins": "Plugins",
}
"""Group -> label of its switch; groups are hidden at first. Columns without a group are always shown."""
ICONS = {"self-reported": "\u25cb", "re-evaluated": "\u25d0", "reproduced": "\u25cf"}
GAP = column_id("gap_robust_loss")


class Cell(NamedTuple):
    """text: the content. note: a smaller second line, or a picture. value: what sorting uses where the text does not
    begin with that number. place: the row's rank by this column, for a ranked column."""

    text: str
    note: str | Markup = ""
    value: float | None = None
    place: Place | None = None


class TableColumn(NamedTuple):
    """key: name in addresses. title: short. full: the whole heading. note: unit and number of images. cells: row ->
    cell."""

    key: str
    title: str
    full: str
    note: str
    group: str
    cells: dict[str, Cell]


def table_columns(board: Board, offered: Sequence[LeaderboardColumn] = ()) -> list[TableColumn]:
    """All columns but rank and method, in order: what everybody looks at, then the groups. offered: of plugins."""
    core = _core(board)
    rest = [each for each in board.quantities if each.id not in core]
    short = words.short_titles(board.quantities, board.primary)
    other = "best" if board.checkpoint == "last" else "last"

    def measured(columns: Iterable[BoardColumn], group: str, checkpoint: str = "") -> list[TableColumn]:
        return [_measured(board, column, short[column.id], group, checkpoint) for column in columns]

    def starting(*prefixes: str) -> list[BoardColumn]:
        return [each for each in rest if each.id.startswith(prefixes)]

    ranked = [each for each in rest if each.id in board.rankings]
    repeated = [board.column(id) for id in (*core, *(each.id for each in (*ranked, *starting("robust_loss"))))]
    made = [
        *measured(map(board.column, core), ""),
        *measured(starting("robust_loss", "gap_"), "loss"),
        *measured(ranked, "flatness"),
        *measured(starting("attack:"), "attacks"),
        *measured([each for each in starting(MEASURE) if each not in ranked], "more"),
        *measured(repeated, "other", other),
        *_budget(board),
        *(_offered(board, column) for column in offered),
    ]
    return [column for column in made if column.cells]


def _core(board: Board) -> list[str]:
    """The columns that are always shown: both errors, the gap, and the first measure of each name that is ranked."""
    return [id for id in (board.rankings[0], "clean_error", GAP, *board.primary) if id in board.titles]


def _offered(board: Board, column: LeaderboardColumn) -> TableColumn:
    values = {row.id: column.values[row.id] for row in board.rows if row.id in column.values}
    cells = {row: Cell(format(value, column.form), value=value) for row, value in values.items()}
    return TableColumn(slug(f"plugin-{column.name}"), column.title, column.title, column.note, "plugins", cells)


def _measured(board: Board, column: BoardColumn, short: str, group: str, checkpoint: str) -> TableColumn:
    """A quantity at a checkpoint, or at the board's (""). Columns that are always shown have pictures of their
    intervals."""
    values = {row.id: value for row in board.rows if (value := row.value(checkpoint or board.checkpoint, column.id))}
    places = {row.id: row.places.get(column.id) for row in board.rows if not checkpoint}
    picture = _picture([*values.values()]) if not group else None
    cells = {
        row: Cell(
            words.spread(value, column.unit),
            picture(value) if picture else _error(value, column.unit),
            place=places.get(row),
        )
        for row, value in values.items()
    }
    key = slug(f"{column.id}-{checkpoint}" if checkpoint else column.id)
    title, full = (f"{text}, {checkpoint}" if checkpoint else text for text in (short, column.title))
    return TableColumn(key, title, full, words.unit_and_n(column), group, cells)


def _error(value: RowValue, unit: str) -> str:
    return f"se {words.format_value(value.standard_error, unit)}" if value.standard_error is not None else ""


def _picture(values: Sequence[RowValue]) -> Callable[[RowValue], Markup]:
    """Draws a value with its interval on the scale of a column's values. What lies further, a far value or the end of
    a wide interval, stands at the end of the scale."""
    beyond = cut([value.mean for value in values])
    means = [value.mean for value in values if value.mean < beyond]
    low, high = min(means, default=0.0), max(means, default=1.0)

    def picture(value: RowValue) -> Markup:
        shown = (value.mean if end is None else end for end in (value.low, value.mean, value.high))
        a, b, c = (8 + 84 * min(1.1, max(-0.1, (end - low) / ((high - low) or 1.0))) for end in shown)
        line = "" if value.low is None else f'<path d="M{a:.1f} 4H{c:.1f}"/>'
        return Markup(f'<svg viewBox="0 0 100 8" aria-hidden="true">{line}<circle cx="{b:.1f}" cy="4" r="3"/></svg>')

    return picture


def _evidence(row: BoardRow) -> Cell:
    """The tier and the number of seeds; sorted by tier, then by seeds."""
    seeds = f"{len(row.runs)} seed{'s' * (len(row.runs) != 1)}"
    return Cell(f"{ICONS[row.tier]} {row.tier}", seeds, 1000 * TIERS.index(row.tier) + len(row.runs))


def _budget(board: Board) -> list[TableColumn]:
    def column(key: str, title: str, note: str, cells: dict[str, Cell]) -> TableColumn:
        return TableColumn(key, title, title, note, "budget", cells)

    def costs(key: str, form: Callable[[float], str]) -> dict[str, Cell]:
        return {row.id: Cell(form(cost), value=cost) for row in board.rows for cost in [getattr(row, key)]}

    extra = {row.id: Cell("yes" if row.extra_data else "no", value=row.extra_data) for row in board.rows}
    return [
        column("evidence", "Evidence", "seeds", {row.id: _evidence(row) for row in board.rows}),
        column("forward", "Forward passes", "images", costs("forward", words.format_count)),
        column("backward", "Backward passes", "images", costs("backward", words.format_count)),
        column("seconds", "Time", "training and evaluation", costs("seconds", words.format_seconds)),
        column("extra", "Extra data", "", extra),
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


def run_results(board: Board, values: Sequence[QuantityValue], others: Mapping[str, str]) -> list[ResultRow]:
    """The errors, losses and measures of one network, on test and on training examples; gaps follow from them.
    others: titles of columns that the board does not have."""
    titles = {**others, **board.titles}
    train = {value[:2]: value.value for value in values if value.split == "train"}
    rows = []
    for value in values:
        if value.split != "test":
            continue
        quantity, of = value[:2]
        unit, title = quantity_unit(quantity, of), titles.get(column_id(quantity, of), of)
        name = words.capital(title if quantity in ("measure", "worst_case") else quantity.replace("_", " "))
        heading = ", ".join(filter(None, (name, words.UNITS.get(unit))))
        if quantity == "worst_case":
            heading += ": worst case of all attacks, which boards rank"
        if quantity == "robust_error":
            heading += f": {title}"
        shown = of if quantity in ("robust_error", "measure") else ""
        rows.append(ResultRow(heading, shown, unit, value, train.get((quantity, of))))
    return rows
