"""Attacks, one file each. `engine` holds the ascent that attacks and training share."""

from __future__ import annotations

from robflat_bench.core import AttackInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_attacks() -> list[AttackInfo]:
    """The built-in attacks."""
    return catalogue_rows(__name__)
