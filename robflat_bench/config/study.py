"""Studies: TOML files that list variants under one protocol, shipped with the package or given as a path.

    name = "my-study"
    version = "1.0"
    summary = "Two methods, one with three weights."
    protocol = "digits-linf"

    [[groups]]
    title = "TRADES"
    methods = ["trades(beta=1)", "trades(beta=3)"]

    [[groups]]
    title = "weight decay"
    methods = ["at"]
    grid = { "recipe.weight_decay" = [1e-3, 1e-2] }

A group combines every method with every combination of its grid. The grid's keys are those of `--set`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from robflat_bench.config.protocol import parse_toml, read_text
from robflat_bench.core import Strict, UsageError
from robflat_bench.registry.validation import did_you_mean, validate

MAX_VARIANTS = 1000
Values = Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Variant:
    """One row of a study: a method under settings of the recipe. `sweep` adds the seeds."""

    group: str
    method: str
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.method, *self.settings))


class Group(Strict):
    """Variants that belong together."""

    title: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,80}$", description="How tables name the group.")
    methods: tuple[str, ...] = Field(min_length=1, description="Methods with their parameters and modifiers.")
    grid: dict[Annotated[str, Field(pattern=r"^recipe\.\w+$")], Values] = Field(
        default_factory=dict, description="Setting -> its values, e.g. recipe.epochs -> 10, 30."
    )

    @property
    def count(self) -> int:
        """Number of variants."""
        return math.prod(map(len, (self.methods, *self.grid.values())))

    def variants(self, settings: tuple[str, ...] = ()) -> Iterator[Variant]:
        """Every method with every combination of the grid, under further settings."""
        for method in self.methods:
            for values in itertools.product(*self.grid.values()):
                pairs = zip(self.grid, values, strict=True)
                yield Variant(self.title, method, (*settings, *(f"{key}={_toml(value)}" for key, value in pairs)))


class Study(Strict):
    """A named list of groups under a protocol."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="Lower case, digits, dashes.")
    version: str = Field(pattern=r"^\d+\.\d+$", description="major.minor.")
    summary: str = Field(description="One line.")
    protocol: str = Field(description="Name of a protocol, or a TOML file beside the study's file.")
    groups: tuple[Group, ...] = Field(min_length=1, description="The variants, in groups.")

    def variants(self, settings: tuple[str, ...] = ()) -> list[Variant]:
        """The variants of all groups, in the order of the file.

        Parameters
        ----------
        settings : tuple of str
            Settings of every variant, as after `--set`.

        Raises
        ------
        UsageError
            A group's grid varies one of their keys.
        """
        for setting in settings:
            key = setting.partition("=")[0].strip()
            for group in self.groups:
                if key in group.grid:
                    values = ", ".join(map(_toml, group.grid[key]))
                    raise UsageError(
                        f"--set {setting}: study {self.name} varies {key} itself ({values} in its group "
                        f"'{group.title}'); leave out --set {key}, or give a study without {key} in its grid"
                    )
        return [variant for group in self.groups for variant in group.variants(settings)]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def studies() -> dict[str, str]:
    """Name -> TOML text of the studies in this package."""
    entries = (resources.files("robflat_bench.config") / "studies").iterdir()
    found = {entry.name.removesuffix(".toml"): entry for entry in entries if entry.name.endswith(".toml")}
    return {name: entry.read_text("utf-8") for name, entry in sorted(found.items())}


def load_study(name: str) -> Study:
    """Read and validate a study. Its methods and settings are validated when they are run.

    Parameters
    ----------
    name : str
        Name of a study in this package, or path of a TOML file.

    Raises
    ------
    UsageError
        The study does not exist, is not valid, or has more than `MAX_VARIANTS` variants.
    """
    known = studies()
    if name in known:
        text, home = known[name], Path()
    elif Path(name).suffix == ".toml":
        text, home = read_text(Path(name), "study"), Path(name).parent
    else:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"unknown study '{name}'{hint}, or give a TOML file")
    study = validate(Study, parse_toml(text, f"study {name}"), f"study {name}")
    if study.protocol.endswith(".toml"):
        study = study.model_copy(update={"protocol": str(home / study.protocol)})
    if (count := sum(group.count for group in study.groups)) > MAX_VARIANTS:
        raise UsageError(f"study {name} has {count} variants, more than {MAX_VARIANTS}; split it into several studies")
    return study
