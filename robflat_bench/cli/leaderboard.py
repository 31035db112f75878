"""`robflat-bench leaderboard`: from your runs to the board, and from the board to its site."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from robflat_bench.cli import output
from robflat_bench.front import boards
from robflat_bench.front.grids import Grid, grid

PATH = click.Path(path_type=Path)
root_option = click.option(
    "--leaderboard", "root", type=PATH, default=Path("leaderboard"), show_default=True, help="Folder of the entries."
)
site_option = click.option("--site", type=PATH, default=Path("site"), show_default=True, help="Folder of the pages.")

SUBMIT = "`robflat-bench leaderboard submit RUN` adds a finished run"


@click.group(no_args_is_help=False)
def leaderboard() -> None:
    """Rank methods by robustness and by flatness, from committed evidence."""


@leaderboard.command("show")
@output.protocols_option
@output.store_option
@root_option
@output.plugin_option
@output.json_option
def show_rankings(protocols: tuple[str, ...], store: Path, root: Path) -> None:
    """Print the rankings: the committed entries, and your own finished runs (those of --store) beside them."""
    from robflat_bench.front.boards import Standings

    found = Standings.of(output.registry(), protocols, root, store)

    def parts() -> Iterator[Grid | str]:
        filled = [board for board in found.boards if board.rows]
        for board in filled:
            yield from found.parts(board)
        if filled:
            yield found.legend
            yield "next: `robflat-bench leaderboard claims`, `robflat-bench info METHOD`, or with --json every number"
        if not root.exists():
            output.note(f"there is no folder {root} here, so only your own runs count; name it with --leaderboard DIR")
        if not filled:
            output.note(f"{root} ranks no runs yet; {SUBMIT}")

    output.report({**found.leaderboard.model_dump(mode="json"), "boards": found.boards}, parts())


@leaderboard.command("claims")
@click.option("--board", "names", multiple=True, metavar="ID", help="Only the board of this protocol; repeatable.")
@root_option
@output.json_option
def show_claims(names: tuple[str, ...], root: Path) -> None:
    """Print what the committed board.json says to each claim of the paper and to each objection."""
    from robflat_bench.core import UsageError
    from robflat_bench.leaderboard.claims import LEGEND
    from robflat_bench.leaderboard.model import Leaderboard
    from robflat_bench.records.store import read_record

    file = root / "board.json"
    if not file.is_file():
        raise UsageError(f"there is no {file}; `robflat-bench leaderboard build --leaderboard {root}` writes it")
    found = read_record(file, Leaderboard).boards
    if unknown := sorted({*names} - {board.id for board in found}):
        known = ", ".join(board.id for board in found)
        raise UsageError(f"{file} has no board {unknown[0]!r:.80}; its boards are {known}")
    asked = [board for board in found if board.id in names or not names]
    chosen = [board for board in asked if board.claims]
    empty = [board.id for board in asked if not board.claims and (names or not chosen)]

    def parts() -> Iterator[Grid | str]:
        for board in chosen:
            yield grid(f"{board.id} {board.version}", *boards.claims_table(board))
        if chosen:
            yield LEGEND
        for name in empty:
            output.note(f"{name} has no active entries, so no claim can be tested there; {SUBMIT}")
        if not asked:
            output.note(f"{file} has no boards, so no claim can be tested; {SUBMIT}")

    document = [{"board": board.id, "version": board.version, "claims": board.claims} for board in chosen]
    output.report(document, parts())


@leaderboard.command("submit")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@output.store_option
@root_option
@output.plugin_option
@output.json_option
def submit_runs(runs: tuple[str, ...], store: Path, root: Path) -> None:
    """Pack each RUN (a folder, or a key or its beginning; '*': all finished ones) as an entry of the leaderboard."""
    from robflat_bench.core import UsageError
    from robflat_bench.leaderboard.submit import add_entries, earlier_numerics
    from robflat_bench.records.store import Store

    registry = output.registry()
    everything = Store(store)
    named = everything.runs("record.json") if "*" in runs else [everything.find(run) for run in runs]
    if not named:
        raise UsageError(f"{store} has no finished run to submit; `robflat-bench results ls --store DIR` lists a store")
    chosen = {run.path.resolve(): run for run in named}
    earlier = [*earlier_numerics(root, [*chosen.values()], registry)]
    packed = add_entries(root, [*chosen.values()], registry, _today())

    def lines() -> Iterator[str]:
        yield from map(str, packed)
        for line in earlier:
            output.note(line)
        if output.plugin_files():
            output.note("this leaderboard can be checked and built only with these plugin files: send them along")
        output.note(
            f"{len(packed)} packed and checked. Next: `robflat-bench leaderboard build`, look at the pages, commit "
            f"{root}/ and open a pull request; keep the weights (checkpoints/*.safetensors) for verification"
        )

    output.report(packed, lines(), stored=True)


@leaderboard.command("check")
@click.argument("entries", nargs=-1, type=PATH, metavar="[ENTRY...]")
@root_option
@output.plugin_option
@output.json_option
def check_entries(entries: tuple[Path, ...], root: Path) -> None:
    """Check every file of the leaderboard, or only each ENTRY folder; anyone may have sent them."""
    from robflat_bench.core import CheckFailed, UsageError
    from robflat_bench.leaderboard.publish import read_leaderboard
    from robflat_bench.leaderboard.tree import RECORDS, entry_place

    found, problems = read_leaderboard(root, output.registry())
    refused = {str(place): line for place, line in reversed(problems)}
    checked = {*refused, *(str(root / RECORDS / one.folder) for one in found)}
    if entries:
        checked = {str(root / entry_place(root, entry)) for entry in entries}
        refused = {place: line for place, line in refused.items() if place in checked}
    if not checked:
        raise UsageError(f"{root} has nothing to check; {SUBMIT}")
    refused = dict(sorted(refused.items()))
    document = {"checked": len(checked), "problems": refused}
    output.report(document, [*refused.values(), f"{len(checked)} checked, {len(refused)} refused"])
    if refused:
        raise CheckFailed(f"{len(refused)} of {len(checked)} cannot be trusted")


@leaderboard.command()
@click.argument("entry", type=PATH)
@click.option("--weights", type=PATH, help="The checkpoint's file: evaluate it again.")
@click.option("--retrain", is_flag=True, help="Train again from the spec, then evaluate.")
@root_option
@output.data_option
@output.device_option
@output.plugin_option
@output.json_option
def verify(entry: Path, weights: Path | None, retrain: bool, root: Path, data: str | None, device: str) -> None:
    """Evaluate an ENTRY again in a new process, and raise its tier if the result agrees.

    The new tier is re-evaluated with --weights and reproduced with --retrain.
    """
    from robflat_bench.core import CheckFailed, UsageError
    from robflat_bench.leaderboard.entries import write_entry
    from robflat_bench.leaderboard.publish import read_leaderboard
    from robflat_bench.leaderboard.tree import RECORDS, entry_place
    from robflat_bench.leaderboard.verify import reevaluate, reproduce

    if (weights is None) != retrain:
        raise UsageError("verify asks for --weights FILE or --retrain, one of them")
    registry = output.registry()
    committed, problems = read_leaderboard(root, registry)
    folder = root / entry_place(root, entry)
    for place, line in problems:
        if place == folder:
            raise CheckFailed(line)
    found = next(one for one in committed if root / RECORDS / one.folder == folder)
    options = ["--device", device, *(["--data", data] if data else []), *output.plugin_options()]
    if weights is None:
        granted = reproduce(found, committed, registry, options, _today())
    else:
        granted = reevaluate(found, registry, weights, options, _today())
    moved = found.entry.model_copy(update={"verifications": (*found.entry.verifications, granted)})
    write_entry(folder, moved)
    changed, total = granted.flags
    outcomes = "every outcome equal" if granted.identical else f"{changed} of {total} outcomes differ"
    line = f"{found.record.spec.label}, seed {found.record.seed}: {moved.tier}; {outcomes}"
    seen = " and ".join(granted.checkpoints)
    output.report(moved, [f"{line}, numbers of {seen} by at most {granted.deviation:.2f} standard errors"], stored=True)


@leaderboard.command("build")
@click.option("--check", "only_check", is_flag=True, help="Rebuild twice and compare with board.json; write nothing.")
@click.option("--commit", default="", metavar="SHA", help="Commit of the repository, which the pages then name.")
@site_option
@root_option
@output.plugin_option
def build_site(only_check: bool, commit: str, site: Path, root: Path) -> None:
    """Write board.json and the site from the committed entries."""
    from robflat_bench.core import CheckFailed, UsageError
    from robflat_bench.leaderboard.publish import differences, pages, write_site

    if not re.fullmatch("([0-9a-f]{7,64})?", commit):
        raise UsageError(f"{commit!r:.80} is no commit: give `git rev-parse HEAD`")
    registry = output.registry()
    committed = boards.checked_entries(root, registry)
    if only_check:
        if found := differences(root, output.plugin_files()):
            raise CheckFailed(f"{found}; `robflat-bench leaderboard build` writes it again")
        output.show("two rebuilds and the committed board.json are the same, byte for byte")
        return
    made = pages(committed, root, registry, commit)
    write_site(made, site, root)
    output.show(f"{root / 'board.json'} and {len(made)} files below {site}")
    output.note(f"to look at them: `robflat-bench leaderboard serve --site {site}`")


@leaderboard.command()
@site_option
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
def serve(site: Path, port: int) -> None:
    """Serve the built site on this machine until Ctrl-C."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from robflat_bench.core import UsageError

    if not (site / "index.html").is_file():
        raise UsageError(f"there is no site in {site}; `robflat-bench leaderboard build --site {site}` makes it")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    try:
        listening = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise UsageError(f"cannot serve on port {port}: {error.strerror}; choose another one, or --port 0") from None
    with listening as server:
        output.show(f"http://127.0.0.1:{server.server_address[1]}/")
        server.serve_forever()


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()
