"""All rows as one table: its cells are the board's, and every reader of it finds the same cells."""

import csv
import hashlib
import io
import json
import math

import pyarrow.parquet as pq
import pytest
from helpers import board_fixture

from robflat_bench.leaderboard.croissant import TYPES
from robflat_bench.leaderboard.model import Leaderboard
from robflat_bench.leaderboard.site.pages import TABLE, render_site
from robflat_bench.leaderboard.tidy import COLUMNS, tidy_csv, tidy_parquet, tidy_rows

NAMES = [column.name for column in COLUMNS]
PYTHON = {"text": str, "boolean": bool, "integer": int, "number": float}


@pytest.fixture(scope="module")
def made():
    return board_fixture.make()


@pytest.fixture(scope="module")
def files(made):
    return render_site(*made)


def test_every_value_of_every_row_is_one_line(made):
    (board,) = made[0].boards
    lines = [dict(zip(NAMES, row, strict=True)) for row in tidy_rows(made[0])]
    named = {(line["row"], line["checkpoint"], line["quantity"]): line for line in lines}
    expected = {(row.id, point, name) for row in board.rows for point in row.values for name in row.values[point]}
    assert named.keys() == expected
    assert len(lines) == len(expected) > 100
    for (id, point, name), line in named.items():
        row = next(row for row in board.rows if row.id == id)
        value, place = row.values[point][name], row.places.get(name) if point == board.checkpoint else None
        assert [line[part] for part in ("mean", "sd", "low", "high", "standard_error")] == [
            *(value.mean, value.sd, value.low, value.high, value.standard_error)
        ]
        assert (line["rank"], line["rank_low"]) == ((place.rank, place.low) if place else (None, None))
        assert (line["seeds"], line["norm"], line["epsilon"]) == (len(row.runs), board.norm, board.epsilon)
    assert any(line["rank"] is None for line in lines)
    assert any(line["rank"] is not None for line in lines)


def test_cells_have_the_types_of_their_columns(made):
    rows = tidy_rows(made[0])
    for column, cells in zip(COLUMNS, zip(*rows, strict=True), strict=True):
        kinds = {type(cell) for cell in cells if cell is not None}
        assert kinds <= {PYTHON[column.type]}, column.name
        assert kinds, f"{column.name} is never filled, so nothing here reads it"


def test_csv_and_parquet_hold_the_same_cells(made, files):
    rows = tidy_rows(made[0])
    table = pq.read_table(io.BytesIO(files["data/board.rows.parquet"]))
    assert table.column_names == NAMES
    assert [*zip(*(column.to_pylist() for column in table.columns), strict=True)] == rows
    text = [*csv.reader(io.StringIO(files[f"data/{TABLE}"].decode()))]
    assert text == [NAMES, *(["" if cell is None else str(cell) for cell in row] for row in rows)]


def test_a_board_without_rows_has_the_columns():
    empty = tidy_rows(Leaderboard(boards=()))
    assert pq.read_table(io.BytesIO(tidy_parquet(empty))).column_names == NAMES
    assert tidy_csv(empty).decode() == ",".join(NAMES) + "\n"


@pytest.mark.parametrize("text", ["=1+1", "\t@x", "a\nb,c"])
def test_a_cell_is_one_line_and_no_formula(text):
    rows = tidy_rows(board_fixture.make(hostile=text, methods=2)[0])
    lines = [*csv.reader(io.StringIO(tidy_csv(rows).decode()))]
    assert {len(line) for line in lines} == {len(COLUMNS)}
    assert not [cell for line in lines for cell in line if cell.startswith(("=", "@", "\t")) or "\n" in cell]


def test_the_metadata_name_the_file_beside_them(files):
    document, table = json.loads(files["data/croissant.json"]), files[f"data/{TABLE}"]
    (file,), (rows,) = document["distribution"], document["recordSet"]
    assert (file["contentUrl"], file["contentSize"]) == (TABLE, f"{len(table)} B")
    assert file["sha256"] == hashlib.sha256(table).hexdigest()
    assert [field["source"]["extract"]["column"] for field in rows["field"]] == NAMES
    assert [field["dataType"] for field in rows["field"]] == [TYPES[column.type] for column in COLUMNS]
    assert document["datePublished"] == "2026-11-23"


@pytest.fixture
def croissant(tmp_path, files):
    """mlcroissant, and the metadata as a file beside its table."""
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed; `uv sync` installs it")
    for name in (TABLE, "croissant.json"):
        (tmp_path / name).write_bytes(files[f"data/{name}"])
    return mlcroissant, tmp_path / "croissant.json"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlcroissant_finds_nothing_wrong(croissant):
    mlcroissant, file = croissant
    metadata = mlcroissant.Dataset(jsonld=file).metadata
    assert not metadata.ctx.issues.errors
    assert not metadata.ctx.issues.warnings


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlcroissant_reads_every_cell_as_it_was_written(croissant, made):
    """It casts without a word, so what it reads is compared column by column with what was written."""
    mlcroissant, file = croissant
    found = [*mlcroissant.Dataset(jsonld=file).records("rows")]
    rows = tidy_rows(made[0])
    assert len(found) == len(rows)
    for k, column in enumerate(COLUMNS):
        read = [record[f"rows/{column.name}"] for record in found]
        missing = [cell is None or (isinstance(cell, float) and math.isnan(cell)) for cell in read]
        assert missing == [row[k] is None for row in rows], column.name
        cells = [cell.decode() if isinstance(cell, bytes) else cell for cell in read]
        assert [cell for cell, gone in zip(cells, missing, strict=True) if not gone] == [
            row[k] for row in rows if row[k] is not None
        ], column.name
