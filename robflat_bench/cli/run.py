"""`robflat-bench run`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.grids import grid
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
@click.option("--keep-every", type=click.IntRange(1, 1_000_000), help="Keep the weights of every N-th epoch.")
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
    keep_every: int | None,
    fresh: bool,
    plan: bool,
) -> None:
    """Train a method under a protocol, attack it, measure its flatness, and show the result.

    A finished run is shown from its record; an interrupted run continues where it stopped.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.registry.components import compose

    registry = output.registry()
    chosen = load(registry, protocol, settings)
    composed = compose(registry, method)  # reports a mistake before torch is imported

    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.front.progress import Progress
    from robflat_bench.numerics.compilation import Compilation
    from robflat_bench.records.store import Store
    from robflat_bench.runs.run import PlannedRun, execute

    place = choose_device(device)
    progress = Progress()
    compilation = Compilation(place, progress.note) if compile else None
    session = Session(registry, chosen, data, Store(store), place, progress, keep_every or 0, compilation)
    planned = PlannedRun(session, composed, seed)
    splits, spec, folder = session.splits, planned.spec, planned.folder
    if plan:
        done = folder.record_file.is_file() and not fresh
        state = "done" if done else "unfinished" if folder.checkpoints.is_dir() and not fresh else "new"
        images = len(splits.pools["train"].y)
        rows = [
            ["run", f"{spec.label} under {spec.protocol.name} {spec.protocol.version}, seed {seed}"],
            ["key", spec.key],
            ["state", state],
            ["folder", str(folder.path)],
            ["data", f"{splits.ref.origin}, {'canonical' if splits.ref.canonical else 'not canonical'}"],
            ["training", f"{spec.recipe.epochs} epochs on {images:,} images, device {place}"],
            *(["attack", f"{row.attack} on {row.test} test, {row.train} train"] for row in chosen.fixed.attacks),
            *(["measure", f"{row.measure} on {row.test} test"] for row in chosen.fixed.measures),
        ]
        document = {"key": spec.key, "state": state, "folder": folder.path, "spec": spec}
        output.report(document, [grid("plan", ["", ""], rows)])
        return

    if keep_every and folder.record_file.is_file() and not fresh and not folder.kept():
        output.note("this run is finished and did not keep the weights of its epochs; add --fresh to train it again")
    with progress:
        record = execute(planned, fresh)
    output.report(record, run_parts(registry, folder), stored=True)
