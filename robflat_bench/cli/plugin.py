"""`robflat-bench plugin`: who offers what, and what is broken; make one; check one, which alone imports torch."""

from __future__ import annotations

import shlex
from pathlib import Path

import rich_click as click

from robflat_bench.cli import output


@click.group()
def plugin() -> None:
    """Plugins: installed, broken, switched off; make one, check one."""


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


@plugin.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["method", "modifier", "attack", "measure", "backbone", "dataset"]),
    default="method",
    show_default=True,
    help="What its first component is.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to make it in [default: this one].",
)
@output.json_option
def new(name: str, kind: str, into: Path, as_json: bool) -> None:
    """Make a plugin package NAME: one component that works, its tests, and the files around them.

    NAME is the distribution's, e.g. robflat-my-at; the component is called what follows `robflat-`.
    """
    from robflat_bench.scaffold import create

    files = create(output.registry(), name, kind, into)  # type: ignore[arg-type]
    commands = [f"cd {shlex.quote(str(into / name))}", "uv sync", f"uv run robflat-bench plugin check {name}"]
    if as_json:
        output.emit_json({"name": name, "kind": kind, "files": [str(file) for file in files], "next": commands})
        return
    for line in [*(f"wrote {file}" for file in files), "", *commands]:
        click.echo(line)


@plugin.command()
@click.argument("name", metavar="NAME|FILE.py")
@output.json_option
def check(name: str, as_json: bool) -> None:
    """Check an installed plugin NAME, or one in FILE.py: metadata, hooks, import, then the conformance kit.

    \b
    Exits with 3 where a check failed, with 4 where nothing of the plugin can be loaded.
    """
    from robflat_bench.audit import audit, find
    from robflat_bench.base import CheckFailed, PluginError

    subject = find(name)
    found = audit(subject, output.note)
    if as_json:
        output.emit_json(found.document())
    else:
        titles = [result.component for result in found.results]
        rows = [
            ["" if title == before else title, result.check.removeprefix("check_"), result.outcome, result.reason]
            for before, title, result in zip(["", *titles], titles, found.results, strict=False)
        ]
        heading = f"{found.plugin} {found.version}"
        output.console().print(output.table(heading, ["component", "check", "outcome", "reason"], rows))
        click.echo(found.verdict)
    if not found.loaded:
        raise PluginError("\n".join(f"{broken}\n{broken.trace}" for broken in subject.broken))
    if found.count("failed"):
        raise CheckFailed(f"{found.plugin}: {found.verdict}")
