"""Attacks, one file each. `engine` holds the ascent that attacks and training share."""

from __future__ import annotations

from robflat_bench.core import AttackInfo, hookimpl, rows


@hookimpl
def robflat_bench_attacks() -> list[AttackInfo]:
    """The built-in attacks."""
    return rows(__name__)
