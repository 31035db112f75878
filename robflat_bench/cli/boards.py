"""A board as a table of text: for the terminal, and for a report in Markdown or LaTeX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from robflat_bench.front.text import number, percent

if TYPE_CHECKING:
    from robflat_bench.analysis.statistics import Place
    from robflat_bench.leaderboard.model import Board, BoardColumn, BoardRow

SHOWN = ("robust_error", "clean_error", "robust_loss", "gap_robust_loss")
LEGEND = (
    "rank (lowest-highest): 95 % of bootstrap ranks; methods that share a letter do not differ significantly. "
    "±: half the 95 % confidence interval over seeds and examples; in brackets: standard error of one network over "
    "examples"
)

Rows = list[list[str]]


def shown_quantities(board: Board) -> list[BoardColumn]:
    """The quantity that ranks and those shown beside it; the site shows all."""
    by_id = {quantity.id: quantity for quantity in board.quantities}
    return [by_id[name] for name in (*SHOWN, *board.rankings[1:]) if name in by_id]


def board_table(board: Board, mine: Collection[str] = ()) -> tuple[list[str], Rows]:
    """Columns and rows of the board.

    Runs with a key of `mine` are marked. Versions of one method (of other plugin code, for example) carry the key of a
    run.
    """
    shown = shown_quantities(board)
    labels = Counter(row.label for row in board.rows)
    rows = []
    for row in board.rows:
        version = f" {{{row.runs[0].key[:8]}}}" if labels[row.label] > 1 else ""
        mark = " *" if any(run.key in mine for run in row.runs) else ""
        place = row.places.get(board.rankings[0])
        rank = f"{_place(place)} {place.letters}" if place else "-"
        values = [_value(row, quantity, board, ranked=quantity is shown[0]) for quantity in shown]
        rows.append([rank, row.label + version + mark, str(len(row.runs)), *values])
    return ["rank", "method", "seeds", *(quantity.title for quantity in shown)], rows


def _place(place: Place) -> str:
    return f"{place.rank} ({place.low}-{place.high})"


def _value(row: BoardRow, quantity: BoardColumn, board: Board, ranked: bool) -> str:
    """`35.0 ± 1.2 %`; of one seed, which has no interval, `35.0 % (2.1 %)`. A rank of its own follows in brackets."""
    value = row.values[board.checkpoint].get(quantity.id)
    place = "" if ranked or quantity.id not in row.places else f"  [{_place(row.places[quantity.id])}]"
    if value is None:
        return "-" + place
    written = percent if quantity.unit == "fraction" else number
    if value.low is not None and value.high is not None:
        return written(value.mean, (value.high - value.low) / 2) + place
    error = "" if value.standard_error is None else f" ({written(value.standard_error)})"
    return written(value.mean) + error + place


# ---------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------


def markdown(names: Sequence[str], rows: Rows) -> str:
    """A table in GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(re.sub(r"([\\|`*_<\[])", r"\\\1", cell) for cell in cells) + " |"

    return "\n".join([line(names), "|" + "---|" * len(names), *map(line, rows)])


LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
}


def latex(names: Sequence[str], rows: Rows) -> str:
    """A `tabular` in the booktabs style."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"

    body = [r"\toprule", line(names), r"\midrule", *map(line, rows), r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(names)}}}", *body, r"\end{tabular}"])


FORMATS = {"markdown": markdown, "latex": latex}
