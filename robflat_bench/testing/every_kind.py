"""What a component of any kind promises."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ValidationError

from robflat_bench.core import Attack, Dataset, Kind, Launcher, Measure, Method, Modifier, Params
from robflat_bench.registry.components import Component
from robflat_bench.registry.grammar import parse
from robflat_bench.registry.validation import validate
from robflat_bench.testing.expectations import CheckFailure, expect

BASES: dict[Kind, type] = {
    **{"method": Method, "modifier": Modifier, "attack": Attack, "measure": Measure, "dataset": Dataset},
    "launcher": Launcher,
}
"""The base class of each kind's factories; a backbone's factory is any function."""


def check_description(component: Component) -> str | None:
    """Its summary is one line, and its title names parameters only. A note names parameters without a description."""
    info = component.info
    expect(bool(info.summary) and "\n" not in info.summary, "the summary is one line")
    try:
        title = info.title.format(**component.params.model_dump())
    except (LookupError, ValueError) as error:
        raise CheckFailure(f"the title cannot be filled in: {type(error).__name__}: {error}") from None
    expect("{" not in title, "the title names parameters only")
    silent = [name for name, field in info.params.model_fields.items() if not field.description]
    return f"no description: {', '.join(silent)}; write Field(description=...), which `info` shows" if silent else None


def check_factory(component: Component) -> None:
    """Its factory can be imported and is a class of its kind (for a backbone: a function)."""
    factory = component.offer.load()
    base = BASES.get(component.info.kind)
    right = callable(factory) if base is None else inspect.isclass(factory) and issubclass(factory, base)
    expect(right, f"the factory is no {base.__name__ if base else 'function'}")


def check_example(component: Component) -> None:
    """Its parameter model derives from Params and accepts its example parameters."""
    expect(issubclass(component.info.params, Params), "the parameter model derives from Params")
    validate(component.info.params, dict(component.info.example), component.name)


def check_parameters_round_trip(component: Component[Any]) -> None:
    """Its parameters can be read back from its canonical text and from JSON: both identify a run."""
    model = component.info.params
    name, values = parse(component.canonical)
    again = validate(model, values, component.name)
    expect((name, again) == (component.name, component.params), f"'{component.canonical}' gives other parameters")
    read = model.model_validate_json(component.params.model_dump_json())
    expect(read == component.params, "JSON gives other parameters")


def check_unknown_parameter_is_refused(component: Component) -> None:
    """A parameter that it does not have is an error."""
    try:
        component.info.params(**component.params.model_dump(), surely_unknown=1)  # type: ignore[call-arg]
    except ValidationError:
        return
    raise CheckFailure("an unknown parameter is accepted")


def check_parameters_are_frozen(component: Component) -> None:
    """No parameter can be changed after validation."""
    for name in component.info.params.model_fields:
        try:  # the value that it has is a valid one: only being frozen refuses it
            setattr(component.params.model_copy(), name, getattr(component.params, name))
        except ValidationError:
            continue
        raise CheckFailure(f"parameter '{name}' can be changed after validation")
