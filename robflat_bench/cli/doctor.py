"""`robflat-bench doctor`: describe this machine and test whether a run would work on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.grids import grid


@click.command()
@output.store_option
@output.data_option
@output.json_option
def doctor(store: Path, data: str | None) -> None:
    """Check this machine: libraries, device, plugins, data, store. Exits with 3 if there is a problem."""
    from robflat_bench.core import CheckFailed
    from robflat_bench.runs.doctor import check_machine

    found = check_machine(output.registry(), store, data)
    problems = found["problems"]
    output.report(found, [grid("this machine", ["", ""], _rows(found)), *(problems or ["no problems"])])
    if problems:
        raise CheckFailed(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    machine = dict(found["environment"])
    packages, plugins = machine.pop("packages"), machine.pop("plugins")
    facts = {**machine, **packages}
    facts |= {f"{plugin}: {key}": value for plugin, told in plugins.items() for key, value in told.items()}
    facts |= {f"data: {name}": "; ".join(origins) for name, origins in found["data"].items()}
    return [(key, str(value)) for key, value in facts.items()]
