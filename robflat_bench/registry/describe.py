"""JSON documents on components and plugins, for `list`, `info` and `plugin list`. Nothing here imports torch."""

from __future__ import annotations

import json
from typing import Any

from robflat_bench.core import AttackInfo, Kind, MeasureInfo, MethodInfo, ModifierInfo, Params
from robflat_bench.core.params import MAX_INTEGER
from robflat_bench.registry.registry import KINDS, Registry

_LISTS = ("couplings", "joints", "claims")
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_BOUNDS |= {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}  # pydantic's own words, where an alternative has a validator
_DIGITS = 12
"""A float with more characters than this was written as a fraction."""


def describe_component(registry: Registry, kind: Kind, name: str) -> dict[str, Any]:
    """One component as its catalogue row declares it.

    The hash of its source is left out: for a list of components, every file of every plugin would be read.
    """
    offer = registry.get(kind, name)
    info = offer.info
    row: dict[str, Any] = {"name": info.name, "kind": info.kind, "summary": info.summary}
    row |= {"provider": str(offer.provider), "citation": info.citation, "factory": info.factory}
    row |= {field: ", ".join(value) for field in _LISTS if (value := getattr(info, field, ()))}
    if isinstance(info, MethodInfo | ModifierInfo):
        row |= {"passes: attack": f"{info.attack} (T attack steps)", "passes: loss": str(info.loss)}
        row |= {"helpers": ", ".join(info.helpers.values())} if info.helpers else {}
    if isinstance(info, MethodInfo) and info.untrained:
        row["untrained"] = "; ".join(f"{pattern}: {reason}" for pattern, reason in info.untrained.items())
    if isinstance(info, AttackInfo) and info.passes:
        row["passes"] = str(info.passes)
    if isinstance(info, ModifierInfo):
        row["loss evaluations"] = info.losses
    if isinstance(info, MeasureInfo):
        row["couplings"] = row.get("couplings", "none")
        row |= {f"passes: {coupling or 'all'}": str(passes) for coupling, passes in info.passes.items()}
        row["unchanged by rescaled"] = ", ".join(name for name, power in info.powers.items() if power == 0)
        row["moved by c rescaling"] = ", ".join(f"{name}: c^{p:g}" for name, p in info.powers.items() if p != 0)
    return row | describe_parameters(info.params)


def describe_parameters(params: type[Params]) -> dict[str, Any]:
    """Each parameter with type, default, range and description; `about` is the class's docstring."""
    properties = params.model_json_schema().get("properties", {})
    about = (params.__doc__ or "") if properties else ""
    parameters = [_parameter(name, schema) for name, schema in properties.items()]
    return {"about": " ".join(about.split()), "parameters": parameters}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf", [schema])
    main = next((option for option in options if option.get("type") != "null"), schema)
    types = list(dict.fromkeys(map(_type, options)))
    found = {"name": name, "type": " or ".join(types), "default": schema.get("default", "required")}
    return found | {"range": _range(main), "description": schema.get("description", "")}


def _type(schema: dict[str, Any]) -> str:
    """`number`, `none`, `list of strings`, `list of 3 integers`."""
    found = schema.get("type", "any")
    if found != "array":
        return "none" if found == "null" else str(found)
    parts = schema.get("prefixItems", [])
    inner = " or ".join(dict.fromkeys(f"{_type(part)}s" for part in parts or [schema.get("items", {})]))
    return f"list of {len(parts)} {inner}" if parts else f"list of {inner}"


def _range(schema: dict[str, Any]) -> str:
    """Choices, else bounds (of a list: of its items). The bound that every integer has is left out."""
    if choices := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return " | ".join(map(written, choices))
    if inner := {_range(part) for part in schema.get("prefixItems", [])}:
        return inner.pop() if len(inner) == 1 else ""
    bounds = [(sign, schema[key]) for key, sign in _BOUNDS.items() if key in schema]
    return ", ".join(f"{sign} {written(bound)}" for sign, bound in bounds if (sign, bound) != ("<=", MAX_INTEGER))


def allowed(parameter: dict[str, Any]) -> str:
    """Type and range of a described parameter in one cell: `number >= 0`, `plain | normalised`, `string`."""
    kind, values = parameter["type"].removesuffix(" or none"), parameter["range"]
    return f"{kind} {values}".strip() if kind.startswith("list") or values[:1] in ("", "<", ">") else values


def written(value: Any) -> str:
    """A parameter's value as one types it: 12/255, true, [1, 2, 2], none."""
    if isinstance(value, float):
        pixels = round(value * 255)
        return f"{pixels}/255" if len(repr(value)) > _DIGITS and value == pixels / 255 else f"{value:.12g}"
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def describe_plugins(registry: Registry) -> list[dict[str, Any]]:
    """Every plugin: its state (ok, broken or disabled), components, hooks, error and the hash of its source."""
    plugins = registry.plugins
    empty: dict[str, Any] = {"version": "", "entry_point": "", "components": [], "hooks": [], "error": "", "source": ""}
    broken = {(item.distribution, item.entry_point): item for item in plugins.broken}
    offered: dict[tuple[str, str], list[str]] = {}
    for kind in KINDS:
        for offer in registry.offers(kind):
            key = (offer.provider.distribution, offer.provider.entry_point)
            offered.setdefault(key, []).append(f"{kind}:{offer.info.name}")
    rows = []
    for module, provider in plugins.providers.items():
        key = (provider.distribution, provider.entry_point)
        fault = broken.pop(key, None)
        rows.append(
            {
                "distribution": provider.distribution,
                "version": provider.version,
                "entry_point": provider.entry_point,
                "state": "broken" if fault else "ok",
                "components": offered.get(key, []),
                "hooks": sorted(hook.name for hook in plugins.manager.get_hookcallers(module) or ()),
                "error": fault.error if fault else "",
                "source": provider.source_hash(),
            }
        )
    for item in broken.values():
        names = {"distribution": item.distribution, "version": item.version, "entry_point": item.entry_point}
        rows.append(empty | names | {"state": "broken", "error": item.error})
    return rows + [empty | {"distribution": name, "state": "disabled"} for name in plugins.disabled]
