"""`robflat-bench list` and `robflat-bench info`: the catalogue. Neither imports torch."""

from __future__ import annotations

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.kinds import KINDS


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", default="*", metavar="[GLOB]")
@output.plugin_option
@output.json_option
def list_components(kind: str, pattern: str) -> None:
    """List components of a KIND whose names match GLOB."""
    from robflat_bench.front.catalogue import list_grid, listed

    rows = listed(output.registry(), kind, pattern)
    output.report(rows, [list_grid(kind, rows)])


@click.command()
@click.argument("name")
@output.plugin_option
@output.json_option
def info(name: str) -> None:
    """Describe one component, protocol, study or experiment; write `kind:name` where two kinds share a NAME."""
    from robflat_bench.front.catalogue import description_grids, found

    row = found(output.registry(), name)
    output.report(row, description_grids(row))
