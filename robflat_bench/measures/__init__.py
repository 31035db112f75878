"""Measures in families, one file each; `oracle` reads losses at moved weights."""

from __future__ import annotations

from robflat_bench.core.catalogue import rows
from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import MeasureInfo


@hookimpl
def robflat_bench_measures() -> list[MeasureInfo]:
    """The built-in measures."""
    return rows(__name__)
