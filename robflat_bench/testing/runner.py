"""The checks of each kind, and running them. A check that could not run is skipped with its reason, never passed."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch

from robflat_bench.core import Interrupted, Kind, PluginError, UsageError, interruptible, one_line
from robflat_bench.registry.components import Component
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import validate
from robflat_bench.testing import (
    attacks,
    backbones,
    datasets,
    evaluated,
    every_kind,
    launchers,
    measures,
    methods,
    methods_and_modifiers,
    modifiers,
)
from robflat_bench.testing.expectations import Check, CheckFailure, Skipped
from robflat_bench.training.composition import WrongShape

_MODULES: dict[Kind, tuple[ModuleType, ...]] = {
    "method": (every_kind, methods, methods_and_modifiers),
    "modifier": (every_kind, modifiers, methods_and_modifiers),
    "attack": (every_kind, evaluated, attacks),
    "measure": (every_kind, evaluated, measures),
    "backbone": (every_kind, backbones),
    "dataset": (every_kind, datasets),
    "launcher": (every_kind, launchers),
}
CHECKS: dict[Kind, tuple[Check, ...]] = {
    kind: tuple(value for module in modules for name, value in vars(module).items() if name.startswith("check_"))
    for kind, modules in _MODULES.items()
}
"""The checks of a kind: everything that its modules call `check_...`, in their order."""


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Parameters
    ----------
    component : str
        `kind:name`, or the name of a plugin.
    check : str
        Name of the check's function.
    outcome : {"passed", "failed", "skipped"}
        How the check ended.
    reason : str
        Why it failed or was skipped; for a passed check, its exemptions.
    """

    component: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


def result_of(component: str, check: str, run: Callable[[], str | None]) -> CheckResult:
    """Run a check; everything that it raises is a finding."""
    try:
        with interruptible():
            note = run()
    except Skipped as skip:
        return CheckResult(component, check, "skipped", str(skip))
    except WrongShape as error:  # a check of its own reports it; without a loss of each example nothing can be trained
        return CheckResult(component, check, "skipped", f"cannot be trained: {error}")
    except CheckFailure as failure:
        return CheckResult(component, check, "failed", f"{failure}{_place(failure)}")
    except Interrupted:
        raise
    except BaseException as error:
        return CheckResult(component, check, "failed", f"{one_line(error)}{_place(error)}")
    return CheckResult(component, check, "passed", note or "")


def _place(error: BaseException) -> str:
    """` (my_at.py:12)`: the last line of the component's own code in the traceback, if there is one."""
    ours = (Path(__file__).parents[1], Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(place) for place in ours):
            return f" ({path.name}:{frame.lineno})"
    return ""


@dataclass(frozen=True)
class Case:
    """One check of one component, which is tried with its example parameters."""

    registry: Registry
    kind: Kind
    name: str
    check: Check

    @property
    def component(self) -> str:
        """`kind:name`."""
        return f"{self.kind}:{self.name}"

    @property
    def promise(self) -> str:
        """What the check promises, in one sentence."""
        return " ".join((self.check.__doc__ or "").split())

    def __str__(self) -> str:
        return f"{self.component}-{self.check.__name__}"

    def __call__(self) -> str | None:
        """Run the check and return its note; raises Skipped, or whatever is wrong with the component."""
        offer = self.registry.get(self.kind, self.name)
        try:
            params = validate(offer.info.params, dict(offer.info.example), f"{self.kind} {self.name}")
        except UsageError as error:
            raise error if self.check is every_kind.check_example else Skipped(f"no example to try: {error}") from None
        try:
            offer.load()
        except PluginError as error:
            raise error if self.check is every_kind.check_factory else Skipped(str(error).splitlines()[0]) from None
        return self.check(Component(offer, params))

    def run(self) -> CheckResult:
        """Run the check and report its outcome."""
        return result_of(self.component, self.check.__name__, self)


def cases(registry: Registry, kind: Kind, name: str) -> list[Case]:
    """Every check of a component; UsageError or PluginError where the registry has not exactly one of that name."""
    registry.get(kind, name)
    return [Case(registry, kind, name, check) for check in CHECKS[kind]]


def run_checks(registry: Registry, kind: Kind, name: str) -> list[CheckResult]:
    """Run every check on a component, with its example parameters.

    Parameters
    ----------
    registry : Registry
        From `robflat_bench.registry.registry.discover`.
    kind, name : str
        For example "method", "trades".

    Returns
    -------
    list of CheckResult
        In the order of `CHECKS[kind]`.
    """
    return [case.run() for case in cases(registry, kind, name)]
