"""`robflat-bench run`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from robflat_bench.cli import output


@click.command()
@click.option("--method", required=True, help="e.g. at, trades, 'trades(beta=3)'; see `list methods`.")
@output.protocol_option
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@output.set_option
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@click.option("--keep-every", type=click.IntRange(min=1), help="Keep the weights of every N-th epoch, for figures.")
@click.option("--fresh", is_flag=True, help="Forget what an earlier run left and start anew.")
@click.option("--plan", is_flag=True, help="Say what would be done, and do nothing.")
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
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Train a method under a protocol, attack it, measure its flatness, and show the result.

    A finished run answers from its record; an interrupted one goes on where it stopped.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.registry.components import compose

    registry = output.registry(files)
    chosen = load(registry, protocol, settings)
    composed = compose(registry, method)  # a mistake in it is told before torch is imported

    from robflat_bench.cli.progress import Progress
    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.numerics.compilation import Compilation
    from robflat_bench.results.store import Store
    from robflat_bench.runs.run import Run, execute

    place = choose_device(device)
    progress = Progress()
    compilation = Compilation(place, progress.note) if compile else None
    session = Session(registry, chosen, data, Store(store), place, progress, keep_every or 0, compilation)
    planned = Run(session, composed, seed)
    splits, spec, folder = session.splits, planned.spec, planned.folder
    if plan:
        done = folder.record_file.is_file() and not fresh
        state = "done" if done else "unfinished" if folder.checkpoints.is_dir() and not fresh else "new"
        if as_json:
            output.emit_json(
                {
                    "key": spec.key,
                    "state": state,
                    "folder": str(folder.path),
                    "spec": spec.model_dump(mode="json"),
                }
            )
            return
        rows = [
            ["run", f"{spec.label} under {spec.protocol.name} {spec.protocol.version}, seed {seed}"],
            ["key", spec.key],
            ["state", state],
            ["folder", str(folder.path)],
            ["data", f"{splits.ref.origin}, {'canonical' if splits.ref.canonical else 'not canonical'}"],
            [
                "training",
                f"{spec.recipe.epochs} epochs on {len(splits.pools['train'].y):,} images, device {place}",
            ],
            *(["attack", f"{row.attack} on {row.test} test, {row.train} train"] for row in chosen.fixed.attacks),
            *(["measure", f"{row.measure} on {row.test} test"] for row in chosen.fixed.measures),
        ]
        output.console().print(output.table("plan", ["", ""], rows))
        return

    if keep_every and folder.record_file.is_file() and not fresh and not folder.kept():
        output.note("this run is finished and its epochs were not kept; add --fresh to train it again")
    with progress:
        record = execute(planned, fresh)
    if as_json:
        output.emit_json(record.model_dump(mode="json"))
    else:
        output.show_run(registry, folder)
