"""The one grammar that names components, in the CLI, in TOML and in records.

    name        name(key=value, ...)        values: TOML scalars and lists, fractions (8/255), bare words
    method+modifier+modifier                the written order of modifiers never matters

`parse` reads the text, `resolve` finds the component and validates its parameters; `canonical` writes it with
every default filled in (what the run key hashes) and `brief` with only what differs from the defaults.
`compose` does all that for a method with its modifiers, and refuses what cannot go together.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from robflat_bench.core import EXCLUSIVE, Info, Joint, Kind, Params, RobflatError, UsageError, parse_fraction
from robflat_bench.registry.registry import Offer, Registry, did_you_mean

_SPEC = re.compile(r"\s*(?P<name>[a-z0-9][a-z0-9-]*)\s*(?:\((?P<arguments>.*)\))?\s*", re.DOTALL)
_KEY = re.compile(r"\s*(?P<key>[a-z_][a-z0-9_]*)\s*=(?P<value>.*)", re.DOTALL)
_BARE = re.compile(r"[A-Za-z_][\w.:-]*")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Component:
    """A resolved component: its offer and validated parameters."""

    offer: Offer
    params: Params

    @property
    def info(self) -> Info:
        return self.offer.info

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def canonical(self) -> str:
        """`name(every=parameter)`, keys sorted: equal components have equal text."""
        return write(self.name, self.params.model_dump())

    @property
    def brief(self) -> str:
        """`name(only=what, differs=from the defaults)`."""
        return write(self.name, non_defaults(self.params))

    def build(self, *arguments: Any) -> Any:
        """The component itself: its class or function called with the parameters and `arguments`."""
        return self.offer.load()(self.params, *arguments)


@dataclass(frozen=True)
class Composed:
    """A method and its modifiers, these sorted by name: equal compositions have equal text."""

    method: Component
    modifiers: tuple[Component, ...] = ()

    @property
    def members(self) -> tuple[Component, ...]:
        return (self.method, *self.modifiers)

    @property
    def helpers(self) -> dict[str, str]:
        """Name -> method text of every network to be trained first; equal names are one network."""
        return {name: text for part in self.members for name, text in part.info.helpers.items()}  # type: ignore[attr-defined]

    @property
    def extra_data(self) -> bool:
        """Whether it trains on images outside the protocol's training split."""
        return any(part.info.extra_data for part in self.modifiers)  # type: ignore[attr-defined]

    @property
    def canonical(self) -> str:
        return "+".join(member.canonical for member in self.members)

    @property
    def brief(self) -> str:
        return "+".join(member.brief for member in self.members)


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """'trades(beta=6)' -> ('trades', {'beta': 6}); UsageError where it is malformed."""
    match = _SPEC.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not a component: write name or name(key=value, ...), names in lower case")
    values: dict[str, Any] = {}
    for argument in _split(match["arguments"] or "", ",", text):
        pair = _KEY.fullmatch(argument)
        if pair is None:
            raise UsageError(f"'{text}': '{argument.strip()}' is not key=value")
        if pair["key"] in values:
            raise UsageError(f"'{text}': parameter '{pair['key']}' is given twice")
        values[pair["key"]] = parse_value(pair["value"].strip(), text)
    return match["name"], values


def parse_value(text: str, context: str) -> Any:
    """One value: TOML first, then a fraction, then a bare word."""
    try:
        value, _ = tomllib.loads(f"value = [{text}, 0]")["value"]  # in a list no comment or second key can follow
        return value
    except (ValueError, RecursionError):  # not TOML, or more digits or brackets than Python reads
        value = parse_fraction(text)
        if isinstance(value, float) or _BARE.fullmatch(text):
            return value
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"'{context}': cannot read the value '{text}'; quote strings") from None


def _split(arguments: str, separator: str, text: str) -> list[str]:
    """Pieces between separators outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for position, character in enumerate(arguments):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(arguments[start:position])
            start = position + 1
        if depth < 0:
            break
    if depth != 0 or quote:
        raise UsageError(f"'{text}': brackets or quotes do not match")
    parts.append(arguments[start:])
    return parts if arguments.strip() else []


def resolve(registry: Registry, kind: Kind, text: str) -> Component:
    """Find the component and validate its parameters; an unknown one is answered with a did-you-mean."""
    name, values = parse(text)
    offer = registry.get(kind, name)
    return Component(offer, validate(offer.info.params, values, f"{kind} {name}"))


def members(text: str) -> list[str]:
    """'method+modifier' -> ['method', 'modifier'], each as it is written."""
    return _split(text, "+", text) or [text]


def compose(registry: Registry, text: str) -> Composed:
    """'method+modifier+...' found and validated; UsageError where two of them claim the same."""
    first, *rest = members(text)
    kinds: tuple[Kind, Kind] = ("method", "modifier")
    for part, (own, other) in [(first, kinds), *((part, kinds[::-1]) for part in rest)]:
        name, _ = parse(part)
        if name not in registry.names(own) and name in registry.names(other):
            raise UsageError(f"'{text}': {name} is a {other}; write METHOD+MODIFIER, e.g. at+awp")
    method = resolve(registry, "method", first)
    modifiers = tuple(sorted((resolve(registry, "modifier", part) for part in rest), key=lambda part: part.name))
    for one, two in pairwise(modifiers):
        if one.name == two.name:
            raise UsageError(f"'{text}': {one.name} is given twice")
    for joint in get_args(Joint):
        claimants = [part.name for part in modifiers if joint in part.info.joints]  # type: ignore[attr-defined]
        if claimants and joint in method.info.claims:  # type: ignore[attr-defined]
            raise UsageError(f"'{text}': {method.name} has its own {joint}, which {claimants[0]} would change")
        if joint in EXCLUSIVE and len(claimants) > 1:
            both = " and ".join(claimants)
            raise UsageError(f"'{text}': {both} each claim the {joint} of a step, which admits one; leave one out")
    wanted: dict[str, str] = {}
    for member in (method, *modifiers):
        for name, helper in member.info.helpers.items():  # type: ignore[attr-defined]
            if wanted.setdefault(name, helper) != helper:
                raise UsageError(f"'{text}': {wanted[name]} and {helper} would both be its helper '{name}'")
    return Composed(method, modifiers)


def validate(model: type[Model], values: dict[str, Any], owner: str) -> Model:
    """`model(**values)` with errors in one line: which parameter of whom, why, and what it may be."""
    try:
        return model(**values)
    except ValidationError as error:
        raise UsageError(f"{owner}: {explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words; an unknown key before all others, for it may be a misspelt one that is missing."""
    problems = error.errors()
    problem = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known: Any = model
        for part in problem["loc"][:-1]:
            if isinstance(part, int):
                known = next(iter(get_args(known)), None)
            else:
                field = getattr(known, "model_fields", {}).get(part)
                known = field.annotation if field else None
        return f"unknown key '{where}'" + did_you_mean(str(problem["loc"][-1]), getattr(known, "model_fields", {}))
    if problem["type"] == "missing":
        return f"'{where}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"'{where}' = {problem['input']!r:.100}: {message}" if where else message


def non_defaults(params: BaseModel) -> dict[str, Any]:
    """The parameters whose value differs from the default."""
    return {
        key: value
        for key, value in params.model_dump().items()
        if type(params).model_fields[key].is_required() or value != type(params).model_fields[key].get_default()
    }


def title(registry: Registry, kind: Kind, text: str) -> str:
    """A canonical component as a table names it, then the parameters that its title leaves out and that are not the
    defaults. The text itself where it has no title, or its plugin is gone."""
    try:
        component = resolve(registry, kind, text)
    except RobflatError:
        return text
    template = component.info.title
    told = {field for _, field, _, _ in string.Formatter().parse(template)}
    untold = [f"{name}={value}" for name, value in non_defaults(component.params).items() if name not in told]
    return ", ".join([template.format(**component.params.model_dump()), *untold]) if template else text


def write(name: str, values: dict[str, Any]) -> str:
    """`name(key=value, ...)`, keys sorted, what is None left out; -0.0 is 0.0."""
    kept = without_negative_zeros({key: value for key, value in sorted(values.items()) if value is not None})
    inside = ", ".join(f"{key}={json.dumps(value)}" for key, value in kept.items())
    return f"{name}({inside})" if inside else name


def without_negative_zeros(value: Any) -> Any:
    """The same value, written in one way."""
    if isinstance(value, float):
        return value + 0.0
    if isinstance(value, dict):
        return {key: without_negative_zeros(item) for key, item in value.items()}
    return [without_negative_zeros(item) for item in value] if isinstance(value, list | tuple) else value


def slug(text: str) -> str:
    """A canonical text as a folder name: [a-z0-9.=+-], at most 80 characters."""
    clean = re.sub(r"[^a-z0-9.=+-]+", "-", text.lower().replace('"', "")).strip("-")
    if len(clean) <= 80:
        return clean
    return f"{clean[:71]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
