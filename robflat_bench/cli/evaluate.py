"""`robflat-bench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from robflat_bench.cli import output


@click.command()
@click.argument("model")
@output.protocol_option
@click.option("--backbone", help="Of a weights file, e.g. 'resnet18(width=64)'; default: the protocol's.")
@click.option("--checkpoint", default="last", show_default=True, help="Of a run: best, last, initial or epoch-N.")
@click.option("--attack", "attacks", multiple=True, help="Instead of the protocol's; repeatable.")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Instead of the protocol's; repeatable. '*' and the like: all whose names match, under every coupling.",
)
@click.option("--examples", type=click.IntRange(min=2), help="How many test examples [default: the protocol's].")
@click.option("--train", type=click.IntRange(min=2), help="Also on so many training examples.")
@output.set_option
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@output.plugin_option
@output.json_option
def evaluate(
    model: str,
    protocol: str,
    backbone: str | None,
    checkpoint: str,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    examples: int | None,
    train: int | None,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Attack and measure a trained MODEL without training it again.

    MODEL is a run's folder or key, a weights file (FILE.safetensors), or a timm model: 'timm(name=resnet18)'
    (with random weights unless the run or file has some). The result is written beside the model's record.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.core import UsageError

    registry = output.registry(files)
    chosen = load(registry, protocol, settings)

    from robflat_bench.cli.progress import Progress
    from robflat_bench.evaluation.model import find_model
    from robflat_bench.evaluation.plan import choose_plan
    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.numerics.compilation import Compilation
    from robflat_bench.results.store import Store, read_outcomes
    from robflat_bench.runs.evaluation import evaluate_model

    place = choose_device(device)
    progress = Progress()
    compilation = Compilation(place, progress.note) if compile else None
    session = Session(registry, chosen, data, Store(store), place, progress, compile=compilation)
    found = find_model(session, model, backbone, checkpoint)
    available = found.protocol.fixed.data.test.count
    if examples is not None and examples > available:
        raise UsageError(f"--examples {examples}: {found.protocol.name} has {available} test examples")
    if (examples or train) and not attacks and not measures:
        raise UsageError("--examples and --train: say of what, with --attack SPEC or --measure SPEC")
    plan = choose_plan(registry, found.protocol.fixed, checkpoint, attacks, measures, examples, train or 0)
    with progress:
        record, path = evaluate_model(session, found, plan)
    for problem in registry.plugins.problems(record.model_dump(mode="json")):
        output.note(problem)
    if as_json:
        output.emit_json(record.model_dump(mode="json"))
        return
    title = f"{record.model}  |  {record.protocol.name} {record.protocol.version}"
    unmeasured: dict[str, Any] = {"measures": {}, "measures_train": {}}
    attacked = {name: result.model_copy(update=unmeasured) for name, result in record.results.items()}
    rows = output.result_rows(registry, attacked, read_outcomes(record, path.with_suffix(".npz")))
    output.console().print(output.table(title, ["", *attacked], rows, right=1))
    if measured := output.measure_rows(registry, list(record.results.values())):
        columns = ["measure", "split", "value ± standard error", "n", "s", "image passes"]
        output.console().print(output.table("forward + backward passes", columns, measured, right=2))
    output.console().print(f"evaluation: {path}", markup=False, soft_wrap=True)
