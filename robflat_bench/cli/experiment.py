"""`robflat-bench experiment` and `robflat-bench landscape`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.cli.reading import model_options
from robflat_bench.front.grids import grid

if TYPE_CHECKING:
    from robflat_bench.evaluation.options import ModelOptions

OPTIONS: tuple[Callable[..., Any], ...] = (
    output.protocol_option,
    model_options,
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder of JSON, PNG, SVG [default: the store].",
    ),
    output.set_option,
    output.store_option,
    output.data_option,
    output.device_option,
    output.stop_after_option,
    output.plugin_option,
    output.json_option,
)


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of both commands."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@with_options
def experiment(name: str, models: tuple[str, ...], **options: Any) -> None:
    """Draw the figure of an experiment about trained MODELs, and write its data as JSON.

    NAME is one of `list experiments`, with parameters if you like: "landscape(points=21, coupling=frozen)". A MODEL
    is a run's folder or key, or a weights file. An interrupted experiment resumes, a finished one answers at once.
    `experiment redraw FILE.json` draws the figure of an experiment's JSON again.
    """
    if name != "redraw":
        _experiment(name, models, **options)
        return
    from robflat_bench.experiments.work import redraw

    for file in models:
        for path in redraw(Path(file), options["out"]):
            output.show(path)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@with_options
def landscape(models: tuple[str, ...], **options: Any) -> None:
    """Draw the loss along directions in weight space: `experiment landscape` with its defaults."""
    _experiment("landscape", models, **options)


def _experiment(
    name: str,
    models: tuple[str, ...],
    protocol: str,
    options: ModelOptions,
    out: Path | None,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
) -> None:
    from robflat_bench.evaluation.options import check_model
    from robflat_bench.experiments import choose
    from robflat_bench.front.sessions import open_session
    from robflat_bench.records.store import Store

    registry = output.registry()
    chosen = choose(name)
    runs = Store(store)
    for model in models:
        check_model(model, options, runs, registry)
    session = open_session(registry, protocol, settings, data, store, device)

    from robflat_bench.experiments.trained_model import find_models, open_model
    from robflat_bench.experiments.work import run_experiment, write_document
    from robflat_bench.front.progress import Progress
    from robflat_bench.registry.faults import faults

    found = find_models(session, models, chosen.experiment.reads, options)
    for line in dict.fromkeys(line for each in found for line in each.notes):
        output.note(line)
    session = session.under(found[0].protocol)
    trained = [open_model(session, model) for model in found]
    with faults(registry), Progress() as progress:
        document = run_experiment(chosen, trained, runs, progress)
    written = write_document(document, runs, out)
    heading = f"{chosen.experiment.name}  |  {document.protocol.name} {document.protocol.version}"
    output.report(document, [grid(heading, *document.table(), right=3), *map(str, written)], stored=True)
