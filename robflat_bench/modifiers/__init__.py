"""Modifiers: what can be added to any method. One file each."""

from __future__ import annotations

from robflat_bench.core.catalogue import rows
from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import ModifierInfo


@hookimpl
def robflat_bench_modifiers() -> list[ModifierInfo]:
    """The built-in modifiers."""
    return rows(__name__)
