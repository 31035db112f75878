"""Base of every component's parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler

MAX_INTEGER = 1_000_000
"""Upper bound of every integer parameter that declares none (`le` or `lt`): a mistyped size is refused at once."""

ThreatNorm = Literal["linf", "l2", "l1"]
"""Norm of the ball that adversarial images stay in."""
ENGINE_NORMS: tuple[ThreatNorm, ...] = ("linf", "l2")
"""Norms in which the attack engine climbs: those of the training attack and of the loss oracle."""


def _amended(schema: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A copy of a pydantic schema in which every number and bool, however deep, is changed."""
    if isinstance(schema, list | tuple):
        return type(schema)(_amended(part, change) for part in schema)
    if not isinstance(schema, dict):
        return schema
    data = ("default", "metadata")
    found = {key: part if key in data else _amended(part, change) for key, part in schema.items()}
    return change(found) if found.get("type") in ("int", "float", "bool") else found


def _unconverted(scalar: dict[str, Any]) -> Any:
    strict = {"strict": True, **scalar}
    if scalar["type"] != "int" or "strict" in scalar:
        return strict
    return {"type": "function-before", "function": {"type": "no-info", "function": _whole}, "schema": strict}


def _whole(value: Any) -> Any:
    """3.0 -> 3; every other value is returned as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _bounded(scalar: dict[str, Any]) -> dict[str, Any]:
    return scalar if scalar["type"] != "int" or "lt" in scalar else {"le": MAX_INTEGER, **scalar}


class Strict(BaseModel):
    """Base of the models of files and parameters: frozen, no unknown names, finite numbers, no conversion of types.

    `true` and "1" are no numbers, and 1 is no bool. 3.0 is an integer, an integer is a float, and a list is a tuple.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return _amended(handler(source), _unconverted)


class Params(Strict):
    """Base of every component's parameters. An integer is at most `MAX_INTEGER`, unless its field says `le` or `lt`.

    Declare each parameter with `Field(default=..., description="what it does, unit, range, source of the default")`.

    Attributes
    ----------
    norms : tuple of {"linf", "l2", "l1"}
        Norms of the threat under which the component is defined. A protocol with another norm refuses it. Declare more
        than l-inf if an attack, a measure or a method with an attack of its own follows `threat.norm` (`inner.norm`).
    """

    norms: ClassVar[tuple[ThreatNorm, ...]] = ("linf",)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return _amended(super().__get_pydantic_core_schema__(source, handler), _bounded)


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

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed of random numbers."""

BallShape = Literal["layer", "filter", "element", "global"]
"""Groups of weights; a radius is relative to the norm of each group. See `numerics.weight_space`."""
BallNorm = Literal["l2", "linf"]
