"""The catalogue: what can be trained, attacked, measured and run. Nothing here imports torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robflat_bench.core import PluginError, UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import Grid, as_html, as_text, grid
from robflat_bench.front.kinds import KINDS
from robflat_bench.front.sessions import open_registry
from robflat_bench.front.tables import Rows
from robflat_bench.front.text import note
from robflat_bench.registry.describe import allowed, written

if TYPE_CHECKING:
    from robflat_bench.registry.registry import Registry

_COLUMNS = {
    "measures": ("name", "summary", "couplings", "unchanged by rescaled", "provider"),
    "protocols": ("name", "summary", "provider"),
}
"""Columns of a kind whose parameters would fill the table."""
_OWN = ("protocol", "study", "experiment")
"""Kinds that are not components."""

_USES = {
    "method": "run --method {name}",
    "modifier": "run --method at+{name}",
    "attack": "evaluate RUN --attack {name}",
    "measure": "evaluate RUN --measure {name}",
    "backbone": "run --method at --set fixed.backbone={name}",
    "dataset": "evaluate RUN --dataset {name} --data DIR",
    "launcher": "sweep paper-digits --launcher {name}",
    "protocol": "run --method at --protocol {name} --plan",
    "study": "sweep {name} --plan",
    "experiment": "experiment {name} RUN",
}
"""Kind -> a line that uses an entry; RUN is a key of `results ls`."""

Catalogues = dict[str, tuple[Iterable[str], Callable[[str], dict[str, Any]]]]


class Description(dict[str, Any]):
    """One entry of the catalogue as a dictionary, which shows itself as a table."""

    def __repr__(self) -> str:
        return as_text(description_grids(self))

    def _repr_html_(self) -> str:
        return as_html(description_grids(self))


def catalogues(registry: Registry) -> Catalogues:
    """Kind -> its names, and the function that describes one of them."""
    from robflat_bench.config.describe import describe_protocol, describe_study
    from robflat_bench.config.study import studies
    from robflat_bench.experiments import describe_experiment, experiments
    from robflat_bench.registry.describe import describe_component
    from robflat_bench.registry.registry import KINDS as kinds

    return {
        **{kind: (registry.names(kind), partial(describe_component, registry, kind)) for kind in kinds},
        "protocol": (registry.protocols, partial(describe_protocol, registry)),
        "study": (studies(), describe_study),
        "experiment": (experiments(), describe_experiment),
    }


def listed(registry: Registry, kind: str, pattern: str) -> tuple[dict[str, Any], ...]:
    """The entries of a kind of `KINDS` whose names match a shell pattern; names that cannot be used are notes."""
    names, describe = catalogues(registry)[singular(kind)]
    rows = []
    for name in fnmatch.filter(names, pattern):
        try:
            rows.append(describe(name))
        except PluginError as error:
            if kind == "protocols":  # components that two plugins offer are named by `duplicates`
                note(str(error))
    for line in registry.duplicates():
        note(line)
    return tuple(rows)


def listed_kinds(registry: Registry) -> tuple[dict[str, Any], ...]:
    """The kinds of `KINDS`, each with its number of entries."""
    entries = catalogues(registry)
    return tuple({"kind": kind, "entries": len([*entries[singular(kind)][0]])} for kind in KINDS)


def kinds_grid(rows: Sequence[dict[str, Any]]) -> Grid:
    """The kinds as a table."""
    return grid("the catalogue", ["kind", "entries"], [[*row.values()] for row in rows], right=1)


def singular(kind: str) -> str:
    """methods -> method."""
    return "study" if kind == "studies" else kind.removesuffix("s")


def list_grid(kind: str, rows: Sequence[dict[str, Any]]) -> Grid:
    """Entries of one kind as a table."""
    columns = _COLUMNS.get(kind, ("name", "summary", "parameters", "provider"))
    cells = [
        {**row, "parameters": ", ".join(f"{p['name']}={written(p['default'])}" for p in row["parameters"])}
        for row in rows
    ]
    return grid(kind, columns, [[row.get(name, "") for name in columns] for row in cells])


def found(registry: Registry, name: str) -> Description:
    """One entry of the catalogue; UsageError where nothing, or more than one thing, is called that."""
    from robflat_bench.registry.validation import did_you_mean

    entries = catalogues(registry)
    wanted, _, short = name.rpartition(":")
    if wanted not in ("", *entries):
        raise UsageError(f"'{wanted}' is not a kind; there are {', '.join(entries)}")
    kinds: Any = [kind for kind, (names, _) in entries.items() if wanted in ("", kind) and short in names]
    if "@" in short and wanted in ("", "protocol"):  # only protocols have versions; the catalogue lists those in force
        kinds = ["protocol"]
    if not kinds:
        if registry.plugins.broken and wanted not in _OWN:  # the message names the plugin that may have it
            registry.get(wanted or "method", short)  # type: ignore[arg-type]
        known = [known for kind, (names, _) in entries.items() if wanted in ("", kind) for known in names]
        hint = registry.family(short) or did_you_mean(short, known)
        what = f"no {wanted}" if wanted else "nothing"
        raise UsageError(f"{what} is called '{short}'{hint}; see `robflat-bench list`")
    if len(kinds) > 1:
        raise UsageError(f"'{short}' is " + " and ".join(f"{kind}:{short}" for kind in kinds) + "; name one of them")
    row = Description(entries[kinds[0]][1](short))
    if kinds[0] not in _OWN:
        row["source"] = registry.get(kinds[0], short).provenance["source"]
    return row


def description_grids(row: dict[str, Any]) -> Iterator[Grid]:
    """An entry's fields, and its parameters."""
    yield grid(row["name"], ["", ""], [(key, value) for key, value in row.items() if isinstance(value, str) and value])
    if row.get("parameters"):
        columns = ["name", "default", "values", "description"]
        cells = [[p["name"], written(p["default"]), allowed(p), p["description"]] for p in row["parameters"]]
        yield grid("parameters", columns, cells)


def example_line(row: dict[str, Any]) -> str:
    """A line that uses an entry; a parameter that has no default has its name in capitals as value."""
    wanted = [f"{p['name']}={p['name'].upper()}" for p in row.get("parameters", ()) if p["default"] == "required"]
    use, name = _USES[row["kind"]], row["name"]
    if wanted:  # the brackets are the shell's, too
        word = next(word for word in use.split() if "{name}" in word)
        use = use.replace(word, f'"{word}({", ".join(wanted)})"')
    return f"robflat-bench {use.format(name=name)}"


def list(kind: str = "methods", pattern: str = "*", *, plugins: Sequence[str | Path] = ()) -> Rows:
    """The entries of a kind.

    Parameters
    ----------
    kind : str
        methods, modifiers, attacks, measures, backbones, datasets, launchers, protocols, studies or experiments.
    pattern : str
        A shell pattern of their names: "*-case".
    plugins : sequence of str or Path
        One-file plugins to load.

    Returns
    -------
    Rows
        name, summary, provider, parameters and more, as `robflat-bench list KIND --json` prints them.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    if kind not in KINDS:
        raise UsageError(f"'{kind}' is no kind; give one of {', '.join(KINDS)}")
    rows = listed(open_registry(plugins), kind, pattern)
    return Rows(rows, (list_grid(kind, rows),))


@checked
def info(name: str, *, plugins: Sequence[str | Path] = ()) -> Description:
    """One component, protocol, study or experiment: equation's paper, parameters with ranges and defaults, cost.

    Parameters
    ----------
    name : str
        Its name, or "kind:name" where two kinds share a name.
    plugins : sequence of str or Path
        One-file plugins to load.

    Returns
    -------
    Description
        A dictionary, as `robflat-bench info NAME --json` prints it; it shows itself as a table.

    Raises
    ------
    UsageError
        Nothing, or more than one thing, is called that.
    """
    return found(open_registry(plugins), name)
