"""`robflat-bench list` and `robflat-bench info`: the catalogue. Neither imports torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from rich.table import Table

    from robflat_bench.registry.registry import Registry

KINDS = (
    *("methods", "modifiers", "attacks", "measures", "backbones", "datasets", "launchers"),
    *("protocols", "studies", "experiments"),
)
_COLUMNS = {"measures": ("name", "summary", "couplings", "unchanged by rescaled", "provider")}
"""Columns of a kind whose parameters would fill the table."""
_OWN = ("protocol", "study", "experiment")
"""Kinds that are not components."""


def _catalogues(registry: Registry) -> dict[str, tuple[Iterable[str], Callable[[str], dict[str, Any]]]]:
    """Kind -> its names, and the function that describes one of them."""
    from robflat_bench.config.describe import describe_protocol, describe_study
    from robflat_bench.config.study import studies
    from robflat_bench.experiments import describe_experiment, experiments
    from robflat_bench.registry.describe import describe_component
    from robflat_bench.registry.registry import KINDS as kinds

    return {
        **{kind: (registry.names(kind), partial(describe_component, registry, kind)) for kind in kinds},
        "protocol": (registry.protocols, partial(describe_protocol, registry)),
        "study": (studies(), describe_study),
        "experiment": (experiments(), describe_experiment),
    }


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", default="*", metavar="[GLOB]")
@output.plugin_option
@output.json_option
def list_components(kind: str, pattern: str) -> None:
    """List components of a KIND whose names match GLOB."""
    from robflat_bench.core import PluginError
    from robflat_bench.registry.describe import written

    registry = output.registry()
    names, describe = _catalogues(registry)["study" if kind == "studies" else kind.removesuffix("s")]
    rows = []
    for name in fnmatch.filter(names, pattern):
        try:
            rows.append(describe(name))
        except PluginError as error:
            if kind == "protocols":  # components that two plugins offer are named by `duplicates`
                output.note(str(error))
    for line in registry.duplicates():
        output.note(line)
    columns = _COLUMNS.get(kind, ("name", "summary", "parameters", "provider"))
    cells = [
        {**row, "parameters": ", ".join(f"{p['name']}={written(p['default'])}" for p in row["parameters"])}
        for row in rows
    ]
    output.report(rows, [output.table(kind, columns, [[row.get(name, "") for name in columns] for row in cells])])


@click.command()
@click.argument("name")
@output.plugin_option
@output.json_option
def info(name: str) -> None:
    """Describe one component, protocol, study or experiment; write `kind:name` where two kinds share a NAME."""
    from robflat_bench.core import UsageError
    from robflat_bench.registry.validation import did_you_mean

    registry = output.registry()
    catalogues = _catalogues(registry)
    wanted, _, short = name.rpartition(":")
    if wanted not in ("", *catalogues):
        raise UsageError(f"'{wanted}' is not a kind; there are {', '.join(catalogues)}")
    found: list[Any] = [kind for kind, (names, _) in catalogues.items() if wanted in ("", kind) and short in names]
    if not found:
        if registry.plugins.broken and wanted not in _OWN:  # the message names the plugin that may have it
            registry.get(wanted or "method", short)  # type: ignore[arg-type]
        known = [known for names, _ in catalogues.values() for known in names]
        raise UsageError(f"nothing is called '{short}'" + did_you_mean(short, known))
    if len(found) > 1:
        raise UsageError(f"'{short}' is " + " and ".join(f"{kind}:{short}" for kind in found) + "; name one of them")
    row = catalogues[found[0]][1](short)
    if found[0] not in _OWN:
        row["source"] = registry.get(found[0], short).provenance["source"]
    output.report(row, _tables(short, row))


def _tables(name: str, row: dict[str, Any]) -> Iterator[Table]:
    from robflat_bench.registry.describe import allowed, written

    yield output.table(name, ["", ""], [(key, value) for key, value in row.items() if isinstance(value, str) and value])
    if row.get("parameters"):
        columns = ["name", "default", "values", "description"]
        cells = [[p["name"], written(p["default"]), allowed(p), p["description"]] for p in row["parameters"]]
        yield output.table("parameters", columns, cells)
