"""One process at a time works in a run's folder, on this machine and where machines share a store.

A process of another machine is one that names another kernel in its lease. Where this may be done, `unshare` gives it a
host name and process numbers of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import promised

from robflat_bench.records import lease
from robflat_bench.records.lease import Busy, Lost
from robflat_bench.records.store import RunFolder, write_json

BEAT, SILENT, LOOK = 0.1, 2.0, 0.05

# A module that stands for another machine's package: `python -c "import elsewhere; ..."`, or `--plugin elsewhere.py`.
ELSEWHERE = f"""
import os, socket
from robflat_bench.records import holders, lease
lease.BEAT_SECONDS, lease.SILENT_SECONDS, lease.LOOK_SECONDS = {BEAT}, {SILENT}, {LOOK}
if "NODE" in os.environ:
    holders.machine = socket.gethostname = lambda: os.environ["NODE"]
"""

HOLDS = """
import sys, time
from pathlib import Path
import elsewhere
from robflat_bench.records.store import RunFolder, write_json
folder = RunFolder(Path(sys.argv[1]))
with folder.locked():
    print("held", flush=True)
    for number in range(10**9):
        write_json(folder.path / "work" / "units.json", number)
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("BEAT_SECONDS", BEAT), ("SILENT_SECONDS", SILENT), ("LOOK_SECONDS", LOOK)):
        monkeypatch.setattr(lease, name, value)
    monkeypatch.setattr(lease, "_watched", {})


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "store" / "run")


@pytest.fixture
def start(tmp_path, child_environment):
    """`start(program, *arguments, node=...)`: a process of this machine, or of one that is called `node`."""
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    begun: list[subprocess.Popen] = []

    def process(*words: object, node: str = "", first: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [*first, sys.executable, *map(str, words)]
        environment = child_environment(tmp_path) | ({"NODE": node} if node else {})
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        begun.append(subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **streams))
        return begun[-1]

    yield process
    for one in begun:
        one.kill()
        one.communicate()


@pytest.fixture
def holder(start, folder):
    """`holder(node=...)`: a process that holds the folder, and writes there all the time."""

    def process(**where) -> subprocess.Popen:
        begun = start("-c", HOLDS, folder.path, **where)
        assert begun.stdout.readline() == "held\n", begun.stderr.read()
        return begun

    return process


def stop(process: subprocess.Popen) -> None:
    """Stop all its threads: a beat on its way would show life."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def files(folder: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lease_of_a_killed_process_of_this_machine_is_taken_at_once(folder, holder, reaped):
    killed = holder()
    with pytest.raises(Busy, match=f"process {killed.pid} on "), folder.locked():
        pass
    killed.kill()
    if reaped:
        killed.wait()
    else:
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    with folder.locked():
        assert time.monotonic() - began < SILENT


def test_a_stopped_process_of_this_machine_keeps_its_lease(folder, holder):
    stopped = holder()
    stop(stopped)
    time.sleep(SILENT + 5 * BEAT)
    with pytest.raises(Busy), folder.locked(told=lambda line: pytest.fail(line)):
        pass


def test_a_process_that_has_the_number_of_a_dead_one_does_not_hold_its_lease(folder):
    with folder.locked():
        document = json.loads((folder.path / lease.NAME).read_text())
    write_json(folder.path / lease.NAME, document | {"token": "another"})
    with pytest.raises(Busy), folder.locked():
        pass
    write_json(folder.path / lease.NAME, document | {"started": "1"})
    with folder.locked():
        pass


# ---------------------------------------------------------------------------------------------------------
# Other machines
# ---------------------------------------------------------------------------------------------------------


def test_a_holder_elsewhere_is_named_at_once_or_as_soon_as_it_is_seen_alive(folder, holder):
    alive, said = holder(node="node7"), []
    with pytest.raises(Busy, match=f"process {alive.pid} on 'node7' is working on this run"), folder.locked():
        pass
    with pytest.raises(Busy, match="on 'node7' is working on this run"), folder.locked(told=said.append):
        pass
    assert said == [f"process {alive.pid} on 'node7' holds this run; watching for up to 2 s whether it is alive"]


@pytest.mark.parametrize("clock", [0, -(10**6), 10**6])
def test_the_lease_of_a_killed_process_elsewhere_is_taken_after_a_silence_whatever_the_clocks_say(
    folder, holder, clock
):
    killed = holder(node="node7")
    killed.kill()
    killed.wait()
    touched = time.time() + clock
    os.utime(folder.path / lease.NAME, (touched, touched))
    with pytest.raises(Busy), folder.locked():
        pass
    began = time.monotonic()
    with folder.locked(told=lambda line: None):
        assert SILENT / 2 < time.monotonic() - began < 10 * SILENT
        assert json.loads((folder.path / lease.NAME).read_text())["pid"] == os.getpid()


def test_looks_now_and_then_find_a_silence_too(folder, holder):
    holder(node="node7").kill()
    for _ in range(100):
        with contextlib.suppress(Busy), folder.locked():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the lease was never taken")


def test_a_damaged_lease_is_watched(folder):
    folder.path.mkdir(parents=True)
    for damaged in (b"", b"{", b"[1]", b"[" * 4000, b'{"pid": 1e999}', b"\xff"):
        (folder.path / lease.NAME).write_bytes(damaged)
        with pytest.raises(Busy, match="another process is working on this run"), folder.locked():
            pass
    with folder.locked(told=lambda line: None):
        pass


def test_a_process_that_lost_its_lease_leaves_and_writes_nothing_more(folder, holder):
    stopped = holder(node="node7")
    time.sleep(0.2)
    stop(stopped)
    with folder.locked(told=lambda line: None):
        before = files(folder)
        stopped.send_signal(signal.SIGCONT)
        _, err = stopped.communicate(timeout=60)
        assert stopped.returncode == 1
        assert f"Lost: process {os.getpid()} on " in err
        assert "took over this run" in err
        assert files(folder) == before
        write_json(folder.path / "spec.json", {})
    assert not (folder.path / lease.NAME).exists()


def test_a_lease_that_was_touched_or_replaced_meanwhile_is_put_back(folder):
    path = folder.path / lease.NAME
    folder.path.mkdir(parents=True)
    path.write_text("dead")
    seen = lease.look(path)
    path.write_text("new")
    lease._remove(path, seen)
    assert path.read_text() == "new"
    seen = lease.look(path)
    os.utime(path)
    lease._remove(path, seen)
    assert list(folder.path.iterdir()) == [path]
    lease._remove(path, lease.look(path))
    assert list(folder.path.iterdir()) == []


def test_a_lease_that_is_aside_for_a_moment_is_not_lost(folder):
    with folder.locked():
        path = folder.path / lease.NAME
        aside = path.rename(folder.path / "aside")
        with pytest.raises(Lost):
            write_json(folder.path / "spec.json", {})
        assert not (folder.path / "spec.json").exists()
        aside.rename(path)
        write_json(folder.path / "spec.json", {})
    assert not path.exists()


CONTENDS = """
import os, sys, time
from pathlib import Path
import elsewhere
from robflat_bench.records.store import RunFolder
folder = RunFolder(Path(sys.argv[1]))
for _ in range(10):
    with folder.locked(wait=True):
        inside = os.open(folder.path / "inside", os.O_CREAT | os.O_EXCL)
        time.sleep(0.01)
        os.close(inside)
        (folder.path / "inside").unlink()
"""


def test_of_many_processes_that_find_a_dead_lease_one_works_at_a_time(folder, holder, start):
    holder(node="dead").kill()
    began = [start("-c", CONTENDS, folder.path, node=f"node{number}") for number in range(4)]
    for process in began:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert not (folder.path / lease.NAME).exists()


UNSHARE = ("unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this process may not give another a host name of its own",
)
def test_two_processes_under_two_host_names(folder, holder):
    other = holder(first=(*UNSHARE, "sh", "-c", 'hostname node7; exec "$@"', "sh"))
    with (
        pytest.raises(Busy, match="process 1 on 'node7' is working"),
        folder.locked(told=lambda line: None),
    ):
        pass
    other.kill()
    other.wait()
    with folder.locked(told=lambda line: None):
        pass


# ---------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------


def test_the_twin_of_a_requeued_run_leaves_and_the_record_is_that_of_an_undisturbed_run(
    command, tiny, folder, start, tmp_path
):
    options = ["run", "--method", "at", "--protocol", tiny, "--set", "recipe.epochs=40", "--json"]
    often = tmp_path / "often.py"
    often.write_text("import elsewhere\nfrom robflat_bench.training import loop\nloop.SAVE_EVERY_SECONDS = 0.05\n")
    here = ["-m", "robflat_bench", *options, "--store", tmp_path / "store", "--plugin", often]
    twin = start(*here, node="node1")
    for line in twin.stderr:
        if "epoch 3/" in line:
            break
    stop(twin)
    second = start(*here, node="node2")
    out, err = second.communicate(timeout=240)
    assert second.returncode == 0, err
    assert f"robflat-bench: process {twin.pid} on 'node1' holds this run; watching" in err
    (run,) = map(RunFolder, Path(tmp_path / "store").glob("*/*/*"))
    before = files(run)
    twin.send_signal(signal.SIGCONT)
    _, err = twin.communicate(timeout=60)
    assert twin.returncode == 1
    assert "took over this run" in err.splitlines()[-1]
    assert files(run) == before
    assert not run.failed_file.exists()
    undisturbed = command(*options, "--store", tmp_path / "undisturbed").document
    assert promised(json.loads(out)) == promised(undisturbed)
