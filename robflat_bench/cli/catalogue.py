"""`robflat-bench list` and `robflat-bench info`: what there is. Neither imports torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from robflat_bench.cli import output

if TYPE_CHECKING:
    from robflat_bench.core import Kind, Params
    from robflat_bench.registry.registry import Offer, Registry

KINDS = (
    *("methods", "modifiers", "attacks", "measures", "backbones", "datasets", "launchers"),
    *("protocols", "studies", "experiments"),
)


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("pattern", default="*", metavar="[GLOB]")
@output.plugin_option
@output.json_option
def list_components(kind: str, pattern: str, files: tuple[Path, ...], as_json: bool) -> None:
    """List components of a KIND whose names match GLOB."""
    registry = output.registry(files)
    tables = {"protocols": _protocols, "studies": _studies, "experiments": _experiments}
    rows = tables[kind](registry, pattern) if kind in tables else _components(registry, kind, pattern)
    for line in registry.duplicates():
        output.note(line)
    if as_json:
        output.emit_json(rows)
        return
    columns = _COLUMNS.get(kind, ("name", "summary", "parameters", "provider"))
    for row in rows:
        row["parameters"] = ", ".join(f"{p['name']}={p['default']}" for p in row["parameters"])
    output.console().print(output.table(kind, columns, [[row.get(name, "") for name in columns] for row in rows]))


@click.command()
@click.argument("name")
@output.plugin_option
@output.json_option
def info(name: str, files: tuple[Path, ...], as_json: bool) -> None:
    """Say all about one component, protocol, study or experiment; `kind:name` where two kinds share a NAME."""
    from robflat_bench.config.study import studies
    from robflat_bench.core import UsageError
    from robflat_bench.experiments import experiments
    from robflat_bench.registry.registry import KINDS as kinds
    from robflat_bench.registry.validation import did_you_mean

    registry = output.registry(files)
    wanted, _, short = name.rpartition(":")
    catalogues: dict[str, tuple[Iterable[str], Callable[[], dict[str, Any]]]] = {
        kind: (registry.names(kind), functools.partial(_one, registry, kind, short)) for kind in kinds
    }
    catalogues["protocol"] = registry.protocols, functools.partial(_protocol, registry, short)
    catalogues["study"] = studies(), functools.partial(_study, registry, short)
    catalogues["experiment"] = experiments(), functools.partial(_experiment, registry, short)
    if wanted not in ("", *catalogues):
        raise UsageError(f"'{wanted}' is no kind; there are {', '.join(catalogues)}")
    found = [kind for kind, (names, _) in catalogues.items() if wanted in ("", kind) and short in names]
    if not found:
        if registry.plugins.broken and wanted not in ("protocol", "study", "experiment"):
            registry.get(wanted or "method", short)  # type: ignore[arg-type]
        known = [known for names, _ in catalogues.values() for known in names]
        raise UsageError(f"nothing is called '{short}'" + did_you_mean(short, known))
    if len(found) > 1:
        raise UsageError(f"'{short}' is " + " and ".join(f"{kind}:{short}" for kind in found) + "; say which")
    row = catalogues[found[0]][1]()
    if as_json:
        output.emit_json(row)
        return
    out = output.console()
    plain = [(key, value) for key, value in row.items() if isinstance(value, str) and value]
    out.print(output.table(short, ["", ""], [[key, str(value)] for key, value in plain]))
    if row.get("parameters"):
        cells = [[p["name"], p["type"], str(p["default"]), p["range"]] for p in row["parameters"]]
        out.print(output.table("parameters", ["name", "type", "default", "range"], cells))


def _components(registry: Registry, kind: str, pattern: str) -> list[dict[str, Any]]:
    singular: Any = kind.removesuffix("s")
    from robflat_bench.core import PluginError

    rows = []
    for name in registry.names(singular, pattern):
        try:
            rows.append(_component(registry.get(singular, name)))
        except PluginError:
            continue  # offered twice, as `list` notes on stderr
    return rows


def _one(registry: Registry, kind: Kind, name: str) -> dict[str, Any]:
    """With the hash of its source: of one component; for a whole list, every file of every plugin would be read."""
    offer = registry.get(kind, name)
    return _component(offer) | {"source": offer.provenance["source"]}


def _component(offer: Offer) -> dict[str, Any]:
    from robflat_bench.core import AttackInfo, MeasureInfo, MethodInfo, ModifierInfo

    info = offer.info
    row: dict[str, Any] = {"name": info.name, "kind": info.kind, "summary": info.summary}
    row |= {"provider": str(offer.provider), "citation": info.citation, "factory": info.factory}
    for name in _LISTS:
        row |= {name: ", ".join(value)} if (value := getattr(info, name, ())) else {}
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
    return row | _parameters(info.params)


def _parameters(params: type[Params]) -> dict[str, Any]:
    properties = params.model_json_schema().get("properties", {})
    return {
        "about": " ".join((params.__doc__ or "").split()) if properties else "",
        "parameters": [_parameter(name, schema) for name, schema in properties.items()],
    }


_COLUMNS = {"measures": ("name", "summary", "couplings", "unchanged by rescaled", "provider")}
"""What tables show of a kind whose parameters would fill them."""
_LISTS = ("couplings", "joints", "claims")
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    options = schema.get("anyOf", [schema])
    main = next((option for option in options if option.get("type") != "null"), schema)
    choices = main.get("enum") or ([main["const"]] if "const" in main else [])
    bounds = [f"{sign} {main[key]:g}" for key, sign in _BOUNDS.items() if key in main]
    return {
        "name": name,
        "type": main.get("type", "any"),
        "default": schema.get("default", "required"),
        "range": " | ".join(map(str, choices)) or ", ".join(bounds),
    }


def _protocols(registry: Registry, pattern: str) -> list[dict[str, Any]]:
    import fnmatch

    from robflat_bench.core import PluginError

    rows = []
    for name in fnmatch.filter(registry.protocols, pattern):
        try:
            rows.append(_protocol(registry, name))
        except PluginError as error:
            output.note(str(error))
    return rows


def _studies(registry: Registry, pattern: str) -> list[dict[str, Any]]:
    import fnmatch

    from robflat_bench.config.study import studies

    return [_study(registry, name) for name in fnmatch.filter(studies(), pattern)]


def _experiments(registry: Registry, pattern: str) -> list[dict[str, Any]]:
    import fnmatch

    from robflat_bench.experiments import experiments

    return [_experiment(registry, name) for name in fnmatch.filter(experiments(), pattern)]


def _experiment(registry: Registry, name: str) -> dict[str, Any]:
    from robflat_bench import __version__
    from robflat_bench.experiments import experiments

    found = experiments()[name]
    row = {"name": name, "kind": "experiment", "summary": found.summary, "provider": f"robflat-bench {__version__}"}
    return {**row, "reads": found.reads, **_parameters(found.params)}


def _study(registry: Registry, name: str) -> dict[str, Any]:
    from robflat_bench import __version__
    from robflat_bench.config.study import load_study

    study = load_study(name)
    return {
        "name": name,
        "kind": "study",
        "summary": study.summary,
        "provider": f"robflat-bench {__version__}",
        "version": study.version,
        "protocol": study.protocol,
        "groups": "; ".join(f"{group.title}: {group.count}" for group in study.groups),
        "parameters": [],
    }


def _protocol(registry: Registry, name: str) -> dict[str, Any]:
    from robflat_bench.config.protocol import load

    protocol = load(registry, name)
    fixed = protocol.fixed
    return {
        "name": protocol.name,
        "kind": "protocol",
        "summary": protocol.summary,
        "provider": str(registry.protocol(name)[1]),
        "version": protocol.version,
        "hash": protocol.hash,
        "dataset": fixed.data.dataset,
        "backbone": fixed.backbone,
        "epsilon": f"{fixed.threat.epsilon:.6g} ({fixed.threat.norm})",
        "attacks": "; ".join(f"{row.attack} on {row.test} test, {row.train} train" for row in fixed.attacks),
        "measures": "; ".join(f"{row.measure} on {row.test} test" for row in fixed.measures),
        "parameters": [
            {"name": f"recipe.{key}", "type": type(value).__name__, "default": value, "range": ""}
            for key, value in protocol.recipe.model_dump(mode="json").items()
        ],
    }
