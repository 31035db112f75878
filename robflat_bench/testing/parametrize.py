"""The kit as pytest cases: one for each check of each component; a check that could not run is skipped with its reason.

pytest is imported only when a test module calls `parametrize_checks`: the kit itself needs no pytest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robflat_bench.core import UsageError
from robflat_bench.registry.plugins import normalized
from robflat_bench.registry.registry import Offer, Registry, discover
from robflat_bench.testing.runner import cases


def parametrize_checks(*wanted: str) -> Callable[[Any], Any]:
    """Parametrize a test with `check`, over every check of the wanted components.

    Parameters
    ----------
    *wanted : str
        Distributions ("my-package"), one-file plugins ("my_plugin.py") and components ("method:my-at").

    Returns
    -------
    decorator
        The test calls its argument `check`, without arguments.

    Raises
    ------
    UsageError
        No installed and enabled plugin or component has that name.
    """
    import pytest

    registry = discover(tuple(Path(text) for text in wanted if text.endswith(".py")))
    found = [
        case
        for text in wanted
        for offer in _chosen(registry, text)
        for case in cases(registry, offer.info.kind, offer.info.name)
    ]
    return pytest.mark.parametrize("check", found, ids=str)


def _chosen(registry: Registry, text: str) -> list[Offer]:
    distribution = Path(text).name if text.endswith(".py") else normalized(text)
    chosen = [
        offer
        for offer in registry.offers()
        if text == f"{offer.info.kind}:{offer.info.name}" or offer.provider.distribution == distribution
    ]
    if not chosen:
        broken = "".join(f"; {plugin}" for plugin in registry.plugins.broken)
        raise UsageError(f"no plugin or component '{text}' is installed and enabled{broken}")
    return chosen
