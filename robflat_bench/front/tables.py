"""Tidy tables: one number a row, for a notebook, pandas or a spreadsheet. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from robflat_bench.core import UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.boards import Standings
from robflat_bench.front.grids import Grid, as_html, as_text, grid
from robflat_bench.front.sessions import open_registry
from robflat_bench.front.shown import store_parts

if TYPE_CHECKING:
    import pandas as pd

    from robflat_bench.leaderboard.model import Board
    from robflat_bench.records.quantities import Outcomes
    from robflat_bench.records.record import EvaluationRecord, RunRecord
    from robflat_bench.records.store import RunFolder, Store
    from robflat_bench.registry.registry import Registry

Row = Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Rows(Sequence[Row]):
    """Rows of one table, each a dictionary with the same keys. A notebook shows a summary of them.

    Parameters
    ----------
    rows : tuple of mapping
        The rows.
    shown : tuple of Grid or str
        What a notebook and `repr` show; without it, the rows themselves.
    """

    rows: tuple[Row, ...]
    shown: tuple[Grid | str, ...] = ()

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> Rows: ...
    def __getitem__(self, place: int | slice) -> Row | Rows:
        return Rows(self.rows[place]) if isinstance(place, slice) else self.rows[place]

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a data frame; pandas is not installed with this package.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame([*map(dict, self.rows)])

    def __repr__(self) -> str:
        return as_text(self._parts())

    def _repr_html_(self) -> str:
        return as_html(self._parts())

    def _parts(self) -> tuple[Grid | str, ...]:
        columns = [*self.rows[0]] if self.rows else []
        return self.shown or (grid(f"{len(self)} rows", columns, [row.values() for row in self.rows]),)


# ---------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------


@checked
def results(store: str | Path = "runs") -> Rows:
    """Every number of every finished run in a store, one a row, with those that `evaluate` added.

    Parameters
    ----------
    store : str or Path
        Folder of the runs; without such a folder there are no rows.

    Returns
    -------
    Rows
        key, protocol, version, protocol_hash, canonical_data, run, seed, checkpoint, added, quantity, of (the attack or
        measure), split, value, standard_error (over examples, of that one network), n. Errors are fractions; losses and
        gaps are in nats; `added` is true for numbers that `evaluate` added. A notebook shows one line a run.

    Raises
    ------
    CheckFailed
        A record disagrees with the outcomes beside it.
    """
    from robflat_bench.records.store import Store

    place = Store(Path(store))
    rows = [row for run in place.runs("record.json") for row in _numbers(run)]
    return Rows(tuple(rows), tuple(_overview(place)))


def _overview(store: Store) -> Iterator[Grid | str]:
    from robflat_bench.records.overview import overview

    rows, problems = overview(store)
    yield from store_parts(open_registry(), store, rows)
    yield from problems


def run_rows(run: RunFolder, registry: Registry) -> Rows:
    """Every number of one finished run."""
    from robflat_bench.front.shown import run_parts

    return Rows(tuple(_numbers(run)), tuple(run_parts(registry, run)))


def evaluation_rows(record: EvaluationRecord, outcomes: Outcomes, shown: tuple[Grid | str, ...]) -> Rows:
    """Every number of one evaluation."""
    from robflat_bench.records.quantities import quantity_values

    rows = [
        {"key": record.key, "protocol": record.protocol.name, "model": record.model, **value._asdict()}
        for checkpoint, result in record.results.items()
        for value in quantity_values(checkpoint, result, outcomes)
    ]
    return Rows(tuple(rows), shown)


def _numbers(run: RunFolder) -> Iterator[Row]:
    from robflat_bench.records.quantities import quantity_values

    record, outcomes = run.evidence()
    spec = record.spec
    parts: list[tuple[bool, RunRecord | EvaluationRecord, Outcomes]] = [(False, record, outcomes)]
    parts += [(True, evaluation, arrays) for evaluation, arrays in run.evaluations()]
    for added, one, arrays in parts:
        for checkpoint, result in one.results.items():
            for value in quantity_values(checkpoint, result, arrays):
                yield {
                    "key": record.key,
                    "protocol": spec.protocol.name,
                    "version": spec.protocol.version,
                    "protocol_hash": spec.protocol.hash,
                    "canonical_data": spec.dataset.canonical,
                    "run": spec.label,
                    "seed": spec.seed,
                    "checkpoint": checkpoint,
                    "added": added,
                    **value._asdict(),
                }


# ---------------------------------------------------------------------------------------------------------
# The board
# ---------------------------------------------------------------------------------------------------------


@checked
def board(
    protocol: str = "digits-linf",
    *,
    leaderboard: str | Path = "leaderboard",
    store: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
) -> Rows:
    """The board of a protocol: every value of every ranked method, one a row.

    Parameters
    ----------
    protocol : str
        Name of a protocol, or a TOML file.
    leaderboard : str or Path
        Folder of the committed entries: `leaderboard` of a clone of this project.
    store : str, Path or None
        Folder of your own runs, which are ranked beside the committed ones; None: none.

    Returns
    -------
    Rows
        board, method, seeds, mine, tier, checkpoint, quantity, unit, value (mean over seeds), low, high (95 % interval
        over seeds and examples), standard_error (of a single seed), n, rank (None where the row is not ranked),
        rank_low, rank_high (95 % of bootstrap ranks), letters (rows that share one do not differ significantly), lead
        (not significantly worse than any other row). A notebook shows the board.

    Raises
    ------
    UsageError
        There is no such folder or protocol.
    CheckFailed
        A committed entry or a run cannot be trusted.
    """
    root = Path(leaderboard)
    if store is not None and not Path(store).is_dir():
        raise UsageError(f"there is no folder {store} here; give store=DIR of your runs, or leave it out")
    if not root.is_dir() and store is None:
        raise UsageError(f"there is no folder {root} here; give leaderboard=DIR of a clone, or store=DIR of your runs")
    registry = open_registry(plugins)
    standings = Standings.of(registry, (protocol,), root, None if store is None else Path(store))
    rows = [row for made in standings.boards for row in _board_rows(made, standings.mine)]
    shown = [part for made in standings.boards for part in standings.parts(made)]
    return Rows(tuple(rows), (*shown, standings.legend))


def _board_rows(made: Board, mine: frozenset[str]) -> Iterator[Row]:
    for row in made.rows:
        for checkpoint, values in row.values.items():
            for column in made.quantities:
                if (value := values.get(column.id)) is None:
                    continue
                place = row.places.get(column.id) if checkpoint == made.checkpoint else None
                yield {
                    "board": made.id,
                    "method": row.label,
                    "seeds": value.seeds,
                    "mine": any(run.key in mine for run in row.runs),
                    "tier": row.tier,
                    "checkpoint": checkpoint,
                    "quantity": column.id,
                    "unit": column.unit,
                    "value": value.mean,
                    "low": value.low,
                    "high": value.high,
                    "standard_error": value.standard_error,
                    "n": column.n,
                    "rank": place.rank if place else None,
                    "rank_low": place.low if place else None,
                    "rank_high": place.high if place else None,
                    "letters": place.letters if place else "",
                    "lead": place.lead if place else None,
                }
