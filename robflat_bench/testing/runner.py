"""Runs the checks on a component. A check that could not run is skipped with its reason, never counted as passed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from robflat_bench.base import Kind
from robflat_bench.components import Component, validate
from robflat_bench.registry import Registry
from robflat_bench.testing import checks

CHECKS: tuple[Callable[[Component, Registry], None], ...] = (
    checks.check_description,
    checks.check_parameters,
    checks.check_contract,
    checks.check_leaves_no_trace,
    checks.check_same_inputs_same_result,
)


@dataclass(frozen=True)
class CheckResult:
    """What one check found on one component; reason: why it failed or was skipped."""

    component: str
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""


def run_checks(registry: Registry, kind: Kind, name: str) -> list[CheckResult]:
    """Every check on the component with its example parameters."""
    offer = registry.get(kind, name)
    component = Component(offer, validate(offer.info.params, dict(offer.info.example), f"{kind} {name}"))
    return [_run(check, component, registry) for check in CHECKS]


def _run(check: Callable[[Component, Registry], None], component: Component, registry: Registry) -> CheckResult:
    title = f"{component.info.kind}:{component.name}"
    try:
        check(component, registry)
    except checks.Skipped as skip:
        return CheckResult(title, check.__name__, "skipped", str(skip))
    except Exception as error:  # whatever a component raises is a finding
        return CheckResult(title, check.__name__, "failed", f"{type(error).__name__}: {error}")
    return CheckResult(title, check.__name__, "passed")
