"""All boards as one tidy table: a line for each row, checkpoint and quantity. As CSV, and the same cells as Parquet.

`COLUMNS` says what each column is; the CSV, the Parquet and the Croissant metadata are made from it, so none of them
can name a type that another one has not.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from robflat_bench.leaderboard.model import Board, BoardRow, Leaderboard
from robflat_bench.leaderboard.site.export import harmless

Cell = str | bool | int | float | None
Type = Literal["text", "boolean", "integer", "number"]


class Column(NamedTuple):
    """A column: its name, the type of its cells (every type but "boolean" may lack some), and what they are."""

    name: str
    type: Type
    description: str


COLUMNS = (
    Column("board", "text", "Board: a protocol on its data."),
    Column("protocol", "text", "Name and version of the protocol."),
    Column("protocol_hash", "text", "SHA-256 of what the protocol fixes."),
    Column("norm", "text", "Norm of the ball of the attacks: linf or l2."),
    Column("epsilon", "number", "Radius of the ball of the attacks, in its norm; pixels are in [0,1]."),
    Column("row", "text", "Identifier of the row, unique on its board."),
    Column("label", "text", "Method, modifiers and settings that differ from the protocol's recipe."),
    Column("method", "text", "Canonical text of the method with its modifiers."),
    Column("tier", "text", "Evidence: self-reported, re-evaluated or reproduced; the lowest of the row's runs."),
    Column("extra_data", "boolean", "Whether it trained on images outside the training split."),
    Column("seeds", "integer", "Number of seeds."),
    Column("forward", "number", "Image passes forward of training, mean over seeds."),
    Column("backward", "number", "Image passes backward of training, mean over seeds."),
    Column("seconds", "number", "Wall-clock time of training and evaluation, mean over seeds."),
    Column("checkpoint", "text", "best (by held-out robust error) or last."),
    Column("quantity", "text", "Identifier of the quantity: an error, a loss, a gap, or measure: and its text."),
    Column("unit", "text", "fraction, nats, or 1 for a measure in a unit of its own. Lower is more robust or flatter."),
    Column("n", "integer", "Number of test examples."),
    Column("mean", "number", "Mean over seeds."),
    Column("sd", "number", "Standard deviation over seeds; missing with one seed."),
    Column(
        "low",
        "number",
        "Lower end of the 95 % confidence interval over seeds and examples, of a measure over seeds; missing with one "
        "seed.",
    ),
    Column("high", "number", "Upper end of that interval."),
    Column("standard_error", "number", "Standard error of one network over examples; missing with several seeds."),
    Column("rank", "integer", "Rank of the row in this quantity; missing where the board does not rank it."),
    Column("rank_low", "integer", "Lowest rank in 95 % of the bootstrap."),
    Column("rank_high", "integer", "Highest rank in 95 % of the bootstrap."),
)


def tidy_rows(leaderboard: Leaderboard) -> list[tuple[Cell, ...]]:
    """The cells of every line, in the order of `COLUMNS`."""
    lines = [line for board in leaderboard.boards for row in board.rows for line in _lines(board, row)]
    return [tuple(harmless(line[column.name]) for column in COLUMNS) for line in lines]


def _lines(board: Board, row: BoardRow) -> Iterator[dict[str, Any]]:
    about = {
        "board": board.id,
        "protocol": f"{board.protocol} {board.version}",
        "protocol_hash": f"sha256:{board.hash}",  # hex digits alone can read as a number
        "norm": board.norm,
        "epsilon": board.epsilon,
        "row": row.id,
        "seeds": len(row.runs),
        **{name: getattr(row, name) for name in ("label", "method", "tier", "extra_data")},
        **{name: getattr(row, name) for name in ("forward", "backward", "seconds")},
    }
    for checkpoint in ("best", "last"):
        for column in board.quantities:
            if (value := row.value(checkpoint, column.id)) is None:
                continue
            place = row.places.get(column.id) if checkpoint == board.checkpoint else None
            yield about | {
                "checkpoint": checkpoint,
                "quantity": column.id,
                "unit": column.unit or "1",  # readers take an empty cell for a missing one
                "n": column.n,
                **{name: getattr(value, name) for name in ("mean", "sd", "low", "high", "standard_error")},
                "rank": place and place.rank,
                "rank_low": place and place.low,
                "rank_high": place and place.high,
            }


def tidy_csv(rows: Sequence[tuple[Cell, ...]]) -> bytes:
    """The table as CSV; a missing cell is empty. Its bytes follow from the cells alone."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([[column.name for column in COLUMNS], *rows])
    return out.getvalue().encode()


def tidy_parquet(rows: Sequence[tuple[Cell, ...]]) -> bytes:
    """The table as Parquet. Its bytes name the version of pyarrow, so nothing committed depends on them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64()}
    fields = [pa.field(name, types[kind], metadata={"description": about}) for name, kind, about in COLUMNS]
    cells = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in COLUMNS]
    arrays = [pa.array(column, field.type) for column, field in zip(cells, fields, strict=True)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), out)
    return out.getvalue()
