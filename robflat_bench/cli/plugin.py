"""`robflat-bench plugin`: list plugins and their faults; make a plugin; check one (only `check` imports torch)."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front.grids import Grid, grid

if TYPE_CHECKING:
    from robflat_bench.testing.audit import Audit


@click.group(no_args_is_help=False)
def plugin() -> None:
    """List plugins, make one, check one."""


@plugin.command("list")
@output.plugin_option
@output.json_option
def list_plugins() -> None:
    """List plugins with their version, state (ok, broken or disabled) and components."""
    from robflat_bench.registry.describe import describe_plugins
    from robflat_bench.registry.registry import discover

    registry = discover(output.plugin_files())
    rows = describe_plugins(registry)
    for line in (*registry.duplicates(), *registry.plugins.deprecated):
        output.note(line)
    cells = [
        [row["distribution"], row["version"], row["entry_point"], row["state"], row["error"] or _offered(row)]
        for row in rows
    ]
    columns = ["distribution", "version", "entry point", "state", "components and other hooks, or error"]
    output.report(rows, [grid("plugins", columns, cells)])


def _offered(row: dict[str, Any]) -> str:
    """The plugin's components, and its hooks that offer no component."""
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
    help="Kind of its first component.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder in which to make it [default: this one].",
)
@output.json_option
def new(name: str, kind: str, into: Path) -> None:
    """Make a plugin package NAME: one component that works, its tests, and the files around them.

    NAME is the distribution's name, e.g. robflat-my-at; its component is called my-at.
    """
    from robflat_bench.scaffold import create

    files = create(output.registry(), name, kind, into)  # type: ignore[arg-type]
    commands = [f"cd {shlex.quote(str(into / name))}", "uv sync", f"uv run robflat-bench plugin check {name}"]
    document = {"name": name, "kind": kind, "files": files, "next": commands}
    output.report(document, [*(f"wrote {file}" for file in files), "", *commands])


@plugin.command("check")
@click.argument("name", metavar="NAME|FILE.py")
@output.json_option
def check_plugin(name: str) -> None:
    """Check an installed plugin NAME, or one in FILE.py: metadata, hooks, import, then the conformance kit.

    \b
    Exits with 3 if a check failed, with 4 if nothing of the plugin can be loaded.
    """
    from robflat_bench.core import CheckFailed, PluginError
    from robflat_bench.testing.audit import audit, find_plugin

    plugin = find_plugin(name)
    found = audit(plugin, output.note)
    output.report(found.document(), _parts(found))
    if not found.loaded:
        raise PluginError("\n".join(f"{broken}\n{broken.trace}" for broken in plugin.broken))
    if found.count("failed"):
        raise CheckFailed(f"{found.plugin}: {found.verdict}")


def _parts(found: Audit) -> Iterator[Grid | str]:
    titles = [result.component for result in found.results]
    rows = [
        ["" if title == before else title, result.check.removeprefix("check_"), result.outcome, result.reason]
        for before, title, result in zip(["", *titles], titles, found.results, strict=False)
    ]
    yield grid(f"{found.plugin} {found.version}", ["component", "check", "outcome", "reason"], rows)
    yield found.verdict
