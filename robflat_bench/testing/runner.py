"""The checks of each kind, and running them. A check that could not run is skipped with its reason, never passed."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from robflat_bench.core import Kind, PluginError, UsageError
from robflat_bench.registry.components import Component, validate
from robflat_bench.registry.registry import Registry
from robflat_bench.testing import attacks, backbones, common, datasets, launchers, measures, trained
from robflat_bench.testing.world import Check, Skipped
from robflat_bench.training.composition import WrongShape

CHECKS: dict[Kind, tuple[Check, ...]] = {
    "method": (*common.CHECKS, *trained.METHOD),
    "modifier": (*common.CHECKS, *trained.MODIFIER),
    "attack": (*common.CHECKS, *attacks.CHECKS),
    "measure": (*common.CHECKS, *measures.CHECKS),
    "backbone": (*common.CHECKS, *backbones.CHECKS),
    "dataset": (*common.CHECKS, *datasets.CHECKS),
    "launcher": (*common.CHECKS, *launchers.CHECKS),
}


@dataclass(frozen=True)
class CheckResult:
    """What one check found on one component; reason: why it failed or was skipped, or what it exempts."""

    component: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One check of one component, with its example parameters."""

    registry: Registry
    kind: Kind
    name: str
    check: Check

    @property
    def component(self) -> str:
        return f"{self.kind}:{self.name}"

    @property
    def promise(self) -> str:
        """What the check is about, in one sentence."""
        return " ".join((self.check.__doc__ or "").split())

    def __str__(self) -> str:
        return f"{self.component}-{self.check.__name__}"

    def __call__(self) -> str | None:
        """Run the check: its note, Skipped, or what is wrong as an exception."""
        offer = self.registry.get(self.kind, self.name)
        try:
            params = validate(offer.info.params, dict(offer.info.example), f"{self.kind} {self.name}")
        except UsageError as error:
            raise error if self.check is common.check_example else Skipped(f"no example to try: {error}") from None
        try:
            offer.load()
        except PluginError as error:
            raise error if self.check is common.check_factory else Skipped(str(error).splitlines()[0]) from None
        return self.check(Component(offer, params), self.registry)

    def run(self) -> CheckResult:
        """What came of it; whatever a component raises is a finding."""
        try:
            note = self()
        except Skipped as skip:
            return CheckResult(self.component, self.check.__name__, "skipped", str(skip))
        except WrongShape as error:  # which a check of its own finds; nothing can be trained with it
            return CheckResult(self.component, self.check.__name__, "skipped", f"cannot be trained: {error}")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}{_place(error)}"
            return CheckResult(self.component, self.check.__name__, "failed", reason)
        return CheckResult(self.component, self.check.__name__, "passed", note or "")


def _place(error: Exception) -> str:
    """` (my_at.py:12)`: the last line of the component's own that led there; nothing where that is ours."""
    ours = (Path(__file__).parents[1], Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(place) for place in ours):
            return f" ({path.name}:{frame.lineno})"
    return ""


def cases(registry: Registry, kind: Kind, name: str) -> list[Case]:
    """Every check of the component's kind; an unknown name, or one offered twice, is an error."""
    registry.get(kind, name)
    return [Case(registry, kind, name, check) for check in CHECKS[kind]]


def run_checks(registry: Registry, kind: Kind, name: str) -> list[CheckResult]:
    """Every check on the component with its example parameters."""
    return [case.run() for case in cases(registry, kind, name)]
