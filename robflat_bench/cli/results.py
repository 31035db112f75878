"""`robflat-bench results`: what lies in a store."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from robflat_bench.cli import output


@click.group()
def results() -> None:
    """What you have: runs, finished and not."""


@results.command()
@output.store_option
@output.json_option
def ls(store: Path, as_json: bool) -> None:
    """List the runs of a store."""
    from robflat_bench.base import CheckFailed
    from robflat_bench.spec import RunSpec
    from robflat_bench.store import Store, read_record

    rows, problems = [], []
    for run in Store(store).runs():
        try:
            spec = read_record(run.path / "spec.json", RunSpec)
            record = run.record() if run.record_file.is_file() else None
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
                "state": "done" if record else "failed" if run.failed_file.is_file() else "unfinished",
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
@output.json_option
def show(run: str, store: Path, as_json: bool) -> None:
    """Show one RUN (a folder, or a key or its beginning), its evaluations merged in."""
    from robflat_bench.base import UsageError
    from robflat_bench.store import Store

    folder = Store(store).find(run)
    if not folder.record_file.is_file():
        raise UsageError(f"{folder.path} is not finished; type its `robflat-bench run` again and it resumes")
    record = folder.record()
    added = folder.evaluations()
    if as_json:
        output.emit_json(
            {
                **record.model_dump(mode="json"),
                "evaluations": [item.model_dump(mode="json") for item in added],
            }
        )
        return
    registry = output.registry()
    output.show_record(registry, record, folder.record_file)
    for evaluation in added:
        rows = output.result_rows(registry, list(evaluation.results.values()))
        output.console().print(output.table(f"added: {evaluation.key}", ["", *evaluation.results], rows, right=1))
