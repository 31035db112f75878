"""Processes of this machine: whether one still runs, and whether it may be ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robflat_bench.core import Job, Params, Resources, processes
from robflat_bench.launchers.local import Local


def _another_users(monkeypatch, start: str) -> None:
    """Every process belongs to another user, with this start ("": it is hidden)."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(processes, "started", lambda pid: start)


def test_a_process_runs_while_its_number_has_its_start():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        since = processes.started(child.pid)
        assert processes.runs(child.pid, since)
        assert processes.may_signal(child.pid)
        assert not processes.runs(child.pid, f"{since}0"), "another process has this number"
        assert not processes.runs(child.pid, "")
    assert not processes.runs(child.pid, since)
    assert not processes.runs(child.pid, "")
    assert not processes.runs(10**30, since)


@pytest.mark.parametrize(("start", "runs"), [("12", True), ("", True), ("13", False)])
def test_of_another_users_process_the_number_counts_where_its_start_is_hidden(monkeypatch, start, runs):
    _another_users(monkeypatch, start)
    assert processes.runs(1, "12") == runs


@pytest.mark.parametrize("start", ["12", ""])
def test_no_launcher_adopts_a_process_that_it_may_not_end(monkeypatch, tmp_path, start):
    _another_users(monkeypatch, start)
    job, launcher = Job("run", ("true",), tmp_path / "log.txt"), Local(Params(), Resources())
    assert not launcher.adopt(job, f"1 0 12 {os.uname().nodename}")
    monkeypatch.undo()
    launcher.interrupt()
