"""Modifiers: changes that can be added to any method. Each is one file."""

from __future__ import annotations

from robflat_bench.core import ModifierInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """The built-in modifiers."""
    return catalogue_rows(__name__)
