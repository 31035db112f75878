"""`robflat-bench results`: what lies in a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robflat_bench.config.protocol import Checkpoint
    from robflat_bench.leaderboard.rows import SeedGroup
    from robflat_bench.results.quantities import Outcomes
    from robflat_bench.results.record import EvaluationRecord, RunRecord


@click.group()
def results() -> None:
    """What you have: runs, finished and not."""


@results.command()
@output.store_option
@output.json_option
def ls(store: Path, as_json: bool) -> None:
    """List the runs of a store."""
    from robflat_bench.config.spec import RunSpec
    from robflat_bench.core import CheckFailed
    from robflat_bench.results.store import Store, read_record

    rows: list[dict[str, Any]] = []
    problems = []
    for run in Store(store).runs():
        try:
            record = run.record() if run.record_file.is_file() else None
            spec = record.spec if record else read_record(run.path / "spec.json", RunSpec)
        except CheckFailed as error:
            problems.append(str(error))
            continue
        last = record.results["last"] if record else None
        rows.append(
            {
                "key": spec.key,
                "protocol": spec.protocol.name,
                "run": spec.label,
                "seed": spec.seed,
                "state": run.state,
                "clean_error": last.clean_error if last else None,
                "robust_error": {name: pair.test for name, pair in last.robust_error.items()} if last else {},
                "measures": {name: found.value for name, found in last.measures.items()} if last else {},
                "folder": str(run.path),
            }
        )
    if as_json:
        output.emit_json(rows)
    else:
        cells = [
            [
                row["key"],
                row["protocol"],
                row["run"],
                str(row["seed"]),
                row["state"],
                output.percent(row["clean_error"]),
                ", ".join(output.percent(value) for value in row["robust_error"].values()) or "-",
                ", ".join(output.number(value) for value in row["measures"].values()) or "-",
            ]
            for row in rows
        ]
        columns = ["key", "protocol", "run", "seed", "state", "clean error", "robust errors", "measures"]
        output.console().print(output.table(f"runs in {store} (last checkpoint)", columns, cells, right=5))
    for problem in problems:
        output.note(problem)
    if problems:
        raise CheckFailed(f"{len(problems)} of the records in {store} cannot be trusted")


@results.command()
@click.argument("run")
@output.store_option
@output.plugin_option
@output.json_option
def show(run: str, store: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Show one RUN (a folder, or a key or its beginning), its evaluations merged in."""
    from robflat_bench.core import UsageError
    from robflat_bench.results.store import Store

    folder = Store(store).find(run)
    if not folder.record_file.is_file():
        failed = f"it failed, see {folder.failed_file}; " if folder.state == "failed" else ""
        raise UsageError(f"{folder.path} is not finished; {failed}type its `robflat-bench run` again and it resumes")
    added = folder.evaluations()
    if as_json:
        output.emit_json(
            {
                **folder.record().model_dump(mode="json"),
                "evaluations": [item.model_dump(mode="json") for item, _ in added],
            }
        )
        return
    registry = output.registry(files)
    output.show_run(registry, folder)
    for evaluation, outcomes in added:
        rows = output.result_rows(registry, evaluation.results, outcomes)
        output.console().print(output.table(f"added: {evaluation.key}", ["", *evaluation.results], rows, right=1))


checkpoint_option = click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)


@results.command()
@click.argument("a")
@click.argument("b")
@output.protocol_option
@checkpoint_option
@output.store_option
@output.plugin_option
@output.json_option
def compare(
    a: str, b: str, protocol: str, checkpoint: Checkpoint, store: Path, files: tuple[Path, ...], as_json: bool
) -> None:
    """Compare two methods A and B (as `results ls` names their runs) over all their seeds in the store.

    The difference of the methods with its 95 % interval, and the smallest difference that so many seeds and examples
    would show with a power of 80 %; and, of each pair of seeds, McNemar's test: that one is of two networks, not of
    two methods.
    """
    from dataclasses import asdict

    from robflat_bench.analysis.statistics import compare_methods
    from robflat_bench.leaderboard.rows import group_seeds
    from robflat_bench.results.quantities import column_label

    registry = output.registry(files)
    rows = group_seeds(output.own_runs(store, registry, [protocol]))
    one, other = (_row(rows, name, f"under {protocol} in {store}") for name in (a, b))
    measured = [row.networks[0][checkpoint].measures for row in (one, other)]
    measures = [name for name in measured[0] if name in measured[1]]
    found = {
        quantity: compare_methods(x, y)
        for quantity in ("robust_error", "clean_error", "robust_loss", *measures)
        if (x := one.compared(checkpoint, quantity)).size and (y := other.compared(checkpoint, quantity)).size
    }
    if as_json:
        output.emit_json(
            {
                "a": {"label": a, "seeds": [run.record.seed for run in one.runs]},
                "b": {"label": b, "seeds": [run.record.seed for run in other.runs]},
                "protocol": protocol,
                "checkpoint": checkpoint,
                "quantities": {quantity: asdict(comparison) for quantity, comparison in found.items()},
            }
        )
        return
    cells = []
    for quantity, comparison in found.items():
        numbers = (comparison.difference, comparison.low, comparison.high, comparison.p, comparison.detectable)
        cells.append([column_label(registry, quantity), *map(output.number, numbers)])
    heading = f"{a} minus {b} | {protocol}, {checkpoint}: {len(one.runs)} and {len(other.runs)} seeds"
    columns = ["", "difference", "95 % from", "to", "p", "detectable at 80 %"]
    out = output.console()
    out.print(output.table(heading, columns, cells, right=1))
    tests = found["robust_error"].networks if "robust_error" in found else ()
    pairs = zip(one.runs, other.runs, tests, strict=False)
    cells = [
        [f"{x.record.seed} and {y.record.seed}", str(test.only_a), str(test.only_b), output.number(test.p)]
        for x, y, test in pairs
    ]
    heading = "robust error of two networks, not of two methods (McNemar, exact)"
    if cells:
        out.print(output.table(heading, ["seeds", f"only {a} wrong", f"only {b} wrong", "p"], cells, right=1))


def _row(rows: Sequence[SeedGroup], name: str, where: str) -> SeedGroup:
    """The row of that label, or with a run of that key (or beginning of one)."""
    from robflat_bench.core import UsageError
    from robflat_bench.registry.validation import did_you_mean

    found = [row for row in rows if row.label == name]
    found = found or [row for row in rows if any(run.record.key.startswith(name) for run in row.runs)]
    if not found:
        raise UsageError(f"no finished run of '{name}' {where}" + did_you_mean(name, [row.label for row in rows]))
    if len(found) > 1:
        keys = ", ".join(row.runs[0].record.key[:8] for row in found)
        raise UsageError(
            f"'{name}' has {len(found)} versions {where}, of other code or data; name one by a run's key: {keys}"
        )
    return found[0]


@results.command()
@click.argument("measure", default="*")
@click.option(
    "--target", default="robust_loss", show_default=True, help="robust_loss, robust_error or the gap_ of each."
)
@output.protocol_option
@checkpoint_option
@output.store_option
@output.plugin_option
@output.json_option
def correlate(
    measure: str,
    target: str,
    protocol: str,
    checkpoint: Checkpoint,
    store: Path,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say how each MEASURE (a name, or a pattern) goes with a target over all methods in the store."""
    from fnmatch import fnmatchcase

    from robflat_bench.core import UsageError
    from robflat_bench.leaderboard.build import build_leaderboard
    from robflat_bench.leaderboard.correlations import TARGETS
    from robflat_bench.registry.components import parse
    from robflat_bench.results.quantities import MEASURE, column_label

    if target not in TARGETS:
        raise UsageError(f"unknown target '{target}'; there are {', '.join(TARGETS)}")
    registry = output.registry(files)
    runs = output.own_runs(store, registry, [protocol])
    found = [
        one
        for board in build_leaderboard(runs, store, registry).boards
        for one in board.correlations
        if (one.target, one.checkpoint) == (target, checkpoint)
        and fnmatchcase(parse(one.quantity.removeprefix(MEASURE))[0], measure)
    ]
    if as_json:
        output.emit_json([one.model_dump(mode="json") for one in found])
        return
    if not found:
        raise UsageError(f"no measure matches '{measure}' in the runs under {protocol} in {store}")
    out = output.console()
    for one in found:
        cells = [
            [statistic.name, *map(output.number, (statistic.value, statistic.low, statistic.high)), statistic.reason]
            for statistic in one.statistics
        ]
        measured, targeted = (column_label(registry, id) for id in (one.quantity, target))
        heading = f"{measured} with {targeted}, {checkpoint}, {one.models} models"
        out.print(output.table(heading, ["", "value", "95 % from", "to", ""], cells))


# ---------------------------------------------------------------------------------------------------------
# Out of the store
# ---------------------------------------------------------------------------------------------------------


@results.command()
@click.option("--output", "file", type=click.Path(path_type=Path), help="Write the CSV there, instead of to stdout.")
@output.store_option
@output.json_option
def export(file: Path | None, store: Path, as_json: bool) -> None:
    """Every number of every finished run, one per line (CSV), for a spreadsheet, pandas or R.

    Errors are fractions, losses and gaps nats; standard errors are over examples, of that one network. `added` tells
    what `evaluate` added from what the run itself measured.
    """
    import csv
    import io

    from robflat_bench.results.quantities import quantity_values
    from robflat_bench.results.store import Store, write_atomically

    rows = []
    for run in Store(store).runs("record.json"):
        record, outcomes = run.evidence()
        spec = record.spec
        parts: list[tuple[bool, RunRecord | EvaluationRecord, Outcomes]] = [(False, record, outcomes)]
        parts += [(True, evaluation, arrays) for evaluation, arrays in run.evaluations()]
        for added, one, arrays in parts:
            rows += [
                {
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
                for checkpoint, result in one.results.items()
                for value in quantity_values(checkpoint, result, arrays)
            ]
    if as_json:
        output.emit_json(rows)
        return
    if not rows:
        output.note(f"there is no finished run in {store}; `robflat-bench run --method at` makes one")
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if file is None:
        click.echo(text.getvalue(), nl=False)
    else:
        write_atomically(file, text.getvalue().encode())
        click.echo(f"{len(rows)} numbers in {file}")


@results.command()
@click.option("--protocol", "protocols", multiple=True, help="Only this board, a name or a TOML file; repeatable.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["markdown", "latex"]),
    default="markdown",
    show_default=True,
    help="Of tables.",
)
@output.store_option
@output.plugin_option
@output.json_option
def report(protocols: tuple[str, ...], style: str, store: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Your methods, ranked among themselves, as a table to paste into a text, with what it was made on and with."""
    from robflat_bench.cli import boards
    from robflat_bench.leaderboard.build import build_leaderboard

    registry = output.registry(files)
    runs = output.own_runs(store, registry, protocols)
    made = [board for board in build_leaderboard(runs, store, registry).boards if board.rows]
    if as_json:
        output.emit_json([board.model_dump(mode="json") for board in made])
        return
    if not made:
        output.note(f"there is no finished run to rank in {store}; `robflat-bench run --method at` makes one")
    start = {"markdown": "", "latex": "% "}[style]
    for board in made:
        keys = {run.key for row in board.rows for run in row.runs}
        of = [run.record for run in runs if run.record.key in keys]
        lines = [
            boards.LEGEND,
            "; ".join(f"{quantity.title}: {quantity.n} test images" for quantity in boards.columns(board)),
            "made with " + ", ".join(sorted({_made_with(record.environment) for record in of})),
        ]
        heading = f"{board.id} {board.version} ({board.hash[:8]}), {board.checkpoint} checkpoint"
        click.echo(f"{start or '## '}{heading}\n\n{boards.FORMATS[style](*boards.table(board))}\n")
        click.echo("\n".join(start + line for line in lines) + "\n")


def _made_with(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    return f"torch {packages.get('torch', '?')} on {environment.get('device_name', '?')}"


@results.command()
@click.option("--unfinished", is_flag=True, help="Also runs that were interrupted; they could still be resumed.")
@click.option("--weights", is_flag=True, help="Also the weights of finished runs; `evaluate` and `verify` need them.")
@click.option("--yes", is_flag=True, help="Do it. Without, only what would go is listed.")
@output.store_option
@output.json_option
def prune(unfinished: bool, weights: bool, yes: bool, store: Path, as_json: bool) -> None:
    """Remove runs that failed; records of finished runs always stay."""
    import shutil

    from robflat_bench.results.store import Busy, Store

    whole = {"failed", *(["unfinished"] if unfinished else [])}
    rows: list[dict[str, Any]] = []
    for run in Store(store).runs():
        target = run.path if run.state in whole else run.checkpoints
        if run.state in whole or (weights and run.state == "done" and target.is_dir()):
            size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
            rows.append({"folder": str(target), "state": run.state, "bytes": size, "removed": False, "error": ""})
            if yes:
                try:
                    with run.locked():
                        if run.state == rows[-1]["state"]:  # nobody ended it in the meantime
                            shutil.rmtree(target)
                            rows[-1]["removed"] = True
                except Busy as error:
                    rows[-1]["error"] = str(error)
    if as_json:
        output.emit_json(rows)
        return
    cells = [[row["folder"], row["state"], f"{row['bytes'] / 1e6:.1f}", row["error"]] for row in rows]
    heading = f"{'removed from' if yes else 'to remove from'} {store}"
    output.console().print(output.table(heading, ["", "state", "MB", ""], cells))
    if rows and not yes:
        output.note("nothing was removed; add --yes")
