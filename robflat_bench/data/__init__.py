"""Datasets, one file each; `splits` cuts them as a protocol says."""

from __future__ import annotations

from robflat_bench.core import DatasetInfo, hookimpl, rows


@hookimpl
def robflat_bench_datasets() -> list[DatasetInfo]:
    """The built-in datasets."""
    return rows(__name__)
