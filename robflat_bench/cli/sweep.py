"""`robflat-bench sweep`: makes the runs of a study, lists them, or ends them."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from robflat_bench.config.protocol import Protocol
    from robflat_bench.config.study import Study
    from robflat_bench.core import Job, Resources
    from robflat_bench.registry.components import Component
    from robflat_bench.registry.registry import Registry
    from robflat_bench.runs.agenda import Agenda
    from robflat_bench.runs.jobs import Jobs
    from robflat_bench.runs.sweep import Sweep
    from robflat_bench.runs.tasks import Task


@click.command()
@click.argument("study")
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Seeds 1..N of each variant.")
@output.set_option
@click.option("--launcher", default="local", show_default=True, help="Where runs start; see `list launchers`.")
@click.option("--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time.")
@click.option("--plan", is_flag=True, help="List the runs with their cost, and do nothing.")
@click.option("--status", is_flag=True, help="List where the runs stand, and do nothing.")
@click.option("--cancel", is_flag=True, help="End the runs that wait or run (they save first), and start none.")
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
    settings: tuple[str, ...],
    launcher: str,
    jobs: int,
    plan: bool,
    status: bool,
    cancel: bool,
    retry_failed: bool,
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
) -> None:
    """Run every variant of a STUDY (a shipped one, or a TOML file) and show one table.

    Finished runs are skipped, interrupted runs resume, and the sweep waits for runs of another process. A sweep that
    was killed goes on with the runs that it had started. After a failed run the sweep goes on, lists the failure at
    the end and exits with 1.

    After Ctrl-C, SIGTERM or SIGHUP, runs on this machine save and end, and jobs of a queue stay there (docs/sweeps.md).
    torchrun divides a single run only (docs/methods.md).
    """
    from robflat_bench.config.study import load_study
    from robflat_bench.core import Resources, UsageError
    from robflat_bench.front.sessions import open_session
    from robflat_bench.registry.components import resolve

    if plan + status + cancel > 1:
        raise UsageError("--plan, --status and --cancel each replace the sweep; type one of them")
    registry = output.registry()
    chosen = load_study(study)
    chosen.variants(settings)  # a key that a grid varies is refused before torch is imported
    component = resolve(registry, "launcher", launcher)
    session = open_session(registry, chosen.protocol, settings, data, store, device, trains=chosen.name)
    protocol = session.protocol

    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.agenda import Agenda
    from robflat_bench.runs.pace import pace
    from robflat_bench.runs.tasks import tasks

    wanted, refused = tasks(session, chosen, seeds, settings)
    for variant in refused:
        output.note(f"cannot run {variant.variant}: {variant.reason}")
    agenda = Agenda(wanted, refused, jobs, retry_failed, pace(session.store, protocol.hash))
    common = ["--protocol", chosen.protocol, "--store", str(store), "--device", device, "--jobs", "1"]
    common += [*output.plugin_options(), *(["--data", data] if data else []), *(["--compile"] if compile else [])]
    resources = Resources(jobs, protocol.fixed.threads, session.device)
    asked = _Asked(registry, chosen, protocol, agenda, resources, common)
    with faults(registry):
        if plan:
            asked.plan()
        elif status:
            asked.status()
        elif cancel:
            asked.cancel()
        else:
            asked.run(component, store)


@dataclass(frozen=True)
class _Asked:
    """What a command line is about: the runs of a study, and the options that all of them get."""

    registry: Registry
    study: Study
    protocol: Protocol
    agenda: Agenda
    resources: Resources
    common: Sequence[str]

    @property
    def heading(self) -> str:
        """The line above each table."""
        return f"{self.study.name} {self.study.version} under {self.protocol.name}"

    def command(self, task: Task) -> list[str]:
        """The arguments of `robflat-bench run`."""
        settings = [part for setting in task.variant.settings for part in ("--set", setting)]
        return ["--method", task.variant.method, "--seed", str(task.spec.seed), *settings, *self.common]

    def attached(self, but: str = "", unknown: Callable[[Task, str], None] | None = None) -> list[Jobs]:
        """The unended jobs of the runs, whichever launcher started them; `but` and `unknown` as in `jobs.attach`."""
        from robflat_bench.runs.jobs import attach, job_of

        def job(task: Task) -> Job:
            return job_of(task, self.command(task))

        return attach(self.registry, self.agenda.wanted, job, replace(self.resources, jobs=1), but, unknown)

    def plan(self) -> None:
        """List the runs with their cost."""
        from robflat_bench.cli import sweep_tables as tables
        from robflat_bench.config.cost import undeclared

        document = {"study": self.study.name, "protocol": self.study.protocol, **self.agenda.document()}
        without = undeclared(self.registry, self.protocol)
        output.report(document, tables.plan(self.agenda, self.heading, without, _typed(without="--plan")))
        self._raise_for(0)

    def status(self) -> None:
        """List where the runs stand."""
        from robflat_bench.cli import sweep_tables as tables
        from robflat_bench.runs.pace import Estimates
        from robflat_bench.runs.status import standings

        unknown: dict[str, str] = {}
        attached = self.attached(unknown=lambda task, why: unknown.update({task.spec.key: why}))
        found = standings(self.agenda.wanted, attached, Estimates(self.agenda.pace), unknown)
        shown = tables.standings(found, self.heading, _typed(without="--status"))
        self._report((one.document() for one in found), shown)

    def cancel(self) -> None:
        """End the jobs of the runs, and list these runs."""
        from robflat_bench.runs.agenda import identity
        from robflat_bench.runs.jobs import cancel

        def unknown(task: Task, why: str) -> None:
            output.note(f"{task.title}: {why}, so a job of it that waits or runs is not ended")

        attached, rows = self.attached(unknown=unknown), []
        jobs = sum(len(found.unended) for found in attached)
        if jobs:
            output.note(f"{_counted(jobs)} told to save and end")
        for task in cancel(attached):
            output.note(f"{task.title}: ended, {task.state()}")
            rows.append({**identity(task), "state": task.state()})
        for task in self.agenda.wanted:
            if worker := task.folder.worker():
                output.note(
                    f"{task.title}: {worker} works on this run and is no job that --cancel can end; end that process "
                    "itself, by Ctrl-C or SIGTERM"
                )
        self._report(rows, [f"ended: {len(rows)}" if rows else "no job of this study waits or runs"])

    def run(self, component: Component[Any], store: Path) -> None:
        """Make the runs, and show their results."""
        from robflat_bench.cli import sweep_tables as tables
        from robflat_bench.cli.sweep_progress import SweepProgress
        from robflat_bench.core import Interrupted
        from robflat_bench.runs.agenda import outcome
        from robflat_bench.runs.jobs import Jobs
        from robflat_bench.runs.pace import Estimates
        from robflat_bench.runs.sweep import Sweep

        agenda, launching = self.agenda, component.build(self.resources)
        _require_none(self.attached(but=component.canonical))
        output.note(agenda.summary())
        provider = component.offer.provider
        package = "" if provider.built_in else provider.distribution
        jobs, estimates = Jobs(launching, component.canonical, package), Estimates(agenda.pace)
        made = Sweep(jobs, self.command, agenda.retry_failed, estimates=estimates)
        try:
            with SweepProgress(len(agenda.wanted), not launching.foreground) as made.watch:
                ended = made.run(agenda.wanted)
        except Interrupted:
            _leave(made)
            raise
        events = [ended[task.spec.key] for task in agenda.wanted]
        self._report(map(outcome, events), tables.results(self.registry, self.heading, events, store), stored=True)
        lacking = [event for event in ended.values() if event.what != "done"]
        for event in lacking:
            output.note(f"{event.what}: {event.task.title}: {event.why}")
        self._raise_for(len(lacking))

    def _report(self, rows: Iterable[Mapping[str, Any]], shown: Iterable[Any], stored: bool = False) -> None:
        """Show tables, or these rows and the refused variants as one JSON document."""
        from robflat_bench.runs.agenda import refusal

        document = {"study": self.study.name, "runs": [*rows, *map(refusal, self.agenda.refused)]}
        output.report(document, shown, stored)

    def _raise_for(self, lacking: int) -> None:
        """RunFailed if so many runs are not done, or if variants were refused."""
        from robflat_bench.core import RunFailed

        refused = len(self.agenda.refused)
        if lacking + refused:
            counts = f"{lacking + refused} of {len(self.agenda.wanted) + refused}"
            raise RunFailed(f"{counts} runs are not done (listed above); --retry-failed tries failed runs again")


def _counted(jobs: int) -> str:
    return f"{jobs} jobs are" if jobs > 1 else "1 job is"


def _typed(option: str = "", without: str = "") -> str:
    """The line that was typed, with another option, or without one."""
    words = [word for word in sys.argv[1:] if word != without]
    return shlex.join(["robflat-bench", *words, *([option] if option else [])])


def _require_none(attached: Sequence[Jobs]) -> None:
    """UsageError if jobs of another launcher have not ended: the same runs would start twice."""
    from robflat_bench.core import UsageError

    for jobs in attached:
        raise UsageError(
            f"{_counted(len(jobs.unended))} unended at the launcher {jobs.text}, which an earlier sweep used. "
            f"To go on there, type --launcher {shlex.quote(jobs.text)}; to end what is there: {_typed('--cancel')}"
        )


def _leave(interrupted: Sweep) -> None:
    """Say how to find the jobs that an interrupted sweep has left to their launcher; end them if the user says so."""
    from robflat_bench.runs.jobs import cancel

    if not interrupted.running:
        return
    jobs = _counted(len(interrupted.running))
    asks = interrupted.stopped_by == signal.SIGINT and sys.stdin.isatty() and sys.stderr.isatty()
    if not asks or output.confirmed(f"{jobs} queued or running. Leave them there?"):
        output.note(
            f"{jobs} left queued or running. Where they stand: {_typed('--status')}; to end them: {_typed('--cancel')}"
        )
        return
    for task in cancel([interrupted.jobs]):
        output.note(f"{task.title}: ended, {task.state()}")
