"""`robflat-bench experiment` and `robflat-bench landscape`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click

from robflat_bench.cli import output

OPTIONS: tuple[Callable[..., Any], ...] = (
    output.protocol_option,
    click.option("--backbone", help="Of weights files, e.g. 'resnet18(width=64)'; default: the protocol's."),
    click.option("--checkpoint", default="last", show_default=True, help="Of a run: best, last, initial or epoch-N."),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for JSON, PNG, SVG [default: in the store].",
    ),
    output.set_option,
    output.store_option,
    output.data_option,
    output.device_option,
    output.plugin_option,
    output.json_option,
)


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("name")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@with_options
def experiment(name: str, models: tuple[str, ...], **options: Any) -> None:
    """Draw the figure of an experiment about trained MODELs, and keep its data as JSON.

    NAME is one of `list experiments`, with parameters if you like: "landscape(points=21, coupling=frozen)". A MODEL
    is a run's folder or key, or a weights file. What is interrupted resumes, what is finished answers at once.
    `experiment redraw FILE.json` draws the figure of an experiment's JSON again.
    """
    if name == "redraw":
        again(models, options["out"])
    else:
        conduct(name, models, **options)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@with_options
def landscape(models: tuple[str, ...], **options: Any) -> None:
    """The loss along directions in weight space: `experiment landscape` with its defaults."""
    conduct("landscape", models, **options)


def again(files: tuple[str, ...], out: Path | None) -> None:
    from robflat_bench.experiments.work import redraw

    for file in files:
        for path in redraw(Path(file), out):
            click.echo(path)


def conduct(
    name: str,
    models: tuple[str, ...],
    protocol: str,
    backbone: str | None,
    checkpoint: str,
    out: Path | None,
    settings: tuple[str, ...],
    store: Path,
    data: str | None,
    device: str,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """What both commands do."""
    from robflat_bench.config.protocol import load
    from robflat_bench.experiments import choose

    registry = output.registry(files)
    chosen = choose(name)
    given = load(registry, protocol, settings)

    from robflat_bench.cli.progress import Progress
    from robflat_bench.evaluation.session import Session, choose_device
    from robflat_bench.experiments import work
    from robflat_bench.experiments.trained_model import find_models, open_model
    from robflat_bench.results.store import Store

    runs = Store(store)
    session = Session(registry, given, data, runs, choose_device(device))
    found = find_models(session, models, chosen.experiment.reads, backbone, checkpoint)
    session = session.under(found[0].protocol)
    subjects = [open_model(session, model) for model in found]
    with Progress() as progress:
        document = work.run_experiment(chosen, subjects, runs, progress)
    written = work.write_document(document, runs, out)
    if as_json:
        output.emit_json(document.model_dump(mode="json"))
        return
    briefs = [reading.values.brief for reading in document.readings]
    columns = list(dict.fromkeys(column for brief in briefs for column in brief))
    rows = [
        [r.model.label, "-" if r.model.seed is None else str(r.model.seed), r.model.checkpoint]
        + [output.number(brief.get(column)) for column in columns]
        for r, brief in zip(document.readings, briefs, strict=True)
    ]
    heading = f"{chosen.experiment.name}  |  {document.protocol.name} {document.protocol.version}"
    output.console().print(output.table(heading, ["model", "seed", "checkpoint", *columns], rows, right=3))
    for path in written:
        output.console().print(str(path), markup=False, soft_wrap=True)
