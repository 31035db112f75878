"""Training methods: how one batch becomes a loss. Each is one file."""

from __future__ import annotations

from robflat_bench.core import MethodInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_methods() -> list[MethodInfo]:
    """The built-in methods."""
    return catalogue_rows(__name__)
