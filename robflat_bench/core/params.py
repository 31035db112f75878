"""Base of every component's parameters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Params(BaseModel):
    """Base of every component's parameters: frozen, no unknown names, finite numbers.

    Declare each parameter with `Field(default=..., description="what it does, unit, range, source of the default")`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def parse_fraction(value: Any) -> Any:
    """'8/255' -> 0.0313...; every other value is returned as it is, for pydantic to validate."""
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
"""Groups of weights; a radius is relative to the norm of each group. See `numerics.weight_space`."""
BallNorm = Literal["l2", "linf"]
