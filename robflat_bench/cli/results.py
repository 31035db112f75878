"""`robflat-bench results`: list, show, export, push and remove the runs of a store. `compare` has the statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from robflat_bench.cli import compare, output
from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.shown import result_grid, run_parts, store_parts

if TYPE_CHECKING:
    from robflat_bench.records.quantities import Outcomes
    from robflat_bench.records.record import EvaluationRecord
    from robflat_bench.records.store import RunFolder


@click.group("results", no_args_is_help=False)
def results_group() -> None:
    """Look at your runs, finished and unfinished."""


results_group.add_command(compare.compare_runs)
results_group.add_command(compare.correlate)
results_group.add_command(compare.report_methods)


@results_group.command("ls")
@output.store_option
@output.json_option
def list_runs(store: Path) -> None:
    """List the runs of a store."""
    from robflat_bench.core import CheckFailed
    from robflat_bench.records.overview import overview
    from robflat_bench.records.store import Store

    place = Store(store)
    rows, problems = overview(place)
    output.report(rows, store_parts(output.registry(), place, rows))
    for problem in problems:
        output.note(problem)
    if problems:
        raise CheckFailed(f"{len(problems)} of the records in {store} cannot be trusted")


@results_group.command("show")
@click.argument("run")
@output.store_option
@output.plugin_option
@output.json_option
def show_run(run: str, store: Path) -> None:
    """Show one RUN (a folder, or a key or its beginning) with the evaluations that were added to it."""
    from robflat_bench.core import UsageError
    from robflat_bench.records.store import Store

    folder = Store(store).find(run)
    if not folder.record_file.is_file():
        failed = f"it failed, see {folder.failed_file}; " if folder.state == "failed" else ""
        raise UsageError(f"{folder.path} is not finished; {failed}type its `robflat-bench run` again and it resumes")
    added = folder.evaluations()
    document = {**folder.record().model_dump(mode="json"), "evaluations": [evaluation for evaluation, _ in added]}
    output.report(document, _parts(folder, added))


def _parts(folder: RunFolder, added: Sequence[tuple[EvaluationRecord, Outcomes]]) -> Iterator[Grid | str]:
    registry = output.registry()
    yield from run_parts(registry, folder)
    for evaluation, outcomes in added:
        yield result_grid(f"added: {evaluation.key}", registry, evaluation.results, outcomes)


@results_group.command()
@click.option("--output", "file", type=click.Path(path_type=Path), help="Write the CSV to this file, not to stdout.")
@output.store_option
@output.json_option
def export(file: Path | None, store: Path) -> None:
    """Export every number of every finished run, one per line (CSV), for a spreadsheet, pandas or R.

    Errors are fractions; losses and gaps are in nats; standard errors are over examples, of that one network. `added`
    is true for numbers that `evaluate` added.
    """
    import csv
    import io

    from robflat_bench.front.tables import results
    from robflat_bench.records.store import write_atomically

    rows = results(store).rows

    def lines() -> Iterator[str]:
        if not rows:
            output.note(f"there is no finished run in {store}; `robflat-bench run --method at` makes one")
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if file is None:
            yield text.getvalue().removesuffix("\n")
        else:
            write_atomically(file, text.getvalue().encode())
            yield f"{len(rows)} numbers in {file}"

    output.report(rows, lines())


@results_group.command("push")
@click.argument("run")
@click.argument("to", metavar="hf://OWNER/NAME")
@click.option("--public", is_flag=True, help="Everyone sees it. Without it, a new model is private.")
@click.option("--replace", is_flag=True, help="Write over a model that holds something else.")
@click.option(
    "--license",
    "licence",
    default="unknown",
    show_default=True,
    metavar="ID",
    help="Licence of the weights, as the hub writes it: apache-2.0, cc-by-4.0, ...",
)
@click.option("--protocol", default="", metavar="FILE.toml", help="The run's protocol, where it is a file.")
@click.option("--plan", "only_plan", is_flag=True, help="Show the files and their sizes; send nothing.")
@output.store_option
@output.plugin_option
@output.json_option
def push_run(
    run: str, to: str, public: bool, replace: bool, licence: str, protocol: str, only_plan: bool, store: Path
) -> None:
    """Put a finished RUN on the Hugging Face hub: weights, record, outcomes and a card.

    A push of the same run again makes no commit. Your token is the hub client's own: `hf auth login`, or HF_TOKEN.
    """
    from robflat_bench.front.publishing import parcel, parcel_plan, send
    from robflat_bench.records.store import Store

    made = parcel(output.registry(), Store(store).find(run), to, protocol, licence)
    if only_plan:
        document, shown = parcel_plan(made, public)
        output.report(document, [shown])
        return
    done = send(made, public, replace)

    def lines() -> Iterator[str]:
        sent = f"{len(done.sent)} files sent" if done.sent else "all files were there already, no commit was made"
        yield f"{done.url} ({'private' if done.private else 'public'}): {sent}"
        yield f"evaluate it anywhere: robflat-bench evaluate {done.model}"

    output.report(done, lines(), stored=True)


@results_group.command("prune")
@click.option("--unfinished", is_flag=True, help="Also remove interrupted runs, which could still resume.")
@click.option("--weights", is_flag=True, help="Also remove the weights of finished runs, for `evaluate` and `verify`.")
@click.option("--yes", is_flag=True, help="Remove. Without it, the command only lists.")
@output.store_option
@output.json_option
def prune_runs(unfinished: bool, weights: bool, yes: bool, store: Path) -> None:
    """Remove runs that failed; records of finished runs always stay."""
    from robflat_bench.core import RunFailed
    from robflat_bench.records import overview
    from robflat_bench.records.store import Store

    rows = list(overview.prune(Store(store), unfinished, weights, yes))

    def parts() -> Iterator[Grid]:
        cells = [[row["folder"], row["state"], f"{row['bytes'] / 1e6:.1f}", row["error"]] for row in rows]
        heading = f"{'removed from' if yes else 'to remove from'} {store}"
        yield grid(heading, ["folder", "state", "MB", "problem"], cells)
        if rows and not yes:
            output.note("nothing was removed; add --yes")

    output.report(rows, parts())
    if failed := sum(bool(row["error"]) for row in rows):
        raise RunFailed(f"{failed} of {len(rows)} were not removed; their problems are above")
