"""Boards: of the committed entries and your own runs; as tables of text, in Markdown and in LaTeX."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.text import note, number, percent

if TYPE_CHECKING:
    from robflat_bench.analysis.statistics import Place
    from robflat_bench.config.protocol import Protocol
    from robflat_bench.leaderboard.entries import Submission
    from robflat_bench.leaderboard.model import Board, BoardColumn, BoardRow, Leaderboard
    from robflat_bench.registry.registry import Registry

SHOWN = ("robust_error", "clean_error", "robust_loss", "gap_robust_loss")
LEGEND = (
    "rank (lowest-highest): 95 % of bootstrap ranks; lead: not significantly worse than any other method. Lower is "
    "better, and flatter. ±: the longer side of the 95 % confidence interval over "
    "seeds and examples; in brackets: standard error of one network over examples, or the rank by that column"
)

Cells = list[list[str]]


@dataclass(frozen=True)
class Standings:
    """Boards of committed entries with your own finished runs among them.

    Parameters
    ----------
    leaderboard : Leaderboard
        All boards.
    boards : tuple of Board
        The boards that were asked for.
    mine : frozenset of str
        Keys of your own runs that are not committed.
    """

    leaderboard: Leaderboard
    boards: tuple[Board, ...]
    mine: frozenset[str]

    @classmethod
    def of(cls, registry: Registry, protocols: Sequence[str], root: Path, store: Path | None) -> Standings:
        """Read the entries below `root`, where it exists, and the runs of `store`.

        Parameters
        ----------
        protocols : sequence of str
            Names of protocols, or TOML files; none: all boards.

        Raises
        ------
        CheckFailed
            An entry or a record cannot be trusted.
        UsageError
            There is no such protocol, or two of them are versions of one.
        """
        from robflat_bench.leaderboard.build import build_leaderboard

        committed = checked_entries(root, registry) if root.exists() else []  # before a protocol stands for another
        asked = admitted(registry, protocols)
        names, hashes = {one.name for one in asked}, {one.hash for one in asked}
        known = {one.record.key: one.record.outcomes for one in committed if one.entry.status == "active"}
        found = own_runs(store, registry, asked) if store else []
        own = [one for one in found if one.record.key not in known]
        same = [known[one.record.key] == one.record.outcomes for one in found if one.record.key in known]
        if same:
            others = f", {same.count(False)} with other outcomes (another machine rounds differently)"
            others = "" if all(same) else others
            note(f"{len(same)} of your runs are in {root} already{others}; the committed entry is shown")
        wanted = [one for one in (*committed, *own) if not names or one.record.protocol.hash in hashes]
        made = build_leaderboard(wanted, root, registry)
        chosen = tuple(board for board in made.boards if not names or board.protocol in names)
        return cls(made, chosen, frozenset(one.record.key for one in own))

    def heading(self, board: Board) -> str:
        """The line above a board's table."""
        return f"{board.id} {board.version}, {board.checkpoint} checkpoint"

    def parts(self, board: Board) -> Iterator[Grid | str]:
        """A board's table with its notes, but `legend`, which stands once below all boards."""
        yield grid(self.heading(board), *standing_table(board, self.mine), right=2, keep=2)
        yield examples_note(_standing_columns(board))
        yield from standing_notes(board)

    @property
    def legend(self) -> str:
        """The line below all tables."""
        return LEGEND + ("; * yours, not submitted" if self.mine else "")


def checked_entries(root: Path, registry: Registry) -> list[Submission]:
    """Every entry; CheckFailed if one cannot be trusted, because a board without it would differ."""
    from robflat_bench.leaderboard.publish import read_leaderboard

    found, problems = read_leaderboard(root, registry)
    for problem in problems:
        note(problem.line)
    if problems:
        raise CheckFailed(f"{len(problems)} problems in {root} (listed above); a board has all entries or none")
    return found


def admitted(registry: Registry, names: Sequence[str]) -> list[Protocol]:
    """Load protocols by name, NAME@VERSION or file; afterwards each is known by its name without a version.

    Raises UsageError where two of them have one name and different boards.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.leaderboard.entry_checks import known_protocol

    found = [load(registry, name) for name in names]
    if len({one.name for one in found}) < len({(one.name, one.hash) for one in found}):
        raise UsageError("two versions of one protocol have two boards; name one of them with --protocol")
    for name, one in zip(names, found, strict=True):
        if name != one.name:
            file = registry.protocol_file(name) if registry.has_protocol(name) else Path(name)
            registry.admit_protocol(one.name, file)
            known_protocol.cache_clear()
    return found


def own_runs(store: Path, registry: Registry, asked: Sequence[Protocol]) -> list[Submission]:
    """The finished runs of a store under these protocols, which are `admitted` (none: all that are known here).

    Runs under unknown protocols are named in a line on stderr, unless protocols were chosen and have runs.
    """
    from robflat_bench.leaderboard.entries import store_submissions

    hashes = {one.hash for one in asked}
    found, others = store_submissions(store, registry)
    chosen = [run for run in found if not asked or run.record.protocol.hash in hashes]
    if others and (not asked or not chosen):
        listed = ", ".join(f"{count} under {name}" for name, count in sorted(others.items()))
        add = "add --protocol NAME@VERSION or --protocol FILE.toml"
        note(f"left out, since their protocol is not known here: in {store} {listed}; {add}")
    return chosen


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def shown_quantities(board: Board) -> list[BoardColumn]:
    """The quantity that ranks and those shown beside it; the site shows all."""
    by_id = {quantity.id: quantity for quantity in board.quantities}
    return [by_id[name] for name in (*SHOWN, *board.rankings[1:]) if name in by_id]


def _labels(board: Board) -> list[str]:
    """The label of each row; versions of one method (of other plugin code, for example) carry the key of a run."""
    labels = Counter(row.label for row in board.rows)
    return [f"{row.label} {{{row.runs[0].key[:8]}}}" if labels[row.label] > 1 else row.label for row in board.rows]


def board_table(board: Board) -> tuple[list[str], Cells]:
    """Columns and rows of the board, for a report."""
    shown = shown_quantities(board)
    rows = []
    for row, label in zip(board.rows, _labels(board), strict=True):
        place = row.places.get(board.rankings[0])
        rank = f"{_place(place)} {place.groups}" if place else "-"
        values = [_value(row, quantity, board, ranked=quantity is shown[0]) for quantity in shown]
        rows.append([rank, label, str(len(row.runs)), *values])
    return ["rank", "method", "seeds", *(quantity.title for quantity in shown)], rows


def standing_table(board: Board, mine: Collection[str] = ()) -> tuple[list[str], Cells]:
    """Columns and rows of the board for a terminal: what ranks comes first, units stand in the headings.

    Runs with a key of `mine` are marked.
    """
    from robflat_bench.leaderboard.site.words import UNITS, short_title

    shown, rows = _standing_columns(board), []
    for row, label in zip(board.rows, _labels(board), strict=True):
        marks = ["*"] if any(run.key in mine for run in row.runs) else []
        marks += [mark.sign for mark in MARKS if mark.holds(row)]
        values = [_plain(row, quantity, board) for quantity in shown]
        place = row.places.get(board.rankings[0])
        rank = f"{_place(place)}{' lead' * place.lead}" if place else "-"
        rows.append([rank, " ".join([label, *marks]), *values, str(len(row.runs))])
    titles = [f"{short_title(one.title).lower()}, {UNITS.get(one.unit, '')}".rstrip(", ") for one in shown]
    return ["rank", "method", *titles, "seeds"], rows


def _standing_columns(board: Board) -> list[BoardColumn]:
    """What ranks, flatness, and then the other quantities."""
    others = [name for name in ("gap_robust_loss", "clean_error", "robust_loss") if name in board.titles]
    return [board.column(name) for name in (board.rankings[0], *board.primary, *others)]


def examples_note(columns: Sequence[BoardColumn]) -> str:
    """`n test images: 500 (clean error), 250 (robust error)`; `n = 250 test images` where all columns have as many."""
    from robflat_bench.leaderboard.site.words import short_title

    names: dict[int, list[str]] = {}
    for one in columns:
        names.setdefault(one.n, []).append(short_title(one.title).lower())
    if len(names) == 1:
        return f"n = {columns[0].n:,} test images"
    return "n test images: " + ", ".join(f"{n:,} ({', '.join(of)})" for n, of in names.items())


class Mark(NamedTuple):
    """A sign behind a method's name, what it means, and for which rows it stands there."""

    sign: str
    meaning: str
    holds: Callable[[BoardRow], bool]


MARKS = (
    Mark("\u2691", "a record gives a reason to distrust an attack", lambda row: any(run.flags for run in row.runs)),
    Mark("+data", "trained on extra data", lambda row: row.extra_data),
)


def standing_notes(board: Board) -> list[str]:
    """What the signs of `standing_table` mean where they occur, and why rows have no rank."""
    found = [f"{mark.sign}: {mark.meaning}" for mark in MARKS if any(map(mark.holds, board.rows))]
    reasons: dict[str, list[str]] = {}
    for row in board.rows:
        if row.unranked:
            reasons.setdefault(row.unranked, []).append(row.label)
    return found + [f"not ranked: {', '.join(labels)} ({reason})" for reason, labels in reasons.items()]


def _plain(row: BoardRow, quantity: BoardColumn, board: Board) -> str:
    """`35.0 \u00b1 1.2`: a value without its unit, and in brackets its rank where it has one of its own."""
    value = row.values[board.checkpoint].get(quantity.id)
    if value is None:
        return "-"
    place = row.places.get(quantity.id) if quantity.id != board.rankings[0] else None
    error = "" if value.standard_error is None else f" ({_number_of(quantity, value.standard_error)})"
    return _number_of(quantity, value.mean, value.side) + error + (f" [{place.rank}]" if place else "")


def _number_of(quantity: BoardColumn, value: float, error: float | None = None) -> str:
    """A number in the unit that stands in the heading."""
    return (percent if quantity.unit == "fraction" else number)(value, error).removesuffix(" %")


def claims_table(board: Board) -> tuple[list[str], Cells]:
    """Columns and rows of the claims of a board."""
    return ["", "claim", "evidence"], [[one.id, one.claim, one.sentence] for one in board.claims]


def _place(place: Place) -> str:
    return f"{place.rank} ({place.low}-{place.high})"


def _value(row: BoardRow, quantity: BoardColumn, board: Board, ranked: bool) -> str:
    """`35.0 ± 1.2 %`; of one seed, which has no interval, `35.0 % (2.1 %)`. A rank of its own follows in brackets."""
    value = row.values[board.checkpoint].get(quantity.id)
    place = "" if ranked or quantity.id not in row.places else f"  [{_place(row.places[quantity.id])}]"
    if value is None:
        return "-" + place
    written = percent if quantity.unit == "fraction" else number
    if value.side is not None:
        return written(value.mean, value.side) + place
    error = "" if value.standard_error is None else f" ({written(value.standard_error)})"
    return written(value.mean) + error + place


# ---------------------------------------------------------------------------------------------------------
# Reports
# ---------------------------------------------------------------------------------------------------------


def markdown(names: Sequence[str], rows: Cells) -> str:
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


def latex(names: Sequence[str], rows: Cells) -> str:
    """A `tabular` in the booktabs style."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"

    body = [r"\toprule", line(names), r"\midrule", *map(line, rows), r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(names)}}}", *body, r"\end{tabular}"])


FORMATS = {"markdown": markdown, "latex": latex}
