"""`robflat-bench doctor`: describe this machine and test whether a run would work on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.grids import grid
from robflat_bench.front.text import next_line, options


@click.command()
@click.option("--launcher", help="Check also where this launcher starts runs, by a short job; see `list launchers`.")
@output.store_option
@output.data_option
@output.plugin_option
@output.json_option
def doctor(launcher: str | None, store: Path, data: str | None) -> None:
    """Check this machine: libraries, device, plugins, data, store. Exits with 3 if there is a problem."""
    from robflat_bench.core import CheckFailed, Resources
    from robflat_bench.registry.components import resolve
    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.doctor import check_machine
    from robflat_bench.runs.site import check_site

    registry = output.registry()
    component = resolve(registry, "launcher", launcher) if launcher else None
    found = check_machine(registry, store, data)
    problems = found["problems"]
    if component:
        with faults(registry):
            site, more = check_site(component.build(Resources()), store, output.note)
        found["launcher"] = {"name": component.canonical, **site}
        problems += more
    below = problems or ["no problems", next_line("run", "--method", "at", *options(store))]
    output.report(found, [grid("this machine", ["", ""], _rows(found)), *below])
    if problems:
        raise CheckFailed(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found")


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    machine = dict(found["environment"])
    packages, plugins = machine.pop("packages"), machine.pop("plugins")
    facts = {**machine, **packages}
    facts |= {f"{plugin}: {key}": value for plugin, told in plugins.items() for key, value in told.items()}
    facts |= {f"store: {key}": value for key, value in found["store"].items()}
    facts |= {f"data: {name}": "; ".join(origins) for name, origins in found["data"].items()}
    facts |= {f"launcher: {key}": _site_text(key, value) for key, value in found.get("launcher", {}).items()}
    return [(key.removesuffix("_bytes"), _text(key, value)) for key, value in facts.items()]


def _text(key: str, value: Any) -> str:
    """A fact in words; sizes in GB."""
    return f"{value / 1e9:.1f} GB" if key.endswith("_bytes") else str(value)


def _site_text(key: str, value: Any) -> str:
    if key == "clock":
        return f"{value[0]:+.1f} to {value[1]:+.1f} s from this one's"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
