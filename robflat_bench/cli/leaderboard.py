"""`robflat-bench leaderboard`: from your runs to the board, and from the board to its site."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from robflat_bench.cli import boards, output

if TYPE_CHECKING:
    from robflat_bench.leaderboard.entries import Submission
    from robflat_bench.registry.registry import Registry

root_option = click.option(
    "--leaderboard",
    "root",
    type=click.Path(path_type=Path),
    default=Path("leaderboard"),
    show_default=True,
    help="The folder of committed evidence.",
)
site_option = click.option(
    "--site", type=click.Path(path_type=Path), default=Path("site"), show_default=True, help="Where the pages go."
)


@click.group()
def leaderboard() -> None:
    """Rank methods by robustness and by flatness, from committed evidence."""


@leaderboard.command()
@click.option("--protocol", "protocols", multiple=True, help="Only this board, a name or a TOML file; repeatable.")
@output.store_option
@root_option
@output.plugin_option
@output.json_option
def show(protocols: tuple[str, ...], store: Path, root: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Print the rankings, with your own finished runs (those of --store) beside the committed ones."""
    from robflat_bench.leaderboard.build import build_leaderboard

    registry = output.registry(files)
    names = {output.protocol(registry, text).name for text in protocols}
    committed = _checked(root, registry)
    known = {one.record.key: one.record.outcomes for one in committed}
    found = output.own_runs(store, registry, protocols)
    mine = [one for one in found if one.record.key not in known]
    again = [known[one.record.key] == one.record.outcomes for one in found if one.record.key in known]
    if again:
        other = (
            f", {again.count(False)} with other outcomes (another machine rounds differently)" if not all(again) else ""
        )
        output.note(f"{len(again)} of your runs are in {root} already{other}; they are shown as they are there")
    made = build_leaderboard([*committed, *mine], root, registry)
    chosen = [board for board in made.boards if not names or board.protocol in names]
    if as_json:
        output.emit_json(
            {**made.model_dump(mode="json"), "boards": [board.model_dump(mode="json") for board in chosen]}
        )
        return
    filled = [board for board in chosen if board.rows]
    out = output.console()
    for board in filled:
        heading = f"{board.id} {board.version}, {board.checkpoint} checkpoint"
        out.print(output.table(heading, *boards.table(board, {one.record.key for one in mine}), right=2))
        out.print(boards.LEGEND + ("; * yours, not submitted" if mine else ""), markup=False)
    if not filled:
        output.note(f"nothing is ranked yet in {root}; `robflat-bench leaderboard submit RUN` sends a finished run")


@leaderboard.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@output.store_option
@root_option
@output.plugin_option
@output.json_option
def submit(runs: tuple[str, ...], store: Path, root: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Pack each RUN (a folder, or a key or its beginning; '*': all finished ones) as an entry of the leaderboard."""
    from robflat_bench.leaderboard import entries
    from robflat_bench.results.store import Store

    registry = output.registry(files)
    everything = Store(store)
    chosen = everything.runs("record.json") if "*" in runs else [everything.find(run) for run in runs]
    packed = [entries.add_entry(root, run, _today()) for run in chosen]
    for folder in packed:
        entries.read_entry(root, folder, registry)
    if as_json:
        output.emit_json([str(folder) for folder in packed])
        return
    for folder in packed:
        click.echo(str(folder))
    if files:
        output.note("nobody can check or build this leaderboard without these plugin files: send them along")
    output.note(
        f"{len(packed)} packed and checked. Next: `robflat-bench leaderboard build`, look at the pages, commit {root}/ "
        "and open a pull request; keep the weights (checkpoints/*.safetensors): verification asks for them"
    )


@leaderboard.command()
@click.argument("entries", nargs=-1, type=click.Path(path_type=Path), metavar="[ENTRY...]")
@root_option
@output.plugin_option
@output.json_option
def check(entries: tuple[Path, ...], root: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Check each ENTRY folder (default: all) as a stranger's: its files, its spec, its protocol, its totals."""
    from robflat_bench.core import CheckFailed
    from robflat_bench.leaderboard.entries import folders, read_entry

    registry = output.registry(files)
    problems = {}
    chosen = entries or tuple(folders(root))
    for folder in chosen:
        try:
            read_entry(root, folder, registry)
        except CheckFailed as error:
            problems[str(folder)] = str(error)
    if as_json:
        output.emit_json({"checked": len(chosen), "problems": problems})
    else:
        for problem in problems.values():
            click.echo(problem)
        click.echo(f"{len(chosen)} checked, {len(problems)} refused")
    if problems:
        raise CheckFailed(f"{len(problems)} of {len(chosen)} entries cannot be trusted")


@leaderboard.command()
@click.argument("entry", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Path(path_type=Path), help="The checkpoint's file: evaluate it again.")
@click.option("--retrain", is_flag=True, help="Train it again from its spec, then evaluate.")
@root_option
@output.data_option
@output.device_option
@output.plugin_option
@output.json_option
def verify(
    entry: Path,
    weights: Path | None,
    retrain: bool,
    root: Path,
    data: str | None,
    device: str,
    files: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Look at an ENTRY again in a fresh process, and move its tier where the result agrees.

    With --weights it becomes re-evaluated, with --retrain reproduced.
    """
    from robflat_bench.core import UsageError
    from robflat_bench.leaderboard.entries import read_entry, write_entry
    from robflat_bench.leaderboard.verify import reevaluate, reproduce

    if (weights is None) != retrain:
        raise UsageError("verify asks for --weights FILE or --retrain, one of them")
    registry = output.registry(files)
    found = read_entry(root, entry, registry)
    plugins = [part for file in files for part in ("--plugin", str(file))]
    options = ["--device", device, *(["--data", data] if data else []), *plugins]
    if weights is None:
        granted = reproduce(found, registry, options, _today())
    else:
        granted = reevaluate(found, weights, options, _today())
    moved = found.entry.model_copy(update={"verifications": (*found.entry.verifications, granted)})
    write_entry(entry, moved)
    if as_json:
        output.emit_json(moved.model_dump(mode="json"))
        return
    changed, total = granted.flags
    click.echo(
        f"{found.record.spec.label}, seed {found.record.seed}: {moved.tier}; "
        + ("every outcome equal" if granted.identical else f"{changed} of {total} outcomes differ")
        + f", numbers by at most {granted.deviation:.2f} standard errors"
    )


@leaderboard.command()
@click.option(
    "--check", "only_check", is_flag=True, help="Write nothing: rebuild twice and compare with what is there."
)
@site_option
@root_option
@output.plugin_option
def build(only_check: bool, site: Path, root: Path, files: tuple[Path, ...]) -> None:
    """Make board.json and the site from the committed entries."""
    from robflat_bench.core import CheckFailed, UsageError
    from robflat_bench.leaderboard.publish import differences, pages, write_site

    if not root.is_dir():
        raise UsageError(f"there is no {root} here; run this in a clone, or name the folder with --leaderboard DIR")
    registry = output.registry(files)
    if only_check:
        if found := differences(root, files):
            raise CheckFailed(f"{found}; `robflat-bench leaderboard build` makes it anew")
        click.echo("two rebuilds and the committed board.json are the same, byte for byte")
        return
    made = pages(_checked(root, registry), root, registry)
    write_site(made, site, root)
    click.echo(f"{root / 'board.json'} and {len(made)} files below {site}")
    output.note(f"look at them with `robflat-bench leaderboard serve --site {site}`")


@leaderboard.command()
@site_option
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def serve(site: Path, port: int) -> None:
    """Show the built site on this machine until Ctrl-C."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from robflat_bench.core import UsageError

    if not (site / "index.html").is_file():
        raise UsageError(f"there is no site in {site}; `robflat-bench leaderboard build --site {site}` makes it")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        click.echo(f"http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _checked(root: Path, registry: Registry) -> list[Submission]:
    """Every entry; CheckFailed where one cannot be trusted, for a board without it would be another."""
    from robflat_bench.core import CheckFailed
    from robflat_bench.leaderboard.entries import read_entries

    found, problems = read_entries(root, registry)
    for problem in problems:
        output.note(problem)
    if problems:
        raise CheckFailed(f"{len(problems)} entries in {root} cannot be trusted, as listed")
    return found
