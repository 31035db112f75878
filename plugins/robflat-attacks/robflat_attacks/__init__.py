"""The attacks of torchattacks, foolbox and adv-lib as components of robflat-bench: rows and parameters, without torch.

`tables` lists the attacks by name, `adapters` calls them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import metadata
from typing import Any, ClassVar

from pydantic import Field, PositiveInt, field_validator, model_validator

from robflat_attacks.tables import ADVLIB, FOOLBOX, TORCHATTACKS, Entry
from robflat_bench.api import AttackInfo, Number, Params, ThreatNorm, hookimpl

LIBRARIES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "advlib": "adv-lib"}
"""Our attack -> the distribution that it calls. adv-lib is optional."""


class LibraryParams(Params):
    name: str = Field(description="Name of the attack, as the library spells it.")
    steps: PositiveInt | None = Field(
        default=None, description="Iterations (queries of Square, tries of noise); by default the library's number."
    )
    step: Number | None = Field(
        default=None,
        gt=0,
        description="Size of a step in pixels of [0,1]; by default the library's own fraction of epsilon.",
    )
    restarts: PositiveInt = Field(default=1, description="Restarts, for attacks that draw their start.")
    batch: PositiveInt = Field(
        default=250,
        description="Most images per batch; it changes the result, because the libraries draw for a whole batch.",
    )

    library: ClassVar[str]
    table: ClassVar[Mapping[str, Entry]]

    @property
    def entry(self) -> Entry:
        return self.table[self.name]

    @property
    def norms(self) -> tuple[ThreatNorm, ...]:  # type: ignore[override]  # each attack of the library has its own
        return self.entry.norms

    @model_validator(mode="before")
    @classmethod
    def _spell_out_steps(cls, values: Any) -> Any:
        """Write the library's number into the canonical text, because it defines the attack."""
        entry = cls.table.get(str(values.get("name")))
        return {"steps": entry.steps, **values} if entry else values

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in cls.table:
            close = difflib.get_close_matches(name.lower(), {known.lower() for known in cls.table}, n=1)
            hint = [f"did you mean '{known}'? " for known in cls.table if known.lower() in close]
            every = ", ".join(sorted(cls.table))
            raise ValueError(f"not an attack of {cls.library} in a ball; {''.join(hint)}it has {every}")
        return name

    @model_validator(mode="after")
    def _takes_what_is_given(self) -> LibraryParams:
        untouched = {"steps": self.entry.steps, "step": None, "restarts": 1}
        for parameter, default in untouched.items():
            if parameter not in self.entry.takes and getattr(self, parameter) != default:
                raise ValueError(f"{self.name} of {self.library} takes no {parameter}")
        return self


class TorchattacksParams(LibraryParams):
    library = "torchattacks"
    table = TORCHATTACKS


class FoolboxParams(LibraryParams):
    library = "foolbox"
    table = FOOLBOX


class AdvlibParams(LibraryParams):
    library = "advlib"
    table = ADVLIB


@hookimpl
def robflat_bench_attacks() -> list[AttackInfo]:
    return [
        AttackInfo(
            "torchattacks",
            "any l-inf or l2 attack of torchattacks, by its name there",
            "robflat_attacks.adapters:Torchattacks",
            TorchattacksParams,
            "Kim: Torchattacks: A PyTorch repository for adversarial attacks. arXiv 2010.01950",
            "{name}-{steps} x {restarts} of torchattacks",
            {"name": "PGD"},
        ),
        AttackInfo(
            "foolbox",
            "any l-inf, l2 or l1 attack of foolbox, by its name there; minimum-norm ones are clipped to epsilon",
            "robflat_attacks.adapters:Foolbox",
            FoolboxParams,
            "Rauber, Brendel, Bethge: Foolbox: A Python toolbox to benchmark the robustness of machine learning "
            "models. arXiv 1707.04131",
            "{name}-{steps} x {restarts} of foolbox",
            {"name": "LinfPGD"},
        ),
        AttackInfo(
            "advlib",
            "minimum-norm attacks of adv-lib, by their names there, pulled into the ball; adv-lib is installed apart",
            "robflat_attacks.adapters:Advlib",
            AdvlibParams,
            "Rony, Ben Ayed: Adversarial Library. Zenodo 2023",
            "{name}-{steps} of adv-lib",
            {"name": "fab"},
        ),
    ]


@hookimpl
def robflat_bench_environment() -> Mapping[str, str]:
    found = {distribution: version(distribution) for distribution in LIBRARIES.values()}
    return {distribution: known for distribution, known in found.items() if known}


def version(distribution: str) -> str:
    """The installed version of a distribution; "" without one."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


@hookimpl
def robflat_bench_validate_record(record: Mapping[str, Any]) -> list[str]:
    """Results of a library need its version, because results changed between versions."""
    noted = record["environment"].get("plugins", {}).get("robflat-attacks", {})
    attacks = {attack for result in record["results"].values() for attack in result["robust_error"]}
    return [
        f"it has results of {distribution} but not the version of {distribution}; evaluate it again"
        for library, distribution in LIBRARIES.items()
        if not noted.get(distribution) and any(attack.startswith(f"{library}(") for attack in attacks)
    ]
