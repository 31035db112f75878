"""RunSpec: one frozen, canonical description of a run. What is in its key can change a number; nothing else is."""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeInt

from robflat_bench import NUMERICS
from robflat_bench.components import Component, resolve, slug
from robflat_bench.protocol import Protocol, Strict, components, content_hash
from robflat_bench.recipe import Recipe
from robflat_bench.registry import Registry


class ProtocolRef(Strict):
    """Which board: the hash is of `[fixed]`."""

    name: str
    version: str
    hash: str


class DatasetRef(Strict):
    """The data as loaded: checksum over every split's pixels and labels; canonical: byte-identical to the original."""

    name: str
    checksum: str
    canonical: bool
    origin: str


class RunSpec(Strict):
    """A run. `label` is how a person names the row; `folder` is where it lies below its protocol's folder."""

    protocol: ProtocolRef
    recipe: Recipe
    method: str
    dataset: DatasetRef
    seed: NonNegativeInt
    numerics: int
    plugins: dict[str, str]
    label: str

    @property
    def identity(self) -> dict[str, Any]:
        """What the key hashes. Names, versions and labels of equal content are not identity."""
        return {
            "protocol": self.protocol.hash,
            "recipe": self.recipe.model_dump(mode="json"),
            "method": self.method,
            "dataset": self.dataset.checksum,
            "seed": self.seed,
            "numerics": self.numerics,
            "plugins": self.plugins,
        }

    @property
    def key(self) -> str:
        return content_hash(self.identity)[:16]

    @property
    def folder(self) -> str:
        return f"{self.protocol.name}/{slug(self.label)}/seed-{self.seed}-{self.key}"


def make_spec(registry: Registry, protocol: Protocol, method: Component, dataset: DatasetRef, seed: int) -> RunSpec:
    """The spec of a run; third-party plugins behind any of its components enter with version and source hash."""
    used = [method, *(resolve(registry, kind, text) for kind, text in components(protocol))]
    changes = " ".join(f"{key}={value}" for key, value in sorted(protocol.overrides.items()))
    return RunSpec(
        protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
        recipe=protocol.recipe,
        method=method.canonical,
        dataset=dataset,
        seed=seed,
        numerics=NUMERICS,
        plugins=_plugins(used),
        label=f"{method.brief} [{changes}]" if changes else method.brief,
    )


def _plugins(used: list[Component]) -> dict[str, str]:
    """ "distribution version" -> source hash of what is behind these components (several, where they lie apart)."""
    hashes: dict[str, set[str]] = {}
    for component in used:
        provider = component.offer.provider
        if not provider.built_in:
            found = hashes.setdefault(f"{provider.distribution} {provider.version}", set())
            found.add(provider.source_hash(component.info.factory))
    return {name: " ".join(sorted(found)) for name, found in sorted(hashes.items())}
