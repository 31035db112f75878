"""The kit as pytest cases: one for each check of each component, a check that could not run skipped with its reason.

pytest is imported when a test module asks for it, so that the kit itself does without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robflat_bench.core import Kind, UsageError
from robflat_bench.registry.plugins import normalized
from robflat_bench.registry.registry import KINDS, Registry, discover
from robflat_bench.testing.runner import Case, cases
from robflat_bench.testing.world import Skipped


@dataclass(frozen=True)
class Test:
    """A case whose skipping is pytest's."""

    __test__ = False  # for pytest: this is no test class
    case: Case

    def __str__(self) -> str:
        return str(self.case)

    def __call__(self) -> None:
        import pytest

        try:
            self.case()
        except Skipped as skip:
            pytest.skip(str(skip))


def parametrize_checks(*wanted: str) -> Callable[[Any], Any]:
    """Parametrizes a test with `check`, over every check of every component that is wanted:

    a distribution ("my-package"), a one-file plugin ("my_plugin.py") or one component ("method:my-at"). UsageError
    where that names none."""
    import pytest

    files = tuple(Path(text) for text in wanted if text.endswith(".py"))
    registry = discover(files)
    found = [case for text in wanted for kind, name in _chosen(registry, text) for case in cases(registry, kind, name)]
    return pytest.mark.parametrize("check", [Test(case) for case in found], ids=str)


def _chosen(registry: Registry, text: str) -> list[tuple[Kind, str]]:
    kind, _, name = text.partition(":")
    offers = [offer for kind in KINDS for offer in registry.offers(kind)]
    if text.endswith(".py"):
        chosen = [offer for offer in offers if offer.provider.distribution == Path(text).name]
    elif name:
        chosen = [offer for offer in offers if offer.info.kind == kind and offer.info.name == name]
    else:
        chosen = [offer for offer in offers if offer.provider.distribution == normalized(text)]
    if not chosen:
        broken = "".join(f"; {plugin}" for plugin in registry.plugins.broken)
        raise UsageError(f"no plugin or component '{text}' is installed and enabled{broken}")
    return [(offer.info.kind, offer.info.name) for offer in chosen]
