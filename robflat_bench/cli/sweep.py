"""`robflat-bench sweep`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robflat_bench.config.study import Study
    from robflat_bench.registry.registry import Registry
    from robflat_bench.results.quantities import Outcomes
    from robflat_bench.results.record import RunRecord
    from robflat_bench.runs.sweep import Event
    from robflat_bench.runs.tasks import Pace, Refused, Task


@click.command()
@click.argument("study")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 1..N of each variant.")
@click.option("--launcher", default="local", show_default=True, help="Where runs are processes; see `list launchers`.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time.")
@click.option("--plan", is_flag=True, help="List the runs and what they cost, and do nothing.")
@click.option("--retry-failed", is_flag=True, help="Try again what failed in an earlier sweep.")
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@output.plugin_option
@output.json_option
def sweep(
    study: str,
    seeds: int,
    launcher: str,
    jobs: int,
    plan: bool,
    retry_failed: bool,
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Run every variant of a STUDY (a shipped one, or a TOML file) and show one table.

    Finished runs are skipped, interrupted ones resume, those of another process are waited for. A failed run stops
    nothing: the sweep goes on, lists it at the end and exits with 1.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.config.study import load_study
    from robflat_bench.core import Resources
    from robflat_bench.registry.components import resolve

    registry = output.registry(files)
    chosen = load_study(study)
    protocol = load(registry, chosen.protocol)
    component = resolve(registry, "launcher", launcher)

    from robflat_bench.cli.progress import SweepProgress
    from robflat_bench.config.cost import undeclared
    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.results.store import Store
    from robflat_bench.runs.sweep import Sweep
    from robflat_bench.runs.tasks import pace, tasks

    session = Session(registry, protocol, data, Store(store), choose_device(device))
    launching = component.build(Resources(jobs, protocol.fixed.threads, session.device))
    wanted, refused = tasks(session, chosen, seeds)
    for variant in refused:
        output.note(f"cannot run {variant.variant}: {variant.reason}")
    agenda = Agenda(wanted, refused, jobs, retry_failed, pace(session.store, protocol.hash))
    if plan:
        if as_json:
            output.emit_json({"study": chosen.name, "protocol": chosen.protocol, **agenda.document()})
        else:
            agenda.show(chosen, undeclared(registry, protocol))
        _raise_for(len(refused), len(wanted) + len(refused))
        return

    def command(task: Task) -> list[str]:
        settings = [part for setting in task.variant.settings for part in ("--set", setting)]
        plugins = [part for file in files for part in ("--plugin", str(file))]
        where = ["--store", str(store), "--device", device, *(["--data", data] if data else [])]
        row = ["--method", task.variant.method, "--protocol", chosen.protocol, "--seed", str(task.spec.seed)]
        return [*row, *settings, *plugins, *where, *(["--compile"] if compile else [])]

    output.note(agenda.summary())
    with SweepProgress(len(wanted), drawing=not launching.foreground) as progress:
        ended = Sweep(launching, command, retry_failed, progress).run(wanted)
    if as_json:
        rows = [_row(ended[task.spec.key]) for task in wanted]
        output.emit_json({"study": chosen.name, "runs": [*rows, *map(_refusal, refused)]})
    else:
        _show_results(registry, chosen, [task for task in wanted if ended[task.spec.key].what == "done"], store)
    lacking = [event for event in ended.values() if event.what != "done"]
    for event in lacking:
        output.note(f"{event.what}: {event.task.title}: {event.why}")
    _raise_for(len(lacking) + len(refused), len(wanted) + len(refused))


def _raise_for(lacking: int, total: int) -> None:
    from robflat_bench.core import RunFailed

    if lacking:
        raise RunFailed(f"{lacking} of {total} runs are not done, as listed; --retry-failed tries failed ones again")


# ---------------------------------------------------------------------------------------------------------
# Before: the plan
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agenda:
    """What a sweep would run, what it would skip and why, and what that will take."""

    wanted: Sequence[Task]
    refused: Sequence[Refused]
    jobs: int
    retry_failed: bool
    pace: Pace | None

    def skipped(self, task: Task) -> str:
        """Why it would not be run; empty if it would."""
        if task.state() == "failed" and not self.retry_failed:
            return f"--retry-failed tries it again: {task.error()}"
        return "its record is there" if task.state() == "done" else ""

    @property
    def ahead(self) -> list[Task]:
        return [task for task in self.wanted if not self.skipped(task)]

    def estimate(self) -> dict[str, float] | None:
        """Seconds of work ahead and of waiting for it; None where no finished run tells."""
        if self.pace is None:
            return None
        seconds = sum(map(self.pace.seconds, self.ahead))
        return {"runs": self.pace.runs, "seconds": seconds, "elapsed": seconds / self.jobs}

    def summary(self) -> str:
        """One line: how many of each, and how long."""
        states = Counter(task.state() for task in self.wanted) + Counter(refused=len(self.refused))
        found = ", ".join(f"{count} {state}" for state, count in states.items())
        line = f"{states.total()} runs ({found}), {len(self.ahead)} to make"
        estimate = self.estimate()
        if estimate is None or not self.ahead:
            return line
        line += f": about {output.duration(estimate['seconds'])}"
        line += f", {output.duration(estimate['elapsed'])} with {self.jobs} at a time" if self.jobs > 1 else ""
        return f"{line}, estimated from {estimate['runs']} finished runs in this store"

    def document(self) -> dict[str, Any]:
        rows = [
            {
                **_identity(task),
                "state": task.state(),
                "skipped": self.skipped(task),
                "forward": task.training[0],
                "backward": task.training[1],
                "evaluation": {"forward": task.evaluation[0], "backward": task.evaluation[1]},
                "seconds": self.pace.seconds(task) if self.pace and not self.skipped(task) else None,
            }
            for task in self.wanted
        ]
        return {"jobs": self.jobs, "estimate": self.estimate(), "runs": [*rows, *map(_refusal, self.refused)]}

    def show(self, study: Study, undeclared: Sequence[str]) -> None:
        """The table, and under it what it adds up to."""
        cells = []
        for task in self.wanted:
            skipped = self.skipped(task)
            took = output.duration(self.pace.seconds(task)) if self.pace and not skipped else "-"
            state = f"{task.state()}, {task.epochs()} epochs" if task.state() == "unfinished" else task.state()
            row = [task.variant.group, task.spec.label, str(task.spec.seed), state, skipped]
            cells.append([*row, _millions(task.training), _millions(task.evaluation), took])
        for refusal in self.refused:
            cells.append([refusal.variant.group, str(refusal.variant), "", "refused", refusal.reason, "", "", ""])
        columns = ["group", "run", "seed", "state", "skipped because", "training", "evaluation", "time left"]
        out = output.console()
        out.print(output.table(f"{study.name} {study.version} under {study.protocol}", columns, cells, right=5))
        unknown = f"; evaluation without {', '.join(undeclared)}, whose passes a search decides" if undeclared else ""
        note = f"10^6 image passes, forward + backward; training with its helpers'{unknown}"
        training, evaluation = (
            _millions((sum(passes[0] for passes in column), sum(passes[1] for passes in column)))
            for column in ([task.training for task in self.ahead], [task.evaluation for task in self.ahead])
        )
        out.print(note, markup=False)
        out.print(f"{self.summary()}; training {training}, evaluation {evaluation}", markup=False)


def _millions(passes: tuple[int, int]) -> str:
    return " + ".join(f"{count / 1e6:.2f}" for count in passes)


def _identity(task: Task) -> dict[str, Any]:
    return {"group": task.variant.group, "run": task.spec.label, "seed": task.spec.seed, "key": task.spec.key}


def _refusal(row: Refused) -> dict[str, Any]:
    return {"group": row.variant.group, "run": str(row.variant), "state": "refused", "error": row.reason}


# ---------------------------------------------------------------------------------------------------------
# After: what came out
# ---------------------------------------------------------------------------------------------------------


def _row(event: Event) -> dict[str, Any]:
    task = event.task
    row = {**_identity(task), "state": event.what, "error": event.why, "folder": str(task.folder.path)}
    if event.what == "done":
        record = task.folder.record()
        row["results"] = {name: result.model_dump(mode="json") for name, result in record.results.items()}
        row["budget"] = record.budget.model_dump()
    return row


def _show_results(registry: Registry, study: Study, done: Sequence[Task], store: Path) -> None:
    """One row per run, one table per checkpoint."""
    runs = [task.folder.evidence() for task in done]
    if not runs:
        return
    out = output.console()
    checkpoints: tuple[Literal["best", "last"], ...] = ("best", "last")
    for checkpoint in checkpoints:
        heading = f"{study.name} {study.version} under {study.protocol}: {checkpoint} checkpoint"
        columns, rows = summary(registry, runs, checkpoint)
        out.print(output.table(heading, columns, rows, right=2))
    out.print(
        "on test images; loss and gap of the protocol's first attack, in nats; values ± standard error over examples"
    )
    out.print(f"over seeds: robflat-bench results report --store {store}", markup=False, soft_wrap=True)


SHOWN = {
    *((quantity, "test") for quantity in ("clean_error", "robust_error", "robust_loss", "measure")),
    ("gap_robust_loss", "test-train"),
}


def summary(
    registry: Registry, runs: Sequence[tuple[RunRecord, Outcomes]], checkpoint: Literal["best", "last"]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of one checkpoint."""
    from robflat_bench.results.quantities import quantity_label, quantity_values

    found = [
        {
            quantity_label(registry, value): output.written(value)
            for value in quantity_values(checkpoint, record.results[checkpoint], outcomes)
            if (value.quantity, value.split) in SHOWN
        }
        for record, outcomes in runs
    ]
    names = list(dict.fromkeys(name for row in found for name in row))
    rows = [
        [record.spec.label, str(record.seed), *(row.get(name, "-") for name in names), f"{record.budget.seconds:.0f}"]
        for (record, _), row in zip(runs, found, strict=True)
    ]
    return ["run", "seed", *names, "seconds"], rows
