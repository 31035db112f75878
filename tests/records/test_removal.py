"""What is removed is gone whole or stays whole; links are not followed; leftovers of killed processes go."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robflat_bench.core import UsageError
from robflat_bench.records import removal
from robflat_bench.records.overview import prune
from robflat_bench.records.store import Busy, RunFolder, Store, write_atomically


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def failed(tmp_path) -> RunFolder:
    """A failed run with weights, in a store."""
    run = RunFolder(tmp_path / "store" / "tiny" / "at" / "seed-1-0123456789abcdef")
    run.checkpoints.mkdir(parents=True)
    for name in ("spec.json", "failed.json", "checkpoints/best.safetensors", "checkpoints/last.safetensors"):
        (run.path / name).write_text("{}")
    return run


def fresh(run: RunFolder) -> None:
    with run.locked():
        run.clear()


def pruned(run: RunFolder) -> None:
    """Raises what a row says."""
    for row in prune(Store(run.path.parents[2]), unfinished=False, weights=True, really=True):
        if row["error"]:
            raise UsageError(row["error"])


def deny(monkeypatch, name: str) -> None:
    """No folder of this name may be emptied, as for a user who does not own it."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and access(path, mode))


WAYS = pytest.mark.parametrize("way", [fresh, pruned])


@WAYS
def test_a_run_with_an_unwritable_folder_stays_whole(failed, monkeypatch, way):
    before = tree(failed.path)
    deny(monkeypatch, "checkpoints")
    with pytest.raises(UsageError, match=r"cannot remove .*checkpoints: .*not writable; nothing was removed"):
        way(failed)
    assert tree(failed.path) == before


@WAYS
@pytest.mark.parametrize("after", [0, 2])
def test_a_run_stays_whole_when_a_rename_fails(failed, monkeypatch, way, after):
    before, calls, rename = tree(failed.path), [], Path.rename

    def fails(path, target):
        if removal.TEMPORARY not in str(path):
            calls.append(path)
            if len(calls) > (after if way is fresh else 0):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UsageError, match="Read-only file system; nothing was removed"):
        way(failed)
    assert tree(failed.path) == before


@WAYS
def test_a_run_is_aside_before_the_first_file_is_deleted(failed, monkeypatch, way):
    """A process killed while it deletes leaves no half run, and the next one clears away what it left."""

    def killed(path, **_):
        assert Path(path).name.startswith(removal.TEMPORARY)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            way(failed)
    left = set(tree(failed.path)) if failed.path.exists() else set()
    assert all(name.startswith(removal.TEMPORARY) for name in left)
    store = failed.path.parents[2]
    assert any(path.name.startswith(removal.TEMPORARY) for path in store.rglob("*"))
    fresh(failed) if way is fresh else pruned(failed)
    assert not any(path.name.startswith(removal.TEMPORARY) for path in store.rglob("*"))


@WAYS
def test_a_link_inside_a_run_is_removed_and_its_target_stays(failed, tmp_path, way):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(failed.checkpoints, elsewhere)
    failed.checkpoints.symlink_to(elsewhere)
    before = tree(elsewhere)
    way(failed)
    assert tree(elsewhere) == before
    assert not failed.checkpoints.is_symlink()
    assert not failed.failed_file.exists()


@WAYS
def test_a_run_folder_that_is_a_link_is_refused_and_stays_whole(failed, tmp_path, way):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(failed.path, elsewhere)
    failed.path.symlink_to(elsewhere)
    before = tree(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        way(failed)
    assert failed.path.is_symlink()
    assert tree(elsewhere) == before


def test_weights_behind_a_link_are_refused(failed, tmp_path):
    failed.failed_file.rename(failed.record_file)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(failed.checkpoints, elsewhere)
    failed.checkpoints.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        pruned(failed)
    assert len(tree(elsewhere)) == 2


# ---------------------------------------------------------------------------------------------------------
# Leftovers
# ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from robflat_bench.records import store
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
run = store.RunFolder(Path(sys.argv[1]))
with run.locked():
    store.write_json(run.record_file, {})
"""


def test_files_of_a_killed_process_go_with_the_next_lease_and_not_before(tmp_path):
    run = RunFolder(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.path)], check=False)
    assert done.returncode < 0
    assert list(run.path.glob(".tmp-*"))
    run.checkpoints.mkdir()
    with run.locked():
        assert not list(run.path.glob(".tmp-*"))
        mine = run.checkpoints / ".tmp-of-a-live-process"
        mine.write_text("half")
        with pytest.raises(Busy), RunFolder(run.path).locked():
            pass
        assert mine.is_file()
    with run.locked():
        assert not mine.exists()


def test_only_old_temporary_files_go_where_no_lock_is_held(tmp_path):
    for name, age in ((".tmp-old", 90_000), (".tmp-young", 60), ("old", 90_000)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    removal.sweep(tmp_path, seconds=86_400)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-young", "old"]


# ---------------------------------------------------------------------------------------------------------
# A store that is read-only
# ---------------------------------------------------------------------------------------------------------


def test_finished_runs_and_evaluations_answer_from_a_read_only_store(command, finished_copy, tiny, monkeypatch):
    here = finished_copy
    run = ("run", "--method", "at", "--protocol", tiny, "--store", here.store, "--json")
    evaluate = ("evaluate", here.folder, "--protocol", tiny, "--attack", "fgsm", "--store", here.store, "--json")
    before = [command(*run).document, command(*evaluate).document]
    opened = os.open

    def read_only(path, flags, *rest, **names):
        """Locks and temporary files are made by it."""
        if here.store in Path(path).parents and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *rest, **names)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(UsageError, match="Read-only"):
        write_atomically(here.folder / "x", b"")
    assert [command(*run).document, command(*evaluate).document] == before
    assert "Read-only file system" in command(*run[:-1], "--fresh").err
