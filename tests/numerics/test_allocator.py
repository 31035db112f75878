"""Setting the C library's allocator changes nothing where the library is another."""

from __future__ import annotations

import ctypes
import platform

import pytest

from robflat_bench.numerics import allocator
from robflat_bench.numerics.allocator import keep_freed_memory


@pytest.fixture(autouse=True)
def fresh():
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(monkeypatch, error):
    def refuse(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_accepts_both_settings():
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(allocator.TRIM_THRESHOLD, allocator.KEPT) == 1
    assert mallopt(allocator.MMAP_THRESHOLD, allocator.LARGEST) == 1
