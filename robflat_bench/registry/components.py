"""The grammar of components: one text for the command line, TOML files and records.

    name        name(key=value, ...)        values: TOML scalars and lists, fractions (8/255), bare words
    method+modifier+modifier                modifiers in any order

Reading: `grammar.parse` splits a text into name and values; `resolve` finds the component and validates its parameters;
`compose` does both for a method with its modifiers and refuses combinations that cannot train.

Writing: each purpose has its own spelling.

    canonical   for run keys, with every parameter       pgd(init="uniform", loss="ce", restarts=3, steps=20)
    brief       for names of rows, without defaults      pgd(restarts=3)
    title       for tables and figures                   PGD-20 x 3
    slug        for folders and addresses                pgd-restarts=3
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Generic, Literal, get_args, overload

from pydantic import BaseModel

from robflat_bench.core import (
    EXCLUSIVE,
    AttackInfo,
    BackboneInfo,
    Joint,
    Kind,
    MeasureInfo,
    MethodInfo,
    ModifierInfo,
    Params,
    RobflatError,
    UsageError,
    settled,
)
from robflat_bench.registry.grammar import members, parse
from robflat_bench.registry.registry import AnyInfo, Offer, Registry
from robflat_bench.registry.validation import validate

# ---------------------------------------------------------------------------------------------------------
# Resolved components
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Component(Generic[AnyInfo]):
    """A component that was found in the registry, with validated parameters.

    Parameters
    ----------
    offer : Offer
        Its catalogue row and the plugin that provides it.
    params : Params
        An instance of the row's parameter model.
    """

    offer: Offer[AnyInfo]
    params: Params

    @property
    def info(self) -> AnyInfo:
        """Its catalogue row."""
        return self.offer.info

    @property
    def name(self) -> str:
        """Its name in the catalogue, e.g. `pgd`."""
        return self.info.name

    @property
    def canonical(self) -> str:
        """`name(every=parameter)`: equal components have equal text, which run keys hash."""
        return canonical_text(self.name, self.params)

    @property
    def brief(self) -> str:
        """`name(parameter=value)` with only the parameters that differ from their defaults."""
        return brief_text(self.name, self.params)

    def build(self, *arguments: Any) -> Any:
        """Call the component's class or function with its parameters, then `arguments`.

        Raises
        ------
        PluginError
            The module of the class or function cannot be imported.
        """
        return settled(self.offer.load())(self.params, *arguments)


@dataclass(frozen=True)
class Composed:
    """A method with its modifiers, sorted by name: equal compositions have equal text."""

    method: Component[MethodInfo]
    modifiers: tuple[Component[ModifierInfo], ...] = ()

    @property
    def members(self) -> tuple[Component[MethodInfo | ModifierInfo], ...]:
        """The method, then its modifiers."""
        return (self.method, *self.modifiers)

    @property
    def helpers(self) -> dict[str, str]:
        """Name -> method text of every network that is trained first; two members that use one name share it."""
        return {name: text for member in self.members for name, text in member.info.helpers.items()}

    @property
    def extra_data(self) -> bool:
        """Whether it trains on images outside the protocol's training split."""
        return any(modifier.info.extra_data for modifier in self.modifiers)

    @property
    def canonical(self) -> str:
        """The canonical texts of all members, joined by `+`."""
        return "+".join(member.canonical for member in self.members)

    @property
    def brief(self) -> str:
        """The brief texts of all members, joined by `+`."""
        return "+".join(member.brief for member in self.members)


# ---------------------------------------------------------------------------------------------------------
# From text to components
# ---------------------------------------------------------------------------------------------------------


@overload
def resolve(registry: Registry, kind: Literal["method"], text: str) -> Component[MethodInfo]: ...
@overload
def resolve(registry: Registry, kind: Literal["modifier"], text: str) -> Component[ModifierInfo]: ...
@overload
def resolve(registry: Registry, kind: Literal["attack"], text: str) -> Component[AttackInfo]: ...
@overload
def resolve(registry: Registry, kind: Literal["measure"], text: str) -> Component[MeasureInfo]: ...
@overload
def resolve(registry: Registry, kind: Literal["backbone"], text: str) -> Component[BackboneInfo]: ...
@overload
def resolve(registry: Registry, kind: Kind, text: str) -> Component: ...
def resolve(registry: Registry, kind: Kind, text: str) -> Component[Any]:
    """Find the component that a text names and validate its parameters.

    Parameters
    ----------
    registry : Registry
        Where its name is looked up.
    kind : {"method", "modifier", "attack", "measure", "backbone", "dataset", "launcher"}
        Names are unique within a kind.
    text : str
        `name` or `name(key=value, ...)`.

    Returns
    -------
    Component
        Its `info` has the type of the kind's rows, e.g. `MeasureInfo`.

    Raises
    ------
    UsageError
        The name or a parameter is unknown (the message suggests the nearest one), or a value is out of range.
    PluginError
        Two plugins offer the name, or a plugin that did not load may offer it.
    """
    name, values = parse(text, partial(registry.parameters, kind))
    offer = registry.get(kind, name)
    return Component(offer, validate(offer.info.params, values, f"{kind} {name}"))


def compose(registry: Registry, text: str) -> Composed:
    """Find and validate a method with its modifiers.

    Parameters
    ----------
    registry : Registry
        Where the names are looked up.
    text : str
        `method` or `method+modifier+...`, modifiers in any order.

    Raises
    ------
    UsageError
        A part is unknown or stands in the wrong place, a modifier is given twice, two parts replace the same joint of
        the training step, or two parts need different networks under one name.
    """
    first, *rest = members(text)
    kinds: tuple[Kind, Kind] = ("method", "modifier")
    for part, (own, other) in [(first, kinds), *((part, kinds[::-1]) for part in rest)]:
        name, _ = parse(part, partial(registry.parameters, own))
        if name not in registry.names(own) and name in registry.names(other):
            raise UsageError(f"'{text}': {name} is a {other}; write METHOD+MODIFIER, e.g. at+awp")
    method = resolve(registry, "method", first)
    modifiers = tuple(sorted((resolve(registry, "modifier", part) for part in rest), key=lambda part: part.name))
    for first_of_two, second in pairwise(modifiers):
        if first_of_two.name == second.name:
            raise UsageError(f"'{text}': {second.name} is given twice")
    for joint in get_args(Joint):
        claimants = [part.name for part in modifiers if joint in part.info.joints]
        if claimants and joint in method.info.claims:
            one = claimants[0]
            raise UsageError(f"'{text}': {method.name} has its own {joint}, which {one} would change; leave {one} out")
        if joint in EXCLUSIVE and len(claimants) > 1:
            both = " and ".join(claimants)
            raise UsageError(f"'{text}': {both} both replace the {joint} of a training step; leave one out")
    composed = Composed(method, modifiers)
    for member in composed.members:
        for name, helper in member.info.helpers.items():
            if (rival := composed.helpers[name]) != helper:
                raise UsageError(f"'{text}': two members need different networks as '{name}': {helper} and {rival}")
    return composed


# ---------------------------------------------------------------------------------------------------------
# From components to text
# ---------------------------------------------------------------------------------------------------------


def canonical_text(name: str, params: BaseModel) -> str:
    """`name(every=parameter)`, defaults included."""
    return write(name, params.model_dump())


def brief_text(name: str, params: BaseModel) -> str:
    """`name(parameter=value)`, defaults left out."""
    return write(name, non_defaults(params))


def non_defaults(params: BaseModel) -> dict[str, Any]:
    """The parameters that are required or differ from their default."""
    fields = type(params).model_fields
    return {
        key: value
        for key, value in params.model_dump().items()
        if fields[key].is_required() or value != fields[key].get_default()
    }


def title(registry: Registry, kind: Kind, text: str) -> str:
    """A component as tables name it: its row's title, then the non-default parameters that the title leaves out.

    The text itself where the row has no title or the component cannot be found, e.g. in the record of a plugin that is
    not installed.
    """
    try:
        component = resolve(registry, kind, text)
    except RobflatError:
        return text
    if not (template := component.info.title):
        return text
    shown = {field for _, field, _, _ in string.Formatter().parse(template)}
    others = [f"{name}={value}" for name, value in non_defaults(component.params).items() if name not in shown]
    return ", ".join([template.format(**component.params.model_dump()), *others])


def write(name: str, values: dict[str, Any]) -> str:
    """`name(key=value, ...)`: keys sorted, values as JSON, parameters that are None left out, -0.0 written as 0.0."""
    kept = without_negative_zeros({key: value for key, value in sorted(values.items()) if value is not None})
    inside = ", ".join(f"{key}={json.dumps(value)}" for key, value in kept.items())
    return f"{name}({inside})" if inside else name


def without_negative_zeros(value: Any) -> Any:
    """The value with every -0.0 replaced by 0.0, in nested dicts and lists too: equal numbers have equal text."""
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, dict):
        return {key: without_negative_zeros(item) for key, item in value.items()}
    return [without_negative_zeros(item) for item in value] if isinstance(value, list | tuple) else value


def slug(text: str) -> str:
    """A text as a folder name: characters [a-z0-9.=+-], at most 80; longer ones end in a hash of the whole text."""
    clean = re.sub(r"[^a-z0-9.=+-]+", "-", text.lower().replace('"', "")).strip("-")
    if len(clean) <= 80:
        return clean
    return f"{clean[:71]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
