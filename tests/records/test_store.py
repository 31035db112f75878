"""The store: files are written whole or not at all, work is done once, one process per run, damage is noticed."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robflat_bench.core import CheckFailed, RunFailed, Spent, UsageError, clock
from robflat_bench.core.archives import arrays_bytes
from robflat_bench.numerics.weights import digest, load_weights, read_weights, write_weights
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import (
    RunFolder,
    Store,
    disk_errors,
    read_arrays,
    write_atomically,
    write_first,
    write_json,
)
from robflat_bench.training import checkpoint
from robflat_bench.training.checkpoint import States

# ---------------------------------------------------------------------------------------------------------
# Writing whole files
# ---------------------------------------------------------------------------------------------------------


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("links", [True, False])
def test_of_two_writes_that_may_not_replace_each_other_the_first_counts(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no links")))
    path = tmp_path / "a" / "file"
    assert write_first(path, b"one")
    assert not write_first(path, b"two")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    with pytest.raises(UsageError, match="cannot write"):
        write_first(path / "below", b"three")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_umask_says_who_may_read_a_file_of_the_store(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"one")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_every_file_of_a_finished_run_can_be_read_by_whoever_umask_admits(finished, tmp_path):
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    modes = {path.name: path.stat().st_mode for path in finished.store.rglob("*") if path.is_file()}
    assert {"record.json", "outcomes.npz", "best.safetensors", "history.jsonl"} <= modes.keys()
    assert [name for name, mode in modes.items() if mode != usual] == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [full_disk, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)])
def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, step, failure):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, step, failure)
    with pytest.raises((RunFailed, KeyboardInterrupt)):
        write_atomically(path, b"new and much longer")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_is_flushed_to_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *a, step=step, real=real: (order.append(step), real(*a))[1])
    write_atomically(tmp_path / "file", b"data")
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_fails_the_run_which_resumes(tmp_path, code):
    with pytest.raises(RunFailed) as caught, disk_errors(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 1
    assert os.strerror(code) in str(caught.value)
    assert "it resumes" in str(caught.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_an_unwritable_place_is_a_usage_error(tmp_path, code):
    with pytest.raises(UsageError) as caught, disk_errors(tmp_path / "file"):
        raise OSError(code, os.strerror(code))
    assert caught.value.exit_code == 2
    assert "--store DIR" in str(caught.value)


def test_a_place_below_a_file_is_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x", Path("/dev/null/x"), tmp_path / "file" / "deep" / "x"):
        with pytest.raises(UsageError, match="cannot write"):
            write_atomically(place, b"")
        with pytest.raises(UsageError, match="cannot write"), RunFolder(place).locked():
            pass


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------
# Arrays
# ---------------------------------------------------------------------------------------------------------

ARRAYS = {
    "best/test/pgd(steps=2)/error": np.array([True, False, True]),
    "loss": np.array([0.1, -0.0, 1e-300]),
    "images": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "seconds": np.array(1.5),
    "empty": np.zeros((0, 3), dtype=np.int64),
}


def test_arrays_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "arrays.npz"
    path.write_bytes(arrays_bytes(ARRAYS))
    found = read_arrays(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()


def test_bytes_depend_on_content_only(monkeypatch):
    before = arrays_bytes(ARRAYS)
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert arrays_bytes(dict(reversed(ARRAYS.items()))) == before
    assert arrays_bytes({**ARRAYS, "loss": np.array([0.1, 0.0, 1e-300])}) != before


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "objects.npz"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(path, x=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="damaged: object"):
        read_arrays(path)
    assert not (tmp_path / "exploded").exists()


def npz(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """An .npy file of that header and no data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip at all",
        npz(x=b""),
        npz(x=b"no array at all"),
        npz(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n")),
        npz(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9,)}\n")),
        npz(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}\n")),
        npz(x=header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999999,)}\n")),
        npz(x=header("{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,)}\n")),
        npz(x=header("{'descr': '<f8'}\n")),
        npz(x=header("(" * 5000)),
    ],
    ids=range(11),
)
def test_a_file_that_is_no_archive_of_arrays_is_refused(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_arrays(path)


def test_truncated_archives_are_damaged(tmp_path):
    path, whole = tmp_path / "short.npz", arrays_bytes(ARRAYS)
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            read_arrays(path)


@settings(max_examples=150)
@given(st.data())
def test_a_flipped_bit_never_changes_an_array(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    whole = bytearray(arrays_bytes(ARRAYS))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        found = read_arrays(path)
    except ValueError:
        return
    for name in set(found) & set(ARRAYS):  # the archive's directory has no checksum: a flip there may hide entries
        assert found[name].tobytes() == np.ascontiguousarray(ARRAYS[name]).tobytes()


# ---------------------------------------------------------------------------------------------------------
# The journal of finished work
# ---------------------------------------------------------------------------------------------------------


class Work:
    """Units that count how often they are computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"x": np.array([0.1, self.calls])}


def test_finished_units_are_not_done_again(tmp_path):
    work = Work()
    first = StoredJournal(tmp_path).unit("0", work)
    again = StoredJournal(tmp_path).unit("0", work)
    assert work.calls == 1
    assert again["x"].tobytes() == first["x"].tobytes()
    StoredJournal(tmp_path).unit("1", work)
    assert work.calls == 2


def test_a_damaged_unit_is_done_again(tmp_path):
    work = Work()
    StoredJournal(tmp_path).unit("0", work)
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b""):
        path.write_bytes(damaged)
        calls = work.calls
        found = StoredJournal(tmp_path).unit("0", work)
        assert work.calls == calls + 1
        assert found["x"][1] == work.calls
        assert StoredJournal(tmp_path).unit("0", work)["x"][1] == work.calls


def test_a_unit_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StoredJournal(tmp_path).unit("0", fail)
    assert StoredJournal(tmp_path).unit("0", Work())["x"][1] == 1


def test_sections_share_no_units(tmp_path):
    work, journal = Work(), StoredJournal(tmp_path)
    journal.unit("0", work)
    one, other = journal.section("a/b (c=1)"), journal.section("a/b (c=2)")
    one.unit("0", work)
    other.unit("0", work)
    one.section("0").unit("0", work)
    assert work.calls == 4
    StoredJournal(tmp_path).section("a/b (c=2)").unit("0", work)
    assert work.calls == 4


def test_a_units_seconds_count_once_in_its_journal_and_in_each_parent(tmp_path, monkeypatch):
    seconds = iter(range(0, 1000, 3))
    monkeypatch.setattr(clock, "now", lambda: next(seconds))
    seen = []
    journal = StoredJournal(tmp_path, lambda: seen.append(1))
    section = journal.section("a")
    section.unit("0", Work())
    section.unit("1", Work())
    journal.unit("2", Work())
    assert (section.spent, journal.spent) == (Spent(6), Spent(9))
    later = StoredJournal(tmp_path)
    later.section("a").unit("0", Work())
    later.section("a").unit("1", Work())
    assert later.spent == Spent(6)
    assert len(seen) == 3


# ---------------------------------------------------------------------------------------------------------
# One process per run
# ---------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from robflat_bench.records.store import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_run(tmp_path, child_environment):
    folder = RunFolder(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFailed) as caught, folder.locked():
            pass
        assert caught.value.exit_code == 1
        assert f"process {holder.pid} on " in str(caught.value)
        assert str(folder.path) in str(caught.value)
        assert json.loads((folder.path / "holder.json").read_text())["pid"] == holder.pid

        holder.kill()
        holder.wait()
        with folder.locked():  # a dead process holds nothing
            assert json.loads((folder.path / "holder.json").read_text())["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.communicate()
    with folder.locked():
        pass


def test_a_failure_releases_the_lease(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), folder.locked():
        raise KeyboardInterrupt
    with folder.locked():
        pass
    assert not (tmp_path / "holder.json").exists()


def test_starting_afresh_forgets_everything_but_the_lease(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked():
        write_json(tmp_path / "spec.json", {})
        write_atomically(folder.checkpoints / "state-1.safetensors", b"")
        folder.clear()
        assert {entry.name for entry in tmp_path.iterdir()} <= {"holder.json"}


# ---------------------------------------------------------------------------------------------------------
# Finding runs
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    for name in (
        "tiny/at/seed-1-0123456789abcdef",
        "tiny/trades/seed-2-0123aaaaaaaaaaaa",
        "b/at/seed-1-ffff000011112222",
    ):
        write_json(tmp_path / name / "spec.json", {})
    (tmp_path / "tiny" / "external" / "1234").mkdir(parents=True)
    return Store(tmp_path)


def test_runs_are_found_by_key_or_folder(store):
    found = store.find("0123456789abcdef")
    assert found.path.name == "seed-1-0123456789abcdef"
    assert store.find("01234").path == found.path
    assert store.find("f").path.name == "seed-1-ffff000011112222"
    assert store.find(str(found.path)).path == found.path
    assert len(store.runs()) == 3


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("0123", "matches 2 runs"),
        ("", "matches 3 runs"),
        ("abc", "is no run"),
        ("1-0123456789abcdef", "is no run"),
        ("seed-1", "is no run"),
        ("*", "is no run"),
    ],
)
def test_a_name_of_no_run_or_of_several_is_refused(store, name, says):
    with pytest.raises(UsageError, match=says) as caught:
        store.find(name)
    assert "results ls" in str(caught.value)


def test_an_empty_store_has_no_runs(tmp_path):
    assert Store(tmp_path / "none").runs() == []
    with pytest.raises(UsageError, match="is no run"):
        Store(tmp_path / "none").find("abc")


# ---------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------

TENSORS = {
    "model.weight": torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    ),
    "model.tiny": torch.tensor([1e-45, -0.0, float("inf")]),
    "model.num_batches_tracked": torch.tensor(7),
    "best.index": torch.arange(5),
    "optimizer.0.momentum_buffer": torch.tensor(0.1, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}
STATE = {"epoch": 3, "loss_sum": 0.1 + 0.2, "best": None, "history": [{"x": 1e-300}]}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    states = States(tmp_path)
    assert states.latest() is None
    states.write(12, TENSORS, STATE)
    tensors, state = states.latest()
    assert_same(tensors, TENSORS)
    assert state == STATE


def test_the_newest_states_are_kept(tmp_path):
    states = States(tmp_path)
    for step in (5, 900, 1_000_000_000, 20):
        states.write(step, TENSORS, {"step": step})
    assert checkpoint.KEPT_STATES == 2
    assert len(list(tmp_path.iterdir())) == 2


def damages(whole: bytes):
    """(what, content) of files that are not what was written."""
    yield "empty", b""
    yield "half", whole[: len(whole) // 2]
    yield "one byte short", whole[:-1]
    yield "one byte more", whole + b"\0"
    length = struct.unpack("<Q", whole[:8])[0]
    for name, position in {
        "length": 0,
        "tensor": 8 + length + 1,
        "last byte": len(whole) - 1,
        "state": whole.index(b"epoch"),
        "state digit": whole.index(b'\\"epoch\\": ') + len(b'\\"epoch\\": '),
        "digest": whole.index(b'"digest":"') + 12,
    }.items():
        flipped = bytearray(whole)
        flipped[position] ^= 1
        yield name, bytes(flipped)
    yield "another digest", whole.replace(b'"digest":"', b'"digesu":"')


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path):
    states = States(tmp_path)
    states.write(1, TENSORS, STATE | {"epoch": 1})
    states.write(2, TENSORS, STATE | {"epoch": 2})
    first, second = sorted(tmp_path.iterdir())
    whole = second.read_bytes()
    for what, content in damages(whole):
        second.write_bytes(content)
        tensors, state = states.latest()
        assert state["epoch"] == 1, what
        assert_same(tensors, TENSORS)
    second.write_bytes(whole)
    assert states.latest()[1]["epoch"] == 2
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:-1])
    assert states.latest() is None


def test_weights_come_back_and_carry_their_digest(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, TENSORS)
    assert_same(read_weights(path), TENSORS)
    assert digest(read_weights(path)) == digest(TENSORS)
    moved = TENSORS | {"model.tiny": TENSORS["model.tiny"].nextafter(torch.tensor(0.0))}
    assert digest(moved) != digest(TENSORS)
    assert digest({"a": torch.zeros(2)}) != digest({"b": torch.zeros(2)})
    assert digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(1, 2)})
    assert digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(2, dtype=torch.int32)})


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, TENSORS)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    for content in (b"", whole[:100], whole[:-1], bytes(flipped), b"PK\x03\x04 a pickle, perhaps"):
        path.write_bytes(content)
        with pytest.raises(CheckFailed) as caught:
            read_weights(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UsageError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")


def test_weights_that_do_not_fit_name_the_tensor():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    whole = dict(model.state_dict())
    load_weights(model, {name: tensor + 1 for name, tensor in whole.items()}, "w")
    for other, named in (
        ({**whole, "1.weight": torch.zeros(2, 5)}, r"'1.weight' is \(2, 5\) there and \(2, 4\) here"),
        ({name: whole[name] for name in whole if name != "0.bias"}, r"1 of the network's 4 are not in it \('0.bias'\)"),
        ({**whole, "2.bias": torch.zeros(1)}, r"1 of its 5 tensors are not in the network \('2.bias'\)"),
    ):
        before = digest(model.state_dict())
        with pytest.raises(UsageError, match=named):
            load_weights(model, other, "w")
        assert digest(model.state_dict()) == before
