"""The tables of `robflat-bench sweep`: the plan, where the runs stand, the results."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from robflat_bench.front.grids import Grid, grid
from robflat_bench.front.shown import quantity_text

if TYPE_CHECKING:
    from robflat_bench.records.quantities import Outcomes
    from robflat_bench.records.record import RunRecord
    from robflat_bench.registry.registry import Registry
    from robflat_bench.runs.agenda import Agenda
    from robflat_bench.runs.status import Standing
    from robflat_bench.runs.sweep import Event


def plan(agenda: Agenda, heading: str, undeclared: Sequence[str], line: str) -> Iterator[Grid | str]:
    """The runs with their image passes, and below them the sums; `line` makes the runs."""
    from robflat_bench.core.clock import duration

    rows, reasons = [], []
    for task in agenda.wanted:
        seconds = agenda.seconds(task)
        state = f"{task.state()}, {task.course().epochs} epochs" if task.state() == "unfinished" else task.state()
        left = "-" if seconds is None else duration(seconds)
        row = [task.variant.group, task.spec.label, task.spec.seed, state, left]
        rows.append([*row, _millions(task.training), _millions(task.evaluation)])
        if task.state() == "failed" and (why := agenda.skipped(task)):
            reasons.append(f"{task.title}: {why}")
    for refused in agenda.refused:
        rows.append([refused.variant.group, str(refused.variant), "", "refused"])
        reasons.append(f"{refused.variant}: {refused.reason}")
    columns = ["group", "run", "seed", "state", "time left", "training", "evaluation"]
    yield grid(heading, columns, rows, right=4, keep=4, spare=("group",))
    yield from reasons
    unknown = f"; evaluation without {', '.join(undeclared)}, whose number of passes varies" if undeclared else ""
    yield (
        "training, evaluation: 10^6 image passes, forward + backward; training includes that of helper "
        f"networks{unknown}"
    )
    training = _millions(*(task.training for task in agenda.ahead))
    evaluation = _millions(*(task.evaluation for task in agenda.ahead))
    yield f"{agenda.summary()}; training {training}, evaluation {evaluation}"
    if agenda.ahead:
        yield f"next: `{line}`"


def _millions(*passes: tuple[int, int]) -> str:
    """The sum of forward and of backward passes, in millions."""
    return " + ".join(f"{sum(counts) / 1e6:.2f}" for counts in zip(*passes, strict=True)) or "0.00 + 0.00"


def standings(found: Sequence[Standing], heading: str, line: str) -> Iterator[Grid | str]:
    """Where each run stands, and below the table the number in each state; `line` makes the runs."""
    from robflat_bench.core.clock import duration
    from robflat_bench.runs.status import summary

    rows = []
    for one in found:
        left = "" if one.seconds is None else duration(one.seconds)
        state = one.words if one.state in ("queued", "running", "unknown") else one.state
        rows.append([one.task.spec.label, one.task.spec.seed, state, one.place, left, one.log])
    columns = ["run", "seed", "state", "place", "time left", "last line of its log"]
    yield grid(heading, columns, rows, keep=3)
    yield summary(found)
    if any(one.state != "done" for one in found):
        yield f"next: `{line}`"


def results(registry: Registry, heading: str, events: Sequence[Event], store: Path) -> Iterator[Grid | str]:
    """One table per checkpoint with a row for each finished run."""
    runs = [event.task.folder.evidence() for event in events if event.what == "done"]
    if not runs:
        return
    checkpoints: tuple[Literal["best", "last"], ...] = ("best", "last")
    for checkpoint in checkpoints:
        columns, rows = _summary(registry, runs, checkpoint)
        yield grid(f"{heading}: {checkpoint} checkpoint", columns, rows, right=2, keep=2)
    yield "on test images; loss and gap of the protocol's first attack, in nats; values ± standard error over examples"
    yield f"next, over seeds: `{shlex.join(['robflat-bench', 'results', 'report', '--store', str(store)])}`"


SHOWN = {
    *((quantity, "test") for quantity in ("clean_error", "robust_error", "robust_loss", "measure")),
    ("gap_robust_loss", "test-train"),
}


def _summary(
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
