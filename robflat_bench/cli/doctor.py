"""`robflat-bench doctor`: what this machine is, and whether a run would work here."""

from __future__ import annotations

import tempfile
from pathlib import Path

import rich_click as click

from robflat_bench.cli import output


@click.command()
@output.store_option
@output.data_option
@output.json_option
def doctor(store: Path, data: str | None, as_json: bool) -> None:
    """Check this machine: libraries, device, plugins, data, store. Exits 3 where something is wrong."""
    from robflat_bench.core import CheckFailed, UsageError
    from robflat_bench.registry.components import resolve
    from robflat_bench.runs import environment

    registry = output.registry()
    report = environment.describe()
    report["plugins"] = registry.plugins.environment()
    problems = [*map(str, registry.plugins.broken), *registry.duplicates(), *registry.plugins.deprecated]
    try:
        import torch

        report |= environment.torch_environment("cuda" if torch.cuda.is_available() else "cpu")
    except ImportError as error:
        problems.append(f"torch cannot be imported: {error}")
    found = {}
    for name in registry.names("dataset"):
        try:
            sources = resolve(registry, "dataset", name).build().sources(data, download=False)
            found[name] = [load().origin for load in sources]
        except UsageError as error:
            found[name] = [f"none: {error}"]
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        problems.append(f"the store {store} cannot be written: {error.strerror}; choose another with --store")
    document = {
        "environment": report,
        "plugins": {
            f"{item.distribution}:{item.entry_point}": {"version": item.version, "source": item.source_hash()}
            for item in registry.plugins.providers.values()
        },
        "data": found,
        "problems": problems,
    }
    if as_json:
        output.emit_json(document)
    else:
        packages, told = report.pop("packages"), report.pop("plugins")
        rows = [[key, str(value)] for key, value in report.items()]
        rows += [[key, str(value)] for key, value in packages.items()]
        rows += [[f"{plugin}: {key}", value] for plugin, facts in told.items() for key, value in facts.items()]
        rows += [[f"data: {name}", "; ".join(origins)] for name, origins in found.items()]
        output.console().print(output.table("this machine", ["", ""], rows))
        output.console().print("no problems" if not problems else "\n".join(problems), markup=False)
    if problems:
        raise CheckFailed(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")
