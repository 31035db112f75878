"""`robflat-bench plugin`: who offers what, and what is broken. Never imports torch."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from robflat_bench.cli import output


@click.group()
def plugin() -> None:
    """Plugins: installed, broken, switched off."""


@plugin.command("list")
@output.plugin_option
@output.json_option
def list_plugins(files: tuple[Path, ...], as_json: bool) -> None:
    """List plugins with their version, state and components."""
    from robflat_bench.registry import KINDS, discover

    registry = discover(tuple(files))
    plugins = registry.plugins
    broken = {(item.distribution, item.entry_point): item for item in plugins.broken}
    offered: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        for offer in registry.offers(kind):
            key = (offer.provider.distribution, offer.provider.entry_point)
            offered.setdefault(key, []).append(f"{kind}:{offer.info.name}")
    rows = []
    for provider in plugins.providers.values():
        key = (provider.distribution, provider.entry_point)
        rows.append(
            {
                "distribution": provider.distribution,
                "version": provider.version,
                "entry_point": provider.entry_point,
                "state": "broken" if key in broken else "ok",
                "components": offered.get(key, []),
                "error": broken[key].error if key in broken else "",
                "source": provider.source_hash(),
            }
        )
    shown = {(row["distribution"], row["entry_point"]) for row in rows}
    rows += [
        {
            "distribution": item.distribution,
            "version": item.version,
            "entry_point": item.entry_point,
            "state": "broken",
            "components": [],
            "error": item.error,
            "source": "",
        }
        for key, item in broken.items()
        if key not in shown
    ]
    rows += [
        {
            "distribution": name,
            "version": "",
            "entry_point": "",
            "state": "disabled",
            "components": [],
            "error": "",
            "source": "",
        }
        for name in plugins.disabled
    ]
    for line in registry.duplicates():
        output.note(line)
    if as_json:
        output.emit_json(rows)
        return
    cells = [
        [
            str(row["distribution"]),
            str(row["version"]),
            str(row["entry_point"]),
            str(row["state"]),
            str(row["error"]) or ", ".join(row["components"]),
        ]
        for row in rows
    ]
    output.console().print(
        output.table("plugins", ["distribution", "version", "entry point", "state", "components or error"], cells)
    )
