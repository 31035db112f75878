"""Freed memory stays mapped where the C library is glibc, and nothing fails elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from robflat_bench.numerics.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from robflat_bench.numerics.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for step in range(25):
    if step == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1 << 20) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_blocks_of_some_megabytes_are_mapped_once():
    faults = {}
    for mode in ("usual", "kept"):
        done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        faults[mode] = int(done.stdout)
    assert faults["kept"] < faults["usual"] / 10


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def refuse(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory.cache_clear()
    keep_freed_memory()
    keep_freed_memory.cache_clear()
