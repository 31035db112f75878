"""The board's table as columns: what a reader needs first comes first, the rest in groups that are shown on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from robflat_bench.core import LeaderboardColumn
from robflat_bench.leaderboard.model import Board, Quantity, Row, Value
from robflat_bench.leaderboard.site.figures import find
from robflat_bench.leaderboard.site.words import amount, interval, number, ranks, seconds, spread
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
"""Group -> what its switch says, and whether it is on at first. Columns of no group are always shown."""


ICONS = {"self-reported": "\u25cb", "re-evaluated": "\u25d0", "reproduced": "\u25cf"}


class Cell(NamedTuple):
    """text: what is read; note: a smaller second line, or a picture of it; value: what is sorted by."""

    text: str
    note: str | Markup = ""
    value: float | None = None


class Column(NamedTuple):
    """key: as addresses name it. note: a smaller second line of the heading."""

    key: str
    title: str
    note: str
    group: str
    cells: dict[str, Cell]


def columns(board: Board, offered: Sequence[LeaderboardColumn] = ()) -> list[Column]:
    """All columns but rank and method, in order; offered: those of plugins."""
    by_id = {quantity.id: quantity for quantity in board.quantities}
    first = [find(board, board.rankings[0]), *(q for q in board.quantities if q.id == "clean_error")]
    made = [_measured(board, quantity, "") for quantity in first]
    made[0] = _pictured(board, made[0])
    ranked = [find(board, name) for name in board.rankings[1:]]
    rest = [q for q in by_id.values() if q not in first and q not in ranked]
    made += [_measured(board, quantity, "flatness") for quantity in ranked]
    made += [_measured(board, q, "loss") for q in rest if q.id.startswith(("robust_loss", "gap_"))]
    made.append(Column("evidence", "Evidence", "seeds", "", {row.id: _evidence(row) for row in board.rows}))
    made += [_measured(board, q, "attacks") for q in rest if q.id.startswith("attack:")]
    made += [_measured(board, q, "more") for q in rest if q.id.startswith("measure:")]
    other = "best" if board.checkpoint == "last" else "last"
    again = [*first, *ranked, *(q for q in rest if q.id in ("robust_loss", "gap_robust_loss"))]
    made += [_measured(board, quantity, "other", other) for quantity in again]
    made += _budget(board) + [_offered(board, column) for column in offered]
    return [column for column in made if column.cells]


def _offered(board: Board, column: LeaderboardColumn) -> Column:
    values = {row.id: column.values[row.id] for row in board.rows if row.id in column.values}
    cells = {row: Cell(format(value, column.form), value=value) for row, value in values.items()}
    return Column(slug(f"plugin-{column.name}"), column.title, column.note, "plugins", cells)


def _measured(board: Board, quantity: Quantity, group: str, checkpoint: str = "") -> Column:
    at = checkpoint or board.checkpoint
    unit = {"fraction": "%, ", "nats": "nats, "}.get(quantity.unit, "")
    found = {row.id: row.values.get(at, {}).get(quantity.id) for row in board.rows}  # type: ignore[call-overload]
    cells = {row.id: _cell(row, quantity, value, not checkpoint) for row in board.rows if (value := found[row.id])}
    return Column(
        slug(f"{quantity.id}-{checkpoint}" if checkpoint else quantity.id),
        f"{quantity.title}, {checkpoint}" if checkpoint else quantity.title,
        f"{unit}n {quantity.n:,}",
        group,
        cells,
    )


def _pictured(board: Board, column: Column) -> Column:
    """The column with its intervals drawn to one scale instead of its ranks, which have a column of their own."""
    values = {row.id: row.values[board.checkpoint][board.rankings[0]] for row in board.rows if row.id in column.cells}
    ends = [end for value in values.values() for end in (value.low, value.mean, value.high) if end is not None]
    low, width = min(ends, default=0.0), (max(ends, default=1.0) - min(ends, default=0.0)) or 1.0

    def picture(value: Value) -> Markup:
        a, b, c = (
            4 + 92 * ((v if v is not None else value.mean) - low) / width for v in (value.low, value.mean, value.high)
        )
        line = "" if value.low is None else f'<path d="M{a:.1f} 4H{c:.1f}"/>'
        return Markup(f'<svg viewBox="0 0 100 8" aria-hidden="true">{line}<circle cx="{b:.1f}" cy="4" r="3"/></svg>')

    return column._replace(cells={row: cell._replace(note=picture(values[row])) for row, cell in column.cells.items()})


def _evidence(row: Row) -> Cell:
    """The tier and the seeds; more of both sorts last."""
    seeds = f"{len(row.runs)} seed{'s' * (len(row.runs) != 1)}"
    return Cell(f"{ICONS[row.tier]} {row.tier}", seeds, 1000 * list(ICONS).index(row.tier) + len(row.runs))


def _cell(row: Row, quantity: Quantity, value: Value, ranked: bool) -> Cell:
    text = spread(value, quantity.unit)
    place = row.places.get(quantity.id) if ranked else None
    if place:
        note = f"rank {place.rank} ({ranks(place)}) {place.letters}"
    else:
        note = f"se {number(value.standard_error, quantity.unit)}" if value.standard_error is not None else ""
    return Cell(text, note, value.mean)


def _budget(board: Board) -> list[Column]:
    def column(key: str, title: str, note: str, cells: dict[str, Cell]) -> Column:
        return Column(key, title, note, "budget", cells)

    rows = board.rows
    return [
        column("forward", "Forward passes", "images", {r.id: Cell(amount(r.forward), value=r.forward) for r in rows}),
        column(
            "backward", "Backward passes", "images", {r.id: Cell(amount(r.backward), value=r.backward) for r in rows}
        ),
        column(
            "seconds",
            "Time",
            "training and evaluation",
            {r.id: Cell(seconds(r.seconds), value=r.seconds) for r in rows},
        ),
        column(
            "extra", "Extra data", "", {r.id: Cell("yes" if r.extra_data else "no", value=r.extra_data) for r in rows}
        ),
    ]


def results(board: Board, row: Row) -> list[tuple[Quantity, dict[str, tuple[str, str, str]]]]:
    """Every quantity of a row: checkpoint -> its value, its interval or standard error, and its place."""
    made = []
    for quantity in board.quantities:
        cells = {}
        for checkpoint in ("best", "last"):
            value = row.values.get(checkpoint, {}).get(quantity.id)
            if value is None:
                continue
            within = interval(value.low, value.high, quantity.unit)
            if not within and value.standard_error is not None:
                within = f"standard error {number(value.standard_error, quantity.unit)}"
            place = row.places.get(quantity.id) if checkpoint == board.checkpoint else None
            said = f"rank {place.rank} ({ranks(place)}), {place.letters}" if place else ""
            cells[checkpoint] = (number(value.mean, quantity.unit), within, said)
        if cells:
            made.append((quantity, cells))
    return made
