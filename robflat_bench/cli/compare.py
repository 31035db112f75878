"""`robflat-bench results compare`, `correlate` and `report`: statistics over your own runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front import boards
from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.text import next_line, options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robflat_bench.analysis.statistics import Comparison
    from robflat_bench.config.protocol import Checkpoint
    from robflat_bench.leaderboard.entries import Submission
    from robflat_bench.leaderboard.model import Board
    from robflat_bench.leaderboard.rows import SeedGroup
    from robflat_bench.registry.registry import Registry

checkpoint_option = click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)


@click.command("compare")
@click.argument("a")
@click.argument("b")
@output.protocol_option
@checkpoint_option
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page, too: both side by side with images and curves, in one file.",
)
@output.store_option
@output.plugin_option
@output.json_option
def compare_runs(a: str, b: str, protocol: str, checkpoint: Checkpoint, html: Path | None, store: Path) -> None:
    """Compare two methods A and B (as `results ls` names their runs) over all their seeds in the store.

    For each quantity: the difference of the methods with its 95 % confidence interval, and the smallest difference
    that these seeds and examples would detect with a power of 80 %. For each pair of seeds: McNemar's test, which
    compares two networks, not two methods.
    """
    from robflat_bench.leaderboard.comparison import ERRORS_AND_LOSS, differences
    from robflat_bench.leaderboard.rows import group_seeds

    registry = output.registry()
    runs = boards.own_runs(store, registry, boards.admitted(registry, [protocol]))
    rows = group_seeds(runs)
    one, other = (_row(rows, name, f"under {protocol} in {store}") for name in (a, b))
    _check_comparable(one, other)
    measured = [row.networks[0][checkpoint].measures for row in (one, other)]
    measures = [name for name in measured[0] if name in measured[1]]
    found = differences(one, other, checkpoint, (*ERRORS_AND_LOSS, *measures))
    document = {
        "a": {"label": a, "seeds": [run.record.seed for run in one.runs]},
        "b": {"label": b, "seeds": [run.record.seed for run in other.runs]},
        "protocol": protocol,
        "checkpoint": checkpoint,
        "quantities": found,
    }
    if html:
        from robflat_bench.leaderboard.publish import comparison

        _write(html, comparison(one, other, runs, checkpoint, store, registry))
    output.report(document, _comparison(registry, document, found, store), stored=bool(html))


def _check_comparable(one: SeedGroup, other: SeedGroup) -> None:
    """Refuse one method twice, and methods on different data."""
    from robflat_bench.core import UsageError

    if one is other:
        raise UsageError(f"A and B are both '{one.label}'; name two methods, see `robflat-bench results ls`")
    data = [group.runs[0].record.dataset for group in (one, other)]
    if data[0].checksum != data[1].checksum:
        raise UsageError(f"A and B were evaluated on different data, {data[0].origin} and {data[1].origin}")


def _write(file: Path, content: bytes) -> None:
    from robflat_bench.core import UsageError

    try:
        file.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}; name another file with --html") from error
    output.note(f"wrote {file}: open it in a browser")


def _comparison(
    registry: Registry, document: dict[str, Any], found: dict[str, Comparison], store: Path
) -> Iterator[Grid | str]:
    from robflat_bench.records.quantities import column_label

    (a, x), (b, y) = ((side["label"], side["seeds"]) for side in (document["a"], document["b"]))
    heading = f"{a} minus {b} | {document['protocol']}, {document['checkpoint']}: {len(x)} and {len(y)} seeds"
    columns = ["quantity", "difference", "95 % from", "to", "p", "detectable at 80 %"]
    cells = [
        [column_label(registry, name), c.difference, c.low, c.high, c.p, c.detectable] for name, c in found.items()
    ]
    yield grid(heading, columns, cells, right=1)
    tests = found["robust_error"].networks if "robust_error" in found else ()
    cells = [[f"{i} and {j}", test.only_a, test.only_b, test.p] for i, j, test in zip(x, y, tests, strict=False)]
    heading = "robust error of two networks, not of two methods (McNemar, exact)"
    if cells:
        yield grid(heading, ["seeds", f"only {a} wrong", f"only {b} wrong", "p"], cells, right=1)
    yield next_line(
        "results", "compare", a, b, "--html", "pair.html", *options(store, document["protocol"], document["checkpoint"])
    )


def _row(rows: Sequence[SeedGroup], name: str, where: str) -> SeedGroup:
    """The row with that label, or with a run whose key begins so."""
    from robflat_bench.core import UsageError
    from robflat_bench.registry.validation import did_you_mean

    found = [row for row in rows if row.label == name]
    found = found or [row for row in rows if any(run.record.key.startswith(name) for run in row.runs)]
    if not found:
        line = f"; type e.g. `robflat-bench run --method {shlex.quote(name)}`, or see `robflat-bench results ls`"
        hint = did_you_mean(name, [row.label for row in rows]) or line
        raise UsageError(f"no finished run of '{name}' {where}{hint}")
    if len(found) > 1:
        keys = ", ".join(row.runs[0].record.key[:8] for row in found)
        raise UsageError(
            f"'{name}' has {len(found)} versions {where}, of other code or data; name one by a run's key: {keys}"
        )
    return found[0]


@click.command()
@click.argument("measure", default="*")
@click.option(
    "--target", default="robust_loss", show_default=True, help="robust_loss, robust_error, or a gap_ of these."
)
@output.protocol_option
@checkpoint_option
@output.store_option
@output.plugin_option
@output.json_option
def correlate(measure: str, target: str, protocol: str, checkpoint: Checkpoint, store: Path) -> None:
    """Correlate each MEASURE (a name, or a pattern) with a target over all methods in the store."""
    from fnmatch import fnmatchcase

    from robflat_bench.analysis.correlation import STATISTICS
    from robflat_bench.core import UsageError
    from robflat_bench.leaderboard.build import build_leaderboard
    from robflat_bench.leaderboard.correlations import TARGETS
    from robflat_bench.records.quantities import MEASURE, column_label
    from robflat_bench.registry.grammar import parse

    if target not in TARGETS:
        raise UsageError(f"unknown target '{target}'; there are {', '.join(TARGETS)}")
    registry = output.registry()
    runs = boards.own_runs(store, registry, boards.admitted(registry, [protocol]))
    correlations = [
        one
        for board in build_leaderboard(runs, store, registry).boards
        for one in board.correlations
        if (one.target, one.checkpoint) == (target, checkpoint)
        and fnmatchcase(parse(one.quantity.removeprefix(MEASURE))[0], measure)
    ]

    def tables() -> Iterator[Grid | str]:
        if not correlations:
            raise UsageError(f"no measure matches '{measure}' in the runs under {protocol} in {store}")
        for one in correlations:
            cells = [[found.name, found.value, found.low, found.high, found.reason] for found in one.statistics]
            measured, targeted = (column_label(registry, id) for id in (one.quantity, target))
            heading = f"{measured} with {targeted}, {checkpoint}, {one.models} models"
            yield grid(heading, ["statistic", "value", "95 % from", "to", "why there is none"], cells)
        yield from (f"{name}: {kind.meaning}" for name, kind in STATISTICS.items())
        yield next_line("results", "report", *options(store, protocol))

    output.report(correlations, tables())


@click.command("report")
@output.protocols_option
@click.option(
    "--format",
    "style",
    type=click.Choice([*boards.FORMATS]),
    default="markdown",
    show_default=True,
    help="Format of the tables.",
)
@output.store_option
@output.plugin_option
@output.json_option
def report_methods(protocols: tuple[str, ...], style: str, store: Path) -> None:
    """Rank your methods among themselves: a table for a text, with the number of examples, torch and the device."""
    from robflat_bench.leaderboard.build import build_leaderboard

    registry = output.registry()
    runs = boards.own_runs(store, registry, boards.admitted(registry, protocols))
    made = [board for board in build_leaderboard(runs, store, registry).boards if board.rows]

    def texts() -> Iterator[str]:
        if not made:
            output.note(f"there is no finished run to rank in {store}; `robflat-bench run --method at` makes one")
        for board in made:
            yield from _section(board, runs, style)

    output.report(made, texts())


def _section(board: Board, runs: Sequence[Submission], style: str) -> Iterator[str]:
    start = {"markdown": "", "latex": "% "}[style]
    keys = {run.key for row in board.rows for run in row.runs}
    machines = sorted({_made_with(run.record.environment) for run in runs if run.record.key in keys})
    lines = [
        boards.LEGEND,
        "; ".join(f"{quantity.title}: {quantity.n} test images" for quantity in boards.shown_quantities(board)),
        "made with " + ", ".join(machines),
    ]
    heading = f"{board.id} {board.version} ({board.hash[:8]}), {board.checkpoint} checkpoint"
    yield f"{start or '## '}{heading}\n\n{boards.FORMATS[style](*boards.board_table(board))}\n"
    yield "\n".join(start + line for line in lines) + "\n"


def _made_with(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    return f"torch {packages.get('torch', '?')} on {environment.get('device_name', '?')}"
