"""What a component of any kind promises."""

from __future__ import annotations

import inspect

from pydantic import ValidationError

from robflat_bench.core import Attack, Dataset, Kind, Launcher, Measure, Method, Modifier, Params
from robflat_bench.registry.components import Component, resolve, validate
from robflat_bench.registry.registry import Registry
from robflat_bench.testing.world import Broken, expect

BASES: dict[Kind, type] = {
    **{"method": Method, "modifier": Modifier, "attack": Attack, "measure": Measure, "dataset": Dataset},
    "launcher": Launcher,
}
"""What the factory of a kind derives from; that of a backbone is any function."""


def check_description(component: Component, registry: Registry) -> None:
    """Its summary is one line, and its title names parameters only."""
    info = component.info
    expect(bool(info.summary) and "\n" not in info.summary, "the summary is one line")
    try:
        title = info.title.format(**component.params.model_dump())
    except (LookupError, ValueError) as error:
        raise Broken(f"the title cannot be filled in: {type(error).__name__}: {error}") from None
    expect("{" not in title, "the title names parameters only")


def check_factory(component: Component, registry: Registry) -> None:
    """Its factory can be imported, and is a class of its kind (of a backbone: a function)."""
    factory = component.offer.load()
    base = BASES.get(component.info.kind)
    right = callable(factory) if base is None else inspect.isclass(factory) and issubclass(factory, base)
    expect(right, f"the factory is no {base.__name__ if base else 'function'}")


def check_example(component: Component, registry: Registry) -> None:
    """Its example parameters are accepted by its parameter model, which derives from Params."""
    expect(issubclass(component.info.params, Params), "the parameter model derives from Params")
    validate(component.info.params, dict(component.info.example), component.name)


def check_parameters_round_trip(component: Component, registry: Registry) -> None:
    """Its parameters come back from its canonical text and from JSON: a run's identity is both."""
    again = resolve(registry, component.info.kind, component.canonical)
    expect(again.params == component.params, f"'{component.canonical}' does not give its parameters back")
    read = component.info.params.model_validate_json(component.params.model_dump_json())
    expect(read == component.params, "JSON does not give its parameters back")


def check_unknown_parameter_is_refused(component: Component, registry: Registry) -> None:
    """A parameter that it does not have is an error, never ignored."""
    try:
        component.info.params(**component.params.model_dump(), surely_unknown=1)  # type: ignore[call-arg]
    except ValidationError:
        return
    raise Broken("an unknown parameter is accepted")


def check_parameters_are_frozen(component: Component, registry: Registry) -> None:
    """No parameter can change after it was validated."""
    for name in component.info.params.model_fields:
        try:  # the value that it has is a valid one: only being frozen refuses it
            setattr(component.params.model_copy(), name, getattr(component.params, name))
        except ValidationError:
            continue
        raise Broken(f"parameter '{name}' can be changed after validation")


CHECKS = (
    check_description,
    check_factory,
    check_example,
    check_parameters_round_trip,
    check_unknown_parameter_is_refused,
    check_parameters_are_frozen,
)
