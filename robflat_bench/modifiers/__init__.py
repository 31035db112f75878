"""Modifiers: what can be added to any method. One file each."""

from __future__ import annotations

from robflat_bench.core import ModifierInfo, hookimpl, rows


@hookimpl
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """The built-in modifiers."""
    return rows(__name__)
