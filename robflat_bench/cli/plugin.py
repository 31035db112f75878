"""`robflat-bench plugin`: who offers what, and what is broken; make one; check one, which alone imports torch."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from robflat_bench.registry.registry import Registry


@click.group()
def plugin() -> None:
    """Plugins: installed, broken, switched off; make one, check one."""


@plugin.command("list")
@output.plugin_option
@output.json_option
def list_plugins(files: tuple[Path, ...], as_json: bool) -> None:
    """List plugins with their version, state and components."""
    from robflat_bench.registry.registry import discover

    registry = discover(tuple(files))
    rows = _rows(registry)
    for line in (*registry.duplicates(), *registry.plugins.deprecated):
        output.note(line)
    if as_json:
        output.emit_json(rows)
        return
    cells = [
        [row["distribution"], row["version"], row["entry_point"], row["state"], row["error"] or _offered(row)]
        for row in rows
    ]
    columns = ["distribution", "version", "entry point", "state", "components and other hooks, or error"]
    output.console().print(output.table("plugins", columns, cells))


def _rows(registry: Registry) -> list[dict[str, Any]]:
    """What loaded, what did not, and what was switched off."""
    from robflat_bench.registry.registry import KINDS

    plugins = registry.plugins
    broken = {(item.distribution, item.entry_point): item for item in plugins.broken}
    empty: dict[str, Any] = {"version": "", "entry_point": "", "components": [], "hooks": [], "error": "", "source": ""}
    offered: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        for offer in registry.offers(kind):
            key = (offer.provider.distribution, offer.provider.entry_point)
            offered.setdefault(key, []).append(f"{kind}:{offer.info.name}")
    rows = []
    for module, provider in plugins.providers.items():
        key = (provider.distribution, provider.entry_point)
        fault = broken.pop(key, None)
        rows.append(
            {
                "distribution": provider.distribution,
                "version": provider.version,
                "entry_point": provider.entry_point,
                "state": "broken" if fault else "ok",
                "components": offered.get(key, []),
                "hooks": sorted(hook.name for hook in plugins.manager.get_hookcallers(module) or ()),
                "error": fault.error if fault else "",
                "source": provider.source_hash(),
            }
        )
    for item in broken.values():
        names = {"distribution": item.distribution, "version": item.version, "entry_point": item.entry_point}
        rows.append(empty | names | {"state": "broken", "error": item.error})
    return rows + [empty | {"distribution": name, "state": "disabled"} for name in plugins.disabled]


def _offered(row: dict[str, Any]) -> str:
    """Its components, and the hooks that offer none."""
    kinds = {component.partition(":")[0] for component in row["components"]}
    hooks = (hook.removeprefix("robflat_bench_") for hook in row["hooks"])
    return ", ".join([*row["components"], *(hook for hook in hooks if hook.removesuffix("s") not in kinds)])


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
    from robflat_bench.core import CheckFailed, PluginError
    from robflat_bench.testing.audit import audit, find_plugin

    plugin = find_plugin(name)
    found = audit(plugin, output.note)
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
        raise PluginError("\n".join(f"{broken}\n{broken.trace}" for broken in plugin.broken))
    if found.count("failed"):
        raise CheckFailed(f"{found.plugin}: {found.verdict}")
