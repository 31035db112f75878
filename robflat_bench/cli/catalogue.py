"""`robflat-bench list` and `robflat-bench info`: the catalogue. Neither imports torch."""

from __future__ import annotations

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.kinds import KINDS


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("pattern", default="*", metavar="[GLOB]")
@output.plugin_option
@output.json_option
def list_components(kind: str | None, pattern: str) -> None:
    """List components of a KIND whose names match GLOB; without a KIND, the kinds."""
    from robflat_bench.front.catalogue import kinds_grid, list_grid, listed, listed_kinds

    registry = output.registry()
    if kind is None:
        counts = listed_kinds(registry)
        output.report(counts, [kinds_grid(counts), "next: `robflat-bench list methods`"])
        return
    rows = listed(registry, kind, pattern)
    if not rows:
        output.note(f"no {kind} match '{pattern}'; type `robflat-bench list {kind}` for all of them")
    output.report(rows, [list_grid(kind, rows), f"next: `robflat-bench info {rows[0]['name']}`"] if rows else [])


@click.command()
@click.argument("name")
@output.plugin_option
@output.json_option
def info(name: str) -> None:
    """Describe one component, protocol, study or experiment; write `kind:name` where two kinds share a NAME."""
    from robflat_bench.front.catalogue import description_grids, example_line, found

    row = found(output.registry(), name)
    output.report(row, [*description_grids(row), f"next: `{example_line(row)}`"])
