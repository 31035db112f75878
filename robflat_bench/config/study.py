"""Studies: TOML lists of variants under one protocol, shipped in the package or given as a path.

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

A group is every method times every combination of its grid, whose keys are those of `--set`.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from robflat_bench.config.protocol import Strict, read_text
from robflat_bench.core import UsageError
from robflat_bench.registry.validation import did_you_mean, validate

MAX_VARIANTS = 1000
Values = Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Variant:
    """One row of a study: a method under settings of the recipe; the seeds come with the sweep."""

    group: str
    method: str
    settings: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.method, *self.settings))


class Group(Strict):
    """Variants that belong together."""

    title: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,80}$")
    methods: tuple[str, ...] = Field(min_length=1)
    grid: dict[Annotated[str, Field(pattern=r"^recipe\.\w+$")], Values] = Field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many variants that makes."""
        return math.prod(map(len, (self.methods, *self.grid.values())))

    def variants(self) -> Iterator[Variant]:
        for method in self.methods:
            for values in itertools.product(*self.grid.values()):
                pairs = zip(self.grid, values, strict=True)
                yield Variant(self.title, method, tuple(f"{key}={_toml(value)}" for key, value in pairs))


class Study(Strict):
    """A named list of groups under a protocol."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    version: str = Field(pattern=r"^\d+\.\d+$")
    summary: str
    protocol: str
    groups: tuple[Group, ...] = Field(min_length=1)

    def variants(self) -> list[Variant]:
        return [variant for group in self.groups for variant in group.variants()]


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def studies() -> dict[str, str]:
    """Name -> text of the studies in this package."""
    entries = (resources.files("robflat_bench.config") / "studies").iterdir()
    found = {entry.name.removesuffix(".toml"): entry for entry in entries if entry.name.endswith(".toml")}
    return {name: entry.read_text("utf-8") for name, entry in sorted(found.items())}


def load_study(name: str) -> Study:
    """The study of that name or file. Whether its variants can be run is found out by who runs them.

    A protocol named by a file is found beside the study's file.
    """
    known = studies()
    if name in known:
        text, home = known[name], Path()
    elif Path(name).suffix == ".toml":
        text, home = read_text(Path(name), "study"), Path(name).parent
    else:
        hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"unknown study '{name}'{hint}, or give a TOML file")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"study {name} is not valid TOML: {error}") from None
    study = validate(Study, content, f"study {name}")
    if study.protocol.endswith(".toml"):
        study = study.model_copy(update={"protocol": str(home / study.protocol)})
    if (count := sum(group.count for group in study.groups)) > MAX_VARIANTS:
        raise UsageError(f"study {name} has {count} variants; {MAX_VARIANTS} are enough")
    return study
