"""Submitting: finished runs become entries of a leaderboard, all of them or none.

The entries are packed into a temporary folder on the same disk and pass there every check of `entries.read_entry`. One
rename for each entry then moves it to its place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import load, recorded
from robflat_bench.config.spec import RunSpec, run_options
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.leaderboard.entries import Entry, read_entries, read_entry, write_entry
from robflat_bench.leaderboard.entry_checks import known_protocol, twin_problems
from robflat_bench.leaderboard.tree import MAX_OUTCOMES, RECORDS
from robflat_bench.records import record as records
from robflat_bench.records.record import RunRecord
from robflat_bench.records.removal import TEMPORARY
from robflat_bench.records.store import RunFolder, read_record, regular_bytes
from robflat_bench.registry.registry import Registry


def add_entries(root: Path, runs: Sequence[RunFolder], registry: Registry, today: str) -> list[Path]:
    """Add finished runs to the leaderboard `root`; the folders of their entries.

    An entry that is there already keeps its entry.json and gains the run's new evaluations. today: YYYY-MM-DD.

    Raises
    ------
    CheckFailed : an entry would be refused, or its place holds another record; nothing is written.
    UsageError : `root` cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=_nearest(root)) as folder:
            stage = Path(folder)
            places = [_pack(stage, root, run, registry, today) for run in runs]
            _check(stage, root, places, registry)
            _move(stage, root, places)
    except OSError as error:
        reason = f"{error.filename or root}: {error.strerror or error}"
        raise UsageError(f"cannot write {root} ({reason}); choose another folder with --leaderboard DIR") from error
    return [root / place for place in places]


def earlier_numerics(root: Path, runs: Sequence[RunFolder], registry: Registry) -> Iterator[str]:
    """A line for each run that was trained with earlier numerics and is no entry of `root` yet: the board will have it,
    in a row without today's runs. The line ends with the command that trains it again."""
    for run in runs:
        spec = read_record(run.record_file, RunRecord).spec  # `_pack` reads the outcomes
        new = spec.numerics < NUMERICS and not (root / RECORDS / spec.folder).exists()
        if new and known_protocol(registry, spec.protocol.name):
            why = f"runs of this version have {NUMERICS} and another row, and `verify --retrain` cannot reproduce it"
            again = _again(run, spec, registry)
            yield f"{run.path} was trained with numerics {spec.numerics}: {why}. Train it again: {again}"


def _check_version(run: RunFolder, spec: RunSpec, registry: Registry) -> None:
    """Raise CheckFailed where a later version of the run's protocol is in force."""
    ref, now = spec.protocol, known_protocol(registry, spec.protocol.name)
    if now and _order(ref.version) < _order(now.version):
        raise CheckFailed(
            f"{run.path} was made under {ref.name} {ref.version}, which version {now.version} replaces. Train it again "
            f"under that one: {_again(run, spec, registry)}"
        )


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _again(run: RunFolder, spec: RunSpec, registry: Registry) -> str:
    """The command that trains a run's method, recipe and seed under the version of its protocol that is in force."""
    ref = spec.protocol
    options = run_options(spec, load(registry, recorded(registry, ref.name, ref.version)), ref.name)
    return f"`{shlex.join(['robflat-bench', 'run', *options, '--store', str(run.store)])}`"


def _nearest(root: Path) -> Path:
    """`root`, or the first folder above it that exists: a place on the same disk."""
    return next(folder for folder in (root, *Path(os.path.abspath(root)).parents) if folder.exists())


def _pack(stage: Path, root: Path, run: RunFolder, registry: Registry, today: str) -> str:
    """Write the entry of a run below `stage`, on top of the entry that `root` has of it; its folder below both."""
    record = run.record()
    raw = regular_bytes(run.record_file, records.MAX_BYTES)
    entry = Entry.of(record, raw, today)
    place = f"{RECORDS}/{record.spec.folder}"
    folder, known = stage / place, root / place
    for path in (known, *known.parents[:4]):
        if path != root and os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise CheckFailed(f"{path} is a link or no folder, so no entry is written there; remove it")
    if folder.exists():
        raise CheckFailed(f"{run.path} is the same run as another one of these; name it once")
    if known.exists():
        before = read_entry(root, known, registry).entry
        if before.record != entry.record:
            raise CheckFailed(f"{known} holds another record of this run. To replace it, remove that folder first")
        entry = before
        shutil.copytree(known, folder)
    else:
        _check_version(run, record.spec, registry)
    files = {"record.json": raw, "outcomes.npz": regular_bytes(run.outcomes_file, MAX_OUTCOMES)}
    for evaluation, _ in run.evaluations():
        if {*evaluation.results} <= {*record.results}:  # those of other checkpoints say nothing about the entry
            path = run.evaluation_file(evaluation.key)
            for file in (path, path.with_suffix(".npz")):
                files[f"evaluations/{file.name}"] = regular_bytes(file, MAX_OUTCOMES)
    for name, content in files.items():
        copy = folder / name
        if copy.exists() and copy.read_bytes() != content:
            raise CheckFailed(f"{known / name} holds another evaluation of this run. To replace it, remove it first")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    write_entry(folder, entry)
    return place


def _check(stage: Path, root: Path, places: Sequence[str], registry: Registry) -> None:
    """Raise CheckFailed where `leaderboard check` would refuse one of these entries below `root`."""
    try:
        made = [read_entry(stage, stage / place, registry) for place in places]
    except CheckFailed as error:
        raise CheckFailed(str(error).replace(str(stage), str(root))) from None
    others = [one for one in read_entries(root, registry)[0] if f"{RECORDS}/{one.folder}" not in places]
    for one, problem in twin_problems([*others, *made]):
        if f"{RECORDS}/{one.folder}" in places:
            raise CheckFailed(problem)


def _move(stage: Path, root: Path, places: Sequence[str]) -> None:
    """Move entries from `stage` to `root`, or leave `root` as it was."""
    with ExitStack() as undo:
        for place in places:
            target = root / place
            for parent in reversed([folder for folder in target.parents if not folder.exists()]):
                parent.mkdir()
                undo.callback(parent.rmdir)
            if target.exists():
                former = stage / "former" / place
                former.parent.mkdir(parents=True, exist_ok=True)
                target.rename(former)
                undo.callback(former.rename, target)
            (stage / place).rename(target)
            undo.callback(target.rename, stage / place)
        undo.pop_all()
