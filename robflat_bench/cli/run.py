"""`robflat-bench run`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.shown import run_parts


@click.command()
@click.option("--method", required=True, help="Method, e.g. at or 'trades(beta=3)+ema'; see `list methods`.")
@output.protocol_option
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=1, show_default=True, help="Training seed.")
@output.set_option
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@output.jobs_option
@click.option("--keep-every", type=click.IntRange(1, 1_000_000), help="Keep the weights of every N-th epoch.")
@output.stop_after_option
@click.option("--fresh", is_flag=True, help="Delete what an earlier run left, and start again.")
@click.option("--plan", is_flag=True, help="Print the plan and do nothing.")
@output.plugin_option
@output.json_option
def run(
    method: str,
    protocol: str,
    seed: int,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
    jobs: int | None,
    keep_every: int | None,
    fresh: bool,
    plan: bool,
) -> None:
    """Train a method under a protocol, attack it, measure its flatness, and show the result.

    A finished run is shown from its record; an interrupted run continues where it stopped.

    Ctrl-C, SIGTERM and SIGHUP save the state and end the run (docs/quickstart.md, "Stop and continue"). Typed as
    `torchrun --standalone --nproc-per-node=2 -m robflat_bench run ...`, processes share the recipe's shards
    (docs/methods.md).
    """
    from robflat_bench.front.progress import Progress
    from robflat_bench.front.runs import planned_run, run_plan
    from robflat_bench.front.sessions import open_session
    from robflat_bench.registry.components import compose

    registry = output.registry()
    composed = compose(registry, method)
    progress = Progress()
    session = open_session(
        registry,
        protocol,
        settings,
        data,
        store,
        device,
        compile,
        keep_every=keep_every or 0,
        observer=progress,
        trains=f"{composed.brief}, seed {seed}",
        jobs=jobs,
    )

    from robflat_bench.runs.run import execute

    planned = planned_run(session, composed, seed)
    folder = planned.folder
    if plan:
        document, shown = run_plan(planned, fresh)
        output.report(document, [shown])
        return

    if keep_every and folder.record_file.is_file() and not fresh and not folder.kept():
        output.note("this run is finished and did not keep the weights of its epochs; add --fresh to train it again")
    with progress:
        record = execute(planned, fresh)
    output.report(record, run_parts(registry, folder), stored=True)
