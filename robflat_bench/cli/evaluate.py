"""`robflat-bench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.cli.reading import model_options

if TYPE_CHECKING:
    from robflat_bench.data.splits import Splits
    from robflat_bench.evaluation.options import ModelOptions
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
@click.option(
    "--dataset",
    help="Dataset whose test images replace the protocol's, read below --data: 'arrays(test=\"fog.npy\", severity=3)'.",
)
@click.option("--examples", type=click.IntRange(min=2), help="Test examples; alone, at most so many of each row.")
@click.option("--train", type=click.IntRange(min=2), help="Training examples, read in addition; alone, at most.")
@output.set_option
@output.store_option
@output.data_option
@output.device_option
@output.compile_option
@output.jobs_option
@output.stop_after_option
@output.plugin_option
@output.json_option
def evaluate_checkpoint(
    model: str,
    protocol: str,
    options: ModelOptions,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    dataset: str | None,
    examples: int | None,
    train: int | None,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
    compile: bool,
    jobs: int | None,
) -> None:
    """Attack and measure a trained MODEL without training it again.

    MODEL is a run's folder or key, or a file of weights trained anywhere (.pt, .pth, .safetensors, ...), also one on
    the Hugging Face hub (hf://OWNER/NAME); add --model or --backbone where its names do not show the network.
    'timm(name=resnet18)' has random weights. The protocol says which attacks and measures are used. The result is
    written beside the model's record.
    """
    from robflat_bench.front.evaluations import Request, evaluated, evaluation_protocol
    from robflat_bench.front.progress import Progress
    from robflat_bench.front.sessions import open_session

    registry, request = output.registry(), Request(model, options, attacks, measures, examples, train)
    chosen = evaluation_protocol(registry, protocol, settings)
    request.check(registry, chosen, store, given=bool(dataset))
    request = request.settled(output.note)
    with Progress() as progress:
        source = _test_images(registry, dataset, data, examples) if dataset else data
        session = open_session(registry, chosen, (), source, store, device, compile, observer=progress, jobs=jobs)
        made = evaluated(session, request, progress.note)
    for problem in registry.plugins.problems(made.record.model_dump(mode="json")):
        output.note(problem)
    output.report(made.record, made.parts(notes=False), stored=True)


def _test_images(registry: Registry, dataset: str, data: str | None, examples: int | None) -> Splits:
    from robflat_bench.data.own import dataset_splits
    from robflat_bench.registry.faults import faults

    with faults(registry):
        return dataset_splits(registry, dataset, data, examples)
