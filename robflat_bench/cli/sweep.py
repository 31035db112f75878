"""`robflat-bench sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.shown import quantity_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robflat_bench.config.study import Study
    from robflat_bench.records.quantities import Outcomes
    from robflat_bench.records.record import RunRecord
    from robflat_bench.registry.registry import Registry
    from robflat_bench.runs.agenda import Agenda
    from robflat_bench.runs.sweep import Event
    from robflat_bench.runs.tasks import Task


@click.command()
@click.argument("study")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 1..N of each variant.")
@click.option("--launcher", default="local", show_default=True, help="Where runs start; see `list launchers`.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time.")
@click.option("--plan", is_flag=True, help="List the runs with their cost, and do nothing.")
@click.option("--retry-failed", is_flag=True, help="Try failed runs again.")
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
) -> None:
    """Run every variant of a STUDY (a shipped one, or a TOML file) and show one table.

    Finished runs are skipped, interrupted runs resume, and the sweep waits for runs of another process. After a failed
    run the sweep goes on, lists the failure at the end and exits with 1.
    """
    from robflat_bench.config.study import load_study
    from robflat_bench.core import Resources
    from robflat_bench.front.sessions import open_session
    from robflat_bench.registry.components import resolve

    registry = output.registry()
    chosen = load_study(study)
    component = resolve(registry, "launcher", launcher)
    session = open_session(registry, chosen.protocol, (), data, store, device, trains=True)
    protocol = session.protocol

    from robflat_bench.cli.progress import SweepProgress
    from robflat_bench.config.cost import undeclared
    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.agenda import Agenda, outcome, refusal
    from robflat_bench.runs.sweep import Sweep
    from robflat_bench.runs.tasks import pace, tasks

    launching = component.build(Resources(jobs, protocol.fixed.threads, session.device))
    wanted, refused = tasks(session, chosen, seeds)
    for variant in refused:
        output.note(f"cannot run {variant.variant}: {variant.reason}")
    agenda = Agenda(wanted, refused, jobs, retry_failed, pace(session.store, protocol.hash))
    if plan:
        document = {"study": chosen.name, "protocol": chosen.protocol, **agenda.document()}
        output.report(document, _plan(agenda, chosen, undeclared(registry, protocol)))
        _raise_for(len(refused), len(wanted) + len(refused))
        return

    common = ["--protocol", chosen.protocol, "--store", str(store), "--device", device, *output.plugin_options()]
    common += [*(["--data", data] if data else []), *(["--compile"] if compile else [])]
    output.note(agenda.summary())
    with faults(registry), SweepProgress(len(wanted), drawing=not launching.foreground) as progress:
        ended = Sweep(launching, lambda task: [*_of_run(task), *common], retry_failed, progress).run(wanted)
    events = [ended[task.spec.key] for task in wanted]
    document = {"study": chosen.name, "runs": [*map(outcome, events), *map(refusal, refused)]}
    output.report(document, _results(registry, chosen, events, store), stored=True)
    lacking = [event for event in ended.values() if event.what != "done"]
    for event in lacking:
        output.note(f"{event.what}: {event.task.title}: {event.why}")
    _raise_for(len(lacking) + len(refused), len(wanted) + len(refused))


def _of_run(task: Task) -> list[str]:
    """The options of `robflat-bench run` that differ between the runs of a sweep."""
    settings = [part for setting in task.variant.settings for part in ("--set", setting)]
    return ["--method", task.variant.method, "--seed", str(task.spec.seed), *settings]


def _raise_for(lacking: int, total: int) -> None:
    from robflat_bench.core import RunFailed

    if lacking:
        raise RunFailed(
            f"{lacking} of {total} runs are not done (listed above); --retry-failed tries failed runs again"
        )


def _plan(agenda: Agenda, study: Study, undeclared: Sequence[str]) -> Iterator[Grid | str]:
    """The runs with their image passes, and below them the sums."""
    from robflat_bench.core.clock import duration

    rows = []
    for task in agenda.wanted:
        seconds = agenda.seconds(task)
        state = f"{task.state()}, {task.epochs()} epochs" if task.state() == "unfinished" else task.state()
        row = [task.variant.group, task.spec.label, task.spec.seed, state, agenda.skipped(task)]
        left = "-" if seconds is None else duration(seconds)
        rows.append([*row, _millions(task.training), _millions(task.evaluation), left])
    for refused in agenda.refused:
        rows.append([refused.variant.group, str(refused.variant), "", "refused", refused.reason])
    columns = ["group", "run", "seed", "state", "skipped because", "training", "evaluation", "time left"]
    yield grid(f"{study.name} {study.version} under {study.protocol}", columns, rows, right=5)
    unknown = f"; evaluation without {', '.join(undeclared)}, whose number of passes varies" if undeclared else ""
    yield f"10^6 image passes, forward + backward; training includes that of helper networks{unknown}"
    training = _millions(*(task.training for task in agenda.ahead))
    evaluation = _millions(*(task.evaluation for task in agenda.ahead))
    yield f"{agenda.summary()}; training {training}, evaluation {evaluation}"


def _millions(*passes: tuple[int, int]) -> str:
    """The sum of forward and of backward passes, in millions."""
    return " + ".join(f"{sum(counts) / 1e6:.2f}" for counts in zip(*passes, strict=True)) or "0.00 + 0.00"


def _results(registry: Registry, study: Study, events: Sequence[Event], store: Path) -> Iterator[Grid | str]:
    """One table per checkpoint with a row for each finished run."""
    runs = [event.task.folder.evidence() for event in events if event.what == "done"]
    if not runs:
        return
    checkpoints: tuple[Literal["best", "last"], ...] = ("best", "last")
    for checkpoint in checkpoints:
        heading = f"{study.name} {study.version} under {study.protocol}: {checkpoint} checkpoint"
        columns, rows = summary(registry, runs, checkpoint)
        yield grid(heading, columns, rows, right=2)
    yield "on test images; loss and gap of the protocol's first attack, in nats; values ± standard error over examples"
    yield f"over seeds: robflat-bench results report --store {store}"


SHOWN = {
    *((quantity, "test") for quantity in ("clean_error", "robust_error", "robust_loss", "measure")),
    ("gap_robust_loss", "test-train"),
}


def summary(
    registry: Registry, runs: Sequence[tuple[RunRecord, Outcomes]], checkpoint: Literal["best", "last"]
) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of one checkpoint's table."""
    from robflat_bench.records.quantities import quantity_label, quantity_values

    found = [
        {
            quantity_label(registry, value): quantity_text(value)
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
