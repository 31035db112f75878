"""RunSpec: one frozen, canonical description of a run. What is in its key can change a number; nothing else is."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import Protocol, Strict, components, content_hash
from robflat_bench.config.recipe import Recipe, brief
from robflat_bench.core import UsageError
from robflat_bench.registry.components import Component, Composed, compose, resolve, slug
from robflat_bench.registry.registry import Registry


class ProtocolRef(Strict):
    """Which board: the hash is of `[fixed]`."""

    name: str
    version: str
    hash: str


class DatasetRef(Strict):
    """The data as loaded: checksum over every split's pixels and labels; canonical: byte-identical to the original.

    spare: SHA-256 of the pixels of the training pool that no split uses, empty where there are none.
    """

    name: str
    checksum: str
    spare: str = ""
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
    helpers: dict[str, str] = Field(default_factory=dict)
    """Name -> key of the runs whose networks this one learns from."""
    extra_data: str = ""
    """SHA-256 of the images outside the training split that it trains on."""
    label: str

    @property
    def identity(self) -> dict[str, Any]:
        """What the key hashes. Names, versions and labels of equal content are not identity; what came with later
        versions is left out where it is empty, so that older records keep their keys."""
        later = {"helpers": self.helpers, "extra_data": self.extra_data}
        return {
            "protocol": self.protocol.hash,
            "recipe": self.recipe.model_dump(mode="json"),
            "method": self.method,
            "dataset": self.dataset.checksum,
            "seed": self.seed,
            "numerics": self.numerics,
            "plugins": self.plugins,
            **{name: value for name, value in later.items() if value},
        }

    @property
    def key(self) -> str:
        return content_hash(self.identity)[:16]

    @property
    def folder(self) -> str:
        return f"{self.protocol.name}/{slug(self.label)}/seed-{self.seed}-{self.key}"


def make_spec(
    registry: Registry,
    protocol: Protocol,
    method: Composed,
    dataset: DatasetRef,
    seed: int,
    helped: tuple[str, ...] = (),
) -> RunSpec:
    """The spec of a run; third-party plugins behind any of its components enter with version and source hash.

    helped: methods that this one is a helper of. UsageError where it needs one of them, or images there are none of.
    """
    if method.canonical in helped:
        raise UsageError(f"{method.brief} would have to be trained before itself: its helpers need it")
    if method.extra_data and not dataset.spare:
        raise UsageError(
            f"{method.brief} trains on images outside the training split, and {protocol.name} uses every image of "
            f"its training pool ({dataset.origin}); choose a protocol whose splits leave some over"
        )
    used = used_components(registry, protocol, method)
    changes = " ".join(brief(key, value) for key, value in sorted(protocol.overrides.items()))
    return RunSpec(
        protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
        recipe=protocol.recipe,
        method=method.canonical,
        dataset=dataset,
        seed=seed,
        numerics=NUMERICS,
        plugins=plugin_sources(used),
        helpers={
            name: make_spec(registry, protocol, compose(registry, text), dataset, seed, (*helped, method.canonical)).key
            for name, text in sorted(method.helpers.items())
        },
        extra_data=dataset.spare if method.extra_data else "",
        label=f"{method.brief} [{changes}]" if changes else method.brief,
    )


def used_components(registry: Registry, protocol: Protocol, method: Composed) -> list[Component]:
    """Every component that a run of this method under this protocol is made of."""
    return [*method.members, *(resolve(registry, kind, text) for kind, text in components(protocol))]


def plugin_sources(used: list[Component]) -> dict[str, str]:
    """ "distribution version" -> source hash of what is behind these components (several, where they lie apart)."""
    hashes: dict[str, set[str]] = {}
    for component in used:
        offer = component.offer
        if not offer.provider.built_in:
            hashes.setdefault(str(offer.provider), set()).add(offer.provenance["source"])
    return {name: " ".join(sorted(found)) for name, found in sorted(hashes.items())}
