"""Measures in families, one file each; `oracle` reads losses at moved weights."""

from __future__ import annotations

from robflat_bench.core import MeasureInfo, hookimpl, rows


@hookimpl
def robflat_bench_measures() -> list[MeasureInfo]:
    """The built-in measures."""
    return rows(__name__)
