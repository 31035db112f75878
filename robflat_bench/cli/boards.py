"""A board as a table of text: for the terminal, and for a report in Markdown or LaTeX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from robflat_bench.cli import output

if TYPE_CHECKING:
    from robflat_bench.analysis.statistics import Place
    from robflat_bench.leaderboard.model import Board, BoardColumn, BoardRow, RowValue

SHOWN = ("robust_error", "clean_error", "robust_loss", "gap_robust_loss")
LEGEND = (
    "rank: 95 % of bootstrap ranks; rows that share a letter are not told apart. ±: 95 % over seeds and examples; "
    "(se): of one network, over examples"
)

Rows = list[list[str]]


def columns(board: Board) -> list[BoardColumn]:
    """What ranks and what it is compared with; the site has the rest."""
    by_id = {quantity.id: quantity for quantity in board.quantities}
    return [by_id[name] for name in (*SHOWN, *board.rankings[1:]) if name in by_id]


def table(board: Board, mine: Collection[str] = ()) -> tuple[list[str], Rows]:
    """The names of the columns and the rows; those with a key of `mine` are marked, and versions of one method (of
    other plugin code, say) told apart by the key of a run."""
    shown = columns(board)
    labels = Counter(row.label for row in board.rows)
    names = [row.label + f" {{{row.runs[0].key[:8]}}}" * (labels[row.label] > 1) for row in board.rows]
    return ["rank", "method", "seeds", *(quantity.title for quantity in shown)], [
        _cells(row, name, board, shown, mine) for row, name in zip(board.rows, names, strict=True)
    ]


def _cells(row: BoardRow, name: str, board: Board, shown: Sequence[BoardColumn], mine: Collection[str]) -> list[str]:
    values = row.values[board.checkpoint]
    place = row.places.get(board.rankings[0])
    return [
        f"{_place(place)} {place.letters}" if place else "-",
        name + " *" * any(run.key in mine for run in row.runs),
        str(len(row.runs)),
        *(
            _value(values.get(quantity.id), quantity.unit == "fraction")
            + (
                f"  [{_place(row.places[quantity.id])}]"
                if quantity.id in row.places and quantity is not shown[0]
                else ""
            )
            for quantity in shown
        ),
    ]


def _place(place: Place) -> str:
    return f"{place.rank} ({place.low}-{place.high})"


def _value(value: RowValue | None, fraction: bool) -> str:
    """`35.0 ± 1.2 %`, half the 95 % interval; of one seed, which has none, `35.0 % (2.1 %)`: its standard error."""
    if value is None:
        return "-"
    written = output.percent if fraction else output.number
    if value.low is not None and value.high is not None:
        return written(value.mean, (value.high - value.low) / 2)
    return written(value.mean) + (f" ({written(value.standard_error)})" if value.standard_error is not None else "")


# ---------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------


def markdown(names: Sequence[str], rows: Rows) -> str:
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
