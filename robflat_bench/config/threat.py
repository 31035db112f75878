"""The threat model of a protocol, and the components that are defined under its norm."""

from __future__ import annotations

from typing import get_args

from pydantic import Field, ValidationInfo, field_validator

from robflat_bench.core import (
    ENGINE_NORMS,
    AttackInfo,
    MeasureInfo,
    MethodInfo,
    ModifierInfo,
    Number,
    Strict,
    ThreatNorm,
    UsageError,
)
from robflat_bench.registry.components import Component

MOST = 1e6
"""Largest radius in norms that add pixels up."""
WRITTEN: dict[ThreatNorm, str] = {"linf": "l-inf", "l2": "l2", "l1": "l1"}
"""Norms as text names them."""
EVERY_NORM: tuple[ThreatNorm, ...] = get_args(ThreatNorm)


class ThreatModel(Strict):
    """The adversary may move an image x in [0,1] to any x' in [0,1] with ||x' - x||_norm <= epsilon."""

    norm: ThreatNorm = Field(default="linf", description="The norm: linf, l2 or l1. Training needs linf or l2.")
    epsilon: Number = Field(
        ge=0, le=MOST, description="Radius of the ball, in pixels of [0,1]: 8/255, not 8. Under linf at most 1."
    )

    @field_validator("epsilon")
    @classmethod
    def _is_in_pixels(cls, epsilon: float, info: ValidationInfo) -> float:
        return in_pixels(epsilon, info.data.get("norm", "linf"))


def in_pixels(size: float, norm: ThreatNorm, name: str = "") -> float:
    """A radius or a step; ValueError where it exceeds the whole range of pixels."""
    if norm == "linf" and size > 1:
        raise ValueError(f"{name and f'{name} = {size!r}: '}pixels are in [0,1], so at most 1 under linf: 8/255, not 8")
    return size


def norms_of(component: Component) -> tuple[ThreatNorm, ...]:
    """The norms of the threat under which a component is defined.

    A measure that reads no examples meets no threat. A method without an attack of its own takes the training attack,
    which climbs in the engine's norms.
    """
    info, own = component.info, component.params.norms
    if isinstance(info, AttackInfo):
        return own
    if isinstance(info, MeasureInfo):
        return own if info.couplings else EVERY_NORM
    if isinstance(info, MethodInfo):
        return own if "attack" in info.claims else ENGINE_NORMS
    if isinstance(info, ModifierInfo):
        return own if "attack" in info.joints else EVERY_NORM
    return EVERY_NORM


def check_norm(component: Component, norm: ThreatNorm) -> None:
    """UsageError where a component is not defined under the norm of a threat, before it computes in another one."""
    defined = norms_of(component)
    if norm not in defined:
        kind, known = component.info.kind, ", ".join(defined)
        raise UsageError(
            f"{kind} {component.brief} is defined under {known}, but the threat's norm is {norm}; choose another "
            f"{kind} (robflat-bench list {kind}s), or a protocol with fixed.threat.norm = {defined[0]}"
        )
