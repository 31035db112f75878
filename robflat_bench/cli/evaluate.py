"""`robflat-bench evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.cli.reading import model_options

if TYPE_CHECKING:
    from rich.table import Table

    from robflat_bench.evaluation.options import ModelOptions
    from robflat_bench.records.record import EvaluationRecord
    from robflat_bench.registry.registry import Registry


@click.command("evaluate")
@click.argument("model")
@output.protocol_option
@model_options
@click.option("--attack", "attacks", multiple=True, help="Attack, instead of the protocol's; repeatable.")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measure, instead of the protocol's; repeatable. A pattern, e.g. '*': every measure whose name matches, "
    "under every coupling.",
)
@click.option("--examples", type=click.IntRange(min=2), help="At most so many test examples [default: the protocol's].")
@click.option("--train", type=click.IntRange(min=2), help="At most so many training examples, in addition.")
@output.set_option
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@output.plugin_option
@output.json_option
def evaluate_checkpoint(
    model: str,
    protocol: str,
    options: ModelOptions,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    examples: int | None,
    train: int | None,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
) -> None:
    """Attack and measure a trained MODEL without training it again.

    MODEL is a run's folder or key, or a file of weights trained anywhere (.pt, .pth, .safetensors, ...); add --model or
    --backbone where its names do not show the network. 'timm(name=resnet18)' has random weights. The protocol says
    which attacks and measures are used. The result is written beside the model's record.
    """
    from robflat_bench.config.protocol import load
    from robflat_bench.evaluation.options import check_model, kind_of
    from robflat_bench.evaluation.plan import choose_plan
    from robflat_bench.records.store import Store

    registry = output.registry()
    chosen, runs = load(registry, protocol, settings), Store(store)
    check_model(model, options, runs, registry)
    numbers = () if kind_of(model) == "run" else (examples, train)  # a run has the examples of its own protocol
    choose_plan(registry, chosen.fixed, options.checkpoint, attacks, measures, *numbers)

    from robflat_bench.cli.progress import Progress
    from robflat_bench.evaluation.model import find_model
    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.numerics.compilation import Compilation
    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.evaluation import evaluate_model

    place = choose_device(device)
    progress = Progress()
    compilation = Compilation(place, progress.note) if compile else None
    session = Session(registry, chosen, data, runs, place, progress, compile=compilation)
    found = find_model(session, model, options)
    for line in found.notes:
        output.note(line)
    plan = choose_plan(registry, found.protocol.fixed, options.checkpoint, attacks, measures, examples, train)
    with faults(registry), progress:
        record, path = evaluate_model(session, found, plan)
    for problem in registry.plugins.problems(record.model_dump(mode="json")):
        output.note(problem)
    output.report(record, _parts(registry, record, path), stored=True)


def _parts(registry: Registry, record: EvaluationRecord, path: Path) -> Iterator[Table | str]:
    from robflat_bench.records.store import read_outcomes

    heading = f"{record.model}  |  {record.protocol.name} {record.protocol.version}, values ± standard error"
    outcomes = read_outcomes(record, path.with_suffix(".npz"))
    yield output.result_table(heading, registry, record.results, outcomes, measures=False)
    if measured := output.measure_table(registry, list(record.results.values())):
        yield measured
    yield f"evaluation: {path}"
