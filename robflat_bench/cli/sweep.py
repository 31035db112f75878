"""`robflat-bench sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robflat_bench.record import RunRecord
    from robflat_bench.registry import Registry
    from robflat_bench.study import Study
    from robflat_bench.sweep import Outcome, Task


@click.command()
@click.argument("study")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 1..N of each variant.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time.")
@click.option("--plan", is_flag=True, help="List the runs and what they cost, and do nothing.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in an earlier sweep.")
@output.store_option
@output.data_option
@output.device_option
@output.plugin_option
@output.json_option
def sweep(
    study: str,
    seeds: int,
    jobs: int,
    plan: bool,
    retry_failed: bool,
    store: Path,
    data: str | None,
    device: str,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Run every variant of a STUDY (a shipped one, or a TOML file) and show one table.

    Finished runs are skipped, interrupted ones resume. A failed run stops nothing: the sweep goes on, lists it at
    the end and exits with 1.
    """
    from robflat_bench.protocol import load
    from robflat_bench.study import load_study

    registry = output.registry(files)
    chosen = load_study(study)

    from robflat_bench.data.splits import load_splits
    from robflat_bench.store import Store
    from robflat_bench.sweep import Sweep, tasks

    splits = load_splits(registry, load(registry, chosen.protocol), data)
    wanted, refused = tasks(registry, chosen, seeds, splits.ref, len(splits.pools["train"].y), Store(store))
    for variant in refused:
        output.note(f"cannot run {variant.variant}: {variant.reason}")
    if plan:
        _show_plan(chosen, wanted, as_json)
        _raise_for(len(refused), len(wanted) + len(refused))
        return

    def command(task: Task) -> list[str]:
        settings = [part for setting in task.variant.settings for part in ("--set", setting)]
        plugins = [part for file in files for part in ("--plugin", str(file))]
        where = ["--store", str(store), "--device", device, *(["--data", data] if data else [])]
        row = ["--method", task.variant.method, "--protocol", chosen.protocol, "--seed", str(task.spec.seed)]
        return [*row, *settings, *plugins, *where]

    with _Bar(len(wanted)) as bar:
        outcomes = Sweep(command, jobs, retry_failed, bar.started, bar.ended).run(wanted)
    if as_json:
        cannot = [{"run": str(row.variant), "state": "refused", "error": row.reason} for row in refused]
        rows = [_row(task, outcomes[task.spec.key]) for task in wanted]
        output.emit_json({"study": chosen.name, "runs": [*rows, *cannot]})
    else:
        _show_results(registry, chosen, [task for task in wanted if outcomes[task.spec.key] == "done"])
    lacking = [task for task in wanted if outcomes[task.spec.key] != "done"]
    for task in lacking:
        why = task.error() or "another process works on it"
        output.note(f"{outcomes[task.spec.key]}: {task.title}: {why}")
    _raise_for(len(lacking) + len(refused), len(wanted) + len(refused))


def _raise_for(lacking: int, total: int) -> None:
    from robflat_bench.base import RunFailed

    if lacking:
        raise RunFailed(f"{lacking} of {total} runs are not done, as listed; --retry-failed tries failed ones again")


class _Bar:
    """How far the sweep is, on stderr: a bar with the time left on a terminal, a line per run elsewhere."""

    def __init__(self, total: int) -> None:
        from robflat_bench.cli.progress import bars

        screen = output.console(stderr=True)
        self.total, self.done, self.terminal = total, 0, screen.is_terminal
        self.bar = bars(screen)
        self.bar.disable = not self.terminal
        self.task = self.bar.add_task("sweep", total=total)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def started(self, task: Task) -> None:
        self.bar.update(self.task, description=task.title)

    def ended(self, task: Task, outcome: Outcome) -> None:
        self.done += 1
        self.bar.advance(self.task)
        line = f"[{self.done}/{self.total}] {task.title}: {outcome}"
        if outcome == "failed":
            line += f": {task.error()}"
        if self.terminal:
            self.bar.console.print(line, markup=False)
        else:
            click.echo(line, err=True)


def _row(task: Task, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {
        "group": task.variant.group,
        "run": task.spec.label,
        "seed": task.spec.seed,
        "key": task.spec.key,
        "state": outcome,
        "error": task.error() if outcome == "failed" else "",
        "folder": str(task.folder.path),
    }
    if outcome == "done":
        record = task.folder.record()
        row["results"] = {name: result.model_dump(mode="json") for name, result in record.results.items()}
        row["budget"] = record.budget.model_dump()
    return row


def _show_plan(study: Study, wanted: Sequence[Task], as_json: bool) -> None:
    rows = [
        {
            "group": task.variant.group,
            "run": task.spec.label,
            "seed": task.spec.seed,
            "key": task.spec.key,
            "state": task.state(),
            "forward": task.passes[0],
            "backward": task.passes[1],
        }
        for task in wanted
    ]
    if as_json:
        output.emit_json({"study": study.name, "protocol": study.protocol, "runs": rows})
        return
    cells = [
        [
            task.variant.group,
            task.spec.label,
            str(task.spec.seed),
            task.state(),
            *(f"{passes / 1e6:.2f}" for passes in task.passes),
        ]
        for task in wanted
    ]
    passes = "10^6 image passes of training and helpers"
    heading = f"{study.name} {study.version}: {len(rows)} runs under {study.protocol} ({passes})"
    out = output.console()
    out.print(output.table(heading, ["group", "run", "seed", "state", "forward", "backward"], cells, right=4))


def _show_results(registry: Registry, study: Study, done: Sequence[Task]) -> None:
    """One row per run, one table per checkpoint."""
    records = [(task, task.folder.record()) for task in done]
    if not records:
        return
    out = output.console()
    for checkpoint in ("best", "last"):
        heading = f"{study.name} {study.version} under {study.protocol}: {checkpoint} checkpoint"
        columns, rows = summary(registry, records, checkpoint)
        out.print(output.table(heading, columns, rows, right=2))
    out.print("errors on test images; loss and gap of the protocol's first attack, in nats; values ± standard error")


def summary(
    registry: Registry, records: Sequence[tuple[Task, RunRecord]], checkpoint: str
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of one checkpoint."""
    from robflat_bench.components import title

    first = records[0][1].results[checkpoint]  # type: ignore[index]
    attacks, measures = list(first.robust_error), list(first.measures)
    columns = [
        "run",
        "seed",
        "clean",
        *(title(registry, "attack", name) for name in attacks),
        "robust loss",
        "gap",
        *(title(registry, "measure", name) for name in measures),
        "seconds",
    ]
    rows = []
    for task, record in records:
        result = record.results[checkpoint]  # type: ignore[index]
        flatness = [result.measures[name] for name in measures]
        rows.append(
            [
                task.spec.label,
                str(task.spec.seed),
                output.percent(result.clean_error),
                *(output.percent(result.robust_error[name].test) for name in attacks),
                output.number(result.robust_loss.test if result.robust_loss else None),
                output.number(result.gap.robust_loss),
                *(output.number(found.value, found.standard_error) for found in flatness),
                f"{record.budget.seconds:.0f}",
            ]
        )
    return columns, rows
