"""`pytest --pyargs robflat_bench.testing`: the kit over every component of the installed plugins; of the built-in ones
where no plugin is installed.

`ROBFLAT_BENCH_CHECK=my-package,method:my-at,my_plugin.py` chooses others: distributions (`robflat-bench`: the
built-in components), single components, or files. `ROBFLAT_BENCH_PLUGINS` and `ROBFLAT_BENCH_DISABLE_PLUGINS` hold as
anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from robflat_bench.registry.plugins import load_plugins
from robflat_bench.registry.registry import discover
from robflat_bench.testing.parametrize import parametrize_checks


def _wanted() -> list[str]:
    if chosen := os.environ.get("ROBFLAT_BENCH_CHECK"):
        return [text.strip() for text in chosen.split(",")]
    offering = {offer.provider.distribution for offer in discover().offers()}
    return sorted(offering - {"robflat-bench"}) or ["robflat-bench"]


@parametrize_checks(*_wanted())
def test_component(check: Callable[[], None]) -> None:
    check()


def test_no_plugin_is_broken() -> None:
    assert not load_plugins().broken
