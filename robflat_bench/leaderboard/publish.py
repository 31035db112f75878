"""From the committed entries to files: `board.json`, which is committed, and the site, which is not.

`differences` proves that both depend on the committed files alone."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robflat_bench.config.protocol import Checkpoint, Protocol, read_text
from robflat_bench.core import CheckFailed, LeaderboardColumn, RobflatError, UsageError
from robflat_bench.data.splits import load_splits
from robflat_bench.leaderboard import links
from robflat_bench.leaderboard.build import build_leaderboard
from robflat_bench.leaderboard.comparison import comparisons
from robflat_bench.leaderboard.entries import Submission, read_entries, references
from robflat_bench.leaderboard.entry_checks import board_id, known_protocol
from robflat_bench.leaderboard.model import Board, Leaderboard
from robflat_bench.leaderboard.rows import SeedGroup, group_seeds
from robflat_bench.leaderboard.site.cards import method_card
from robflat_bench.leaderboard.site.curves import TrainingDocument
from robflat_bench.leaderboard.site.pages import RESERVED, Sources, comparison_page, render_site
from robflat_bench.leaderboard.site.thumbnails import CREDITS, Thumbnails, thumbnails
from robflat_bench.leaderboard.tree import EXPERIMENTS, PAGES, RECORDS, REFERENCES, Problem, walk
from robflat_bench.records.quantities import QuantityValue, column_id, heading, quantity_values
from robflat_bench.records.store import read_record
from robflat_bench.registry.components import slug
from robflat_bench.registry.registry import Registry, discover

BOARD = "data/board.json"
"""Path of the board below the site; the leaderboard's folder has a copy."""
ELSEWHERE = ({"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati"}, {"PYTHONHASHSEED": "2", "TZ": "America/Adak"})


def read_leaderboard(root: Path, registry: Registry) -> tuple[list[Submission], list[Problem]]:
    """The entries below `root` that pass every check, and every reason not to build a board from this folder.

    Raises UsageError where `root` is no folder.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root} here; change to a clone, or name it with --leaderboard DIR")
    found, problems = read_entries(root, registry)
    return found, [*problems, *_document_problems(root, registry, {board_id(one) for one in found})]


def _document_problems(root: Path, registry: Registry, boards: set[str]) -> Iterator[Problem]:
    """What is wrong with references, pages and experiment documents. boards: with an entry."""
    files = [root / each.place for each in walk(root) if not each.problem and not each.entry]
    boards |= {file.stem for file in files if file.parent.name == REFERENCES}
    for file in files:
        try:
            if file.parent.name == REFERENCES:
                references(root, file.stem)
                if file.stem not in registry.protocols:
                    known = ", ".join(registry.protocols)
                    yield Problem(file, f"{file} is named after no known protocol. Known are: {known}")
            elif file.parent.name == PAGES:
                read_text(file, "page")
                if file.stem in {*RESERVED, *boards}:
                    yield Problem(file, f"{file} has the address of another page of the site; rename it")
            elif file.name == links.FILE:
                links.links(root)
            elif file.parent.name == EXPERIMENTS:
                read_record(file, TrainingDocument)
        except RobflatError as error:
            yield Problem(file, str(error))


def sources(board: Leaderboard, submissions: Sequence[Submission], root: Path, registry: Registry) -> Sources:
    """The sources of the pages: records, the catalogue, and the pages and experiment documents below `root`."""
    protocols = {one.id: known_protocol(registry, one.protocol) for one in board.boards}
    active = [one for one in submissions if one.entry.status == "active"]
    groups = {run.record.key: group for group in group_seeds(active) for run in group.runs}
    compared = [one for one in board.boards if len(one.rows) > 1]
    values: dict[str, dict[str, list[QuantityValue]]] = {
        one.record.key: {
            checkpoint: [*quantity_values(checkpoint, result, one.outcomes)]
            for checkpoint, result in one.record.results.items()
        }
        for one in submissions
    }
    numbers = {value[:2] for found in values.values() for results in found.values() for value in results}
    return Sources(
        records={one.record.key: one.record for one in submissions},
        outcomes={one.record.key: root / RECORDS / one.folder / "outcomes.npz" for one in submissions},
        values=values,
        cards={row.method: method_card(registry, row.method) for one in board.boards for row in one.rows},
        protocols={name: protocol for name, protocol in protocols.items() if protocol},
        pages={path.stem: read_text(path, "page") for path in sorted((root / PAGES).glob("*.md"))},
        columns={one.id: _columns(registry, one) for one in board.boards},
        comparisons={one.id: comparisons(one, groups) for one in compared},
        images={one.id: shown for one in compared if (shown := _images(registry, one, protocols[one.id]))},
        links=links.links(root),
        titles={column_id(*number): heading(registry, *number) for number in sorted(numbers)},
        trainings=tuple(read_record(path, TrainingDocument) for path in sorted((root / EXPERIMENTS).glob("*.json"))),
    )


def _images(registry: Registry, board: Board, protocol: Protocol | None) -> Thumbnails | None:
    """The test images of a board, where their licence lets them be shown and every installation has them."""
    dataset = protocol.fixed.data.dataset if protocol else ""
    if protocol is None or dataset not in CREDITS or not board.canonical:
        return None
    pool = load_splits(registry, protocol, None).pools["test"]
    return thumbnails(pool.x, pool.y, dataset)


def _columns(registry: Registry, board: Board) -> list[LeaderboardColumn]:
    """The columns that plugins add to a board's table; a name starts with its plugin's distribution."""
    document = board.model_dump(mode="json")
    offered = registry.plugins.rows("robflat_bench_leaderboard_columns", _check_column, board=document)
    return [replace(column, name=f"{who.distribution}-{column.name}") for who, columns in offered for column in columns]


def _check_column(column: Any) -> None:
    if not isinstance(column, LeaderboardColumn) or slug(column.name) != column.name:
        raise TypeError(f"robflat_bench_leaderboard_columns must return LeaderboardColumn rows, got {column!r:.200}")
    for value in column.values.values():
        if not math.isfinite(value):
            raise ValueError(f"column {column.name!r} has the value {value}")
        format(value, column.form)


def pages(submissions: Sequence[Submission], root: Path, registry: Registry, commit: str = "") -> dict[str, bytes]:
    """Every file of the site by its path. commit: of the repository, which pages name."""
    board = build_leaderboard(submissions, root, registry)
    return render_site(board, replace(sources(board, submissions, root, registry), commit=commit))


def comparison(
    one: SeedGroup, other: SeedGroup, runs: Sequence[Submission], checkpoint: Checkpoint, root: Path, registry: Registry
) -> bytes:
    """One HTML file that compares two rows. runs: all that letters are about, from one folder `root`."""
    keys = {group.runs[0].record.key: group for group in (one, other)}
    made = build_leaderboard(runs, root, registry)
    board, rows = next(
        (board, rows)
        for board in made.boards
        if len(rows := [row for row in board.rows if row.runs[0].key in keys]) == 2
    )
    if checkpoint != board.checkpoint:
        rows = [row.model_copy(update={"places": {}}) for row in rows]
    board = board.model_copy(update={"rows": tuple(rows), "checkpoint": checkpoint})
    base = next(row for row in rows if keys[row.runs[0].key] is other)
    return comparison_page(board, base, sources(Leaderboard(boards=(board,)), [*one.runs, *other.runs], root, registry))


def write_site(made: Mapping[str, bytes], site: Path, root: Path) -> None:
    """Write the site below `site` and board.json below `root`. Pages that only an earlier build had are removed.

    Raises UsageError where they cannot be written, or `site` lies in the leaderboard, which has no place for it.
    """
    home = site.resolve()
    if root.resolve() in (home, *home.parents):
        raise UsageError(f"{site} lies in the leaderboard {root}; choose another folder with --site DIR")
    try:
        _write(made, site, root)
    except OSError as error:
        raise UsageError(
            f"cannot write {error.filename or site}: {error.strerror or error}; choose another folder with --site DIR"
        ) from error


def _write(made: Mapping[str, bytes], site: Path, root: Path) -> None:
    for path in (site / name for name in (*made, "files.json")):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):  # a pipe would wait for its reader
            raise OSError(errno.EEXIST, "it is no regular file", str(path))
    before = site / "files.json"
    try:
        former = [name for name in json.loads(before.read_text("utf-8")) if isinstance(name, str)]
    except (FileNotFoundError, ValueError, TypeError):  # none, or damaged: what an earlier build made is not known
        former = []
    for name in {*former} - {*made}:
        if not Path(name).is_absolute() and ".." not in Path(name).parts:
            (site / name).unlink(missing_ok=True)
    for name, content in made.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before.write_text(json.dumps(sorted(made)), "utf-8")
    (root / "board.json").write_bytes(made[BOARD])


def digests(root: Path, plugins: tuple[Path, ...]) -> dict[str, str]:
    """SHA-256 of every file of the site; raises CheckFailed with the first problem of an entry."""
    registry = discover(plugins)
    submissions, problems = read_leaderboard(root, registry)
    if problems:
        raise CheckFailed(problems[0].line)
    return {name: hashlib.sha256(made).hexdigest() for name, made in pages(submissions, root, registry).items()}


def differences(root: Path, plugins: tuple[Path, ...]) -> str:
    """Build twice, with other hash seeds and time zones, and compare both builds and the committed board.

    Returns a sentence on the first difference, or ""."""
    one, other = (_elsewhere(root, plugins, changes) for changes in ELSEWHERE)
    changed = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    if changed:
        return f"{len(changed)} files differ between two builds, among them {changed[0]}"
    committed = root / "board.json"
    if not committed.is_file() or hashlib.sha256(committed.read_bytes()).hexdigest() != one[BOARD]:
        return f"{committed} differs from what its entries give"
    return ""


def _elsewhere(root: Path, plugins: tuple[Path, ...], changes: Mapping[str, str]) -> dict[str, str]:
    """The `digests` of a build in a fresh process. changes: of its environment variables."""
    code = (
        "import json, sys; from pathlib import Path; from robflat_bench.cli.streams import reserve; kept = reserve(); "
        "from robflat_bench.leaderboard.publish import digests; "
        "kept.write(json.dumps(digests(Path(sys.argv[1]), tuple(map(Path, sys.argv[2:]))))); kept.flush()"
    )
    command, environment = [sys.executable, "-P", "-c", code, str(root), *map(str, plugins)], {**os.environ, **changes}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckFailed(f"the board cannot be built: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found
