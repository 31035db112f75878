"""Base of every component's parameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Params(BaseModel):
    """Base of every component's parameters: frozen, no unknown names, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def parse_fraction(value: Any) -> Any:
    """'8/255' -> 0.0313...; everything else is left to pydantic."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Number = Annotated[float, BeforeValidator(parse_fraction)]
"""A float that may be written as a fraction: 0.03 or "8/255"."""

BallShape = Literal["layer", "filter", "element", "global"]
"""The groups of weights whose norm a radius is relative to; see `numerics.weight_space`."""
BallNorm = Literal["l2", "linf"]
