"""The cores and the memory that a process may use."""

from __future__ import annotations

import os

import pytest

from robflat_bench.numerics import capacity


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "_GROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6), (None, 6)],
)
def test_cores_are_those_of_the_affinity_within_the_quota_of_the_container(group, monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    if quota:
        (group / "cpu.max").write_text(quota + "\n")
    assert capacity.cores() == expected


@pytest.mark.skipif(not os.path.exists("/proc/meminfo"), reason="Linux says how much memory is free")
def test_free_memory_is_that_of_the_machine_or_of_the_container(group):
    machine = capacity.free_memory_bytes()
    assert machine > 2**20
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert capacity.free_memory_bytes() > 2**20
    (group / "memory.max").write_text("5000\n")
    assert capacity.free_memory_bytes() == 4000
