"""How `info` and the reference write a parameter's type, range and default."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt

from robflat_bench.core import Number, Params
from robflat_bench.registry.describe import allowed, describe_parameters, written
from robflat_bench.registry.registry import KINDS


class Shown(Params):
    count: PositiveInt = Field(default=8, description="Images.")
    few: int = Field(default=3, ge=2, le=5)
    radius: Number | None = Field(default=None, gt=0)
    limit: Number = Field(default=12 / 255, ge=0, lt=1)
    tiny: float = Field(default=1e-9, ge=1e-12)
    kind: Literal["plain", "normalised"] = "plain"
    fixed: Literal[False] = False
    flag: bool = True
    patterns: tuple[str, ...] | None = None
    strides: tuple[Literal[1, 2], Literal[1, 2]] = (1, 2)
    pair: tuple[Annotated[int, Field(ge=1)], str] = (1, "a")
    name: str


@pytest.mark.parametrize(
    ("name", "type_", "range_", "default", "cell"),
    [
        ("count", "integer", "> 0", "8", "integer > 0"),
        ("few", "integer", ">= 2, <= 5", "3", "integer >= 2, <= 5"),
        ("radius", "number or none", "> 0", "none", "number > 0"),
        ("limit", "number", ">= 0, < 1", "12/255", "number >= 0, < 1"),
        ("tiny", "number", ">= 1e-12", "1e-09", "number >= 1e-12"),
        ("kind", "string", "plain | normalised", "plain", "plain | normalised"),
        ("fixed", "boolean", "false", "false", "false"),
        ("flag", "boolean", "", "true", "boolean"),
        ("patterns", "list of strings or none", "", "none", "list of strings"),
        ("strides", "list of 2 integers", "1 | 2", "[1, 2]", "list of 2 integers 1 | 2"),
        ("pair", "list of 2 integers or strings", "", '[1, "a"]', "list of 2 integers or strings"),
        ("name", "string", "", "required", "string"),
    ],
)
def test_a_parameter_is_shown_as_one_types_it(name, type_, range_, default, cell):
    (found,) = (row for row in describe_parameters(Shown)["parameters"] if row["name"] == name)
    assert (found["type"], found["range"], written(found["default"]), allowed(found)) == (type_, range_, default, cell)


@pytest.mark.parametrize(
    ("value", "text"),
    [(8 / 255, "8/255"), (0.5, "0.5"), (6.0, "6"), (0.12345678, "0.12345678"), (0.0, "0"), (3e-5, "3e-05")],
)
def test_a_number_of_pixels_is_a_fraction_of_255(value, text):
    assert written(value) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_parameter_has_a_description(registry, kind):
    fields = {
        f"{name}({parameter})": field.description or ""
        for name in registry.names(kind)
        for parameter, field in registry.get(kind, name).info.params.model_fields.items()
    }
    assert not [name for name, text in fields.items() if not text.endswith(".") or "\n" in text]
