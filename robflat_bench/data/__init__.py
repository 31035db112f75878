"""Datasets, one file each. `splits` selects the images that a protocol names."""

from __future__ import annotations

from robflat_bench.core import DatasetInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_datasets() -> list[DatasetInfo]:
    """The built-in datasets."""
    return catalogue_rows(__name__)
