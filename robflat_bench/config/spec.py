"""RunSpec: one frozen, canonical description of a run. Its key hashes everything that can change a number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from robflat_bench import NUMERICS
from robflat_bench.config.protocol import Digest, Protocol, ProtocolVersion, components, content_hash
from robflat_bench.config.recipe import Recipe, brief_setting
from robflat_bench.config.threat import check_norm
from robflat_bench.core import Seed, Strict, UsageError
from robflat_bench.registry.components import Component, Composed, compose, resolve, slug
from robflat_bench.registry.registry import Registry


class ProtocolRef(Strict):
    """The board that a run belongs to."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,72}$", description="Name of the protocol: a folder's name.")
    version: ProtocolVersion = Field(description="Version of the protocol.")
    hash: Digest = Field(description="SHA-256 of the canonical `[fixed]`.")


class DatasetRef(Strict):
    """The data as loaded."""

    name: str = Field(description="Canonical text of the dataset.")
    checksum: Digest = Field(description="SHA-256 over the pixels and labels of all splits.")
    spare: Digest | Literal[""] = Field(
        default="", description="SHA-256 of the training pool's pixels that no split uses; empty if there are none."
    )
    canonical: bool = Field(description="Whether the data is byte-identical to the original.")
    origin: str = Field(description="Where the data came from, in one line.")


class RunSpec(Strict):
    """A run."""

    protocol: ProtocolRef = Field(description="The board.")
    recipe: Recipe = Field(description="How it trains.")
    method: str = Field(description="Canonical text of the method with its modifiers.")
    dataset: DatasetRef = Field(description="The data.")
    seed: Seed = Field(description="Seed of all random numbers in training.")
    numerics: int = Field(ge=1, lt=2**31, description="`robflat_bench.NUMERICS` of the code that makes it.")
    plugins: dict[str, str] = Field(description='"distribution version" -> hash of the source of its components.')
    helpers: dict[str, str] = Field(
        default_factory=dict, description="Name -> key of the runs whose networks this run learns from."
    )
    extra_data: Digest | Literal[""] = Field(
        default="", description="SHA-256 of the images outside the training split that it trains on."
    )
    label: str = Field(
        pattern=r"^[a-z0-9][^\x00-\x1f\x7f-\x9f]{0,4095}$",
        description="Name of its row for people: the brief method, and settings of the recipe.",
    )

    @property
    def identity(self) -> dict[str, Any]:
        """The content of the key.

        Names, versions and labels are left out. So are fields that came with later versions, where they are empty or
        as before: older records keep their keys.
        """
        later = {"helpers": self.helpers, "extra_data": self.extra_data}
        return {
            "protocol": self.protocol.hash,
            "recipe": self.recipe.model_dump(mode="json", exclude={"shards"} if self.recipe.shards == 1 else None),
            "method": self.method,
            "dataset": self.dataset.checksum,
            "seed": self.seed,
            "numerics": self.numerics,
            "plugins": self.plugins,
            **{name: value for name, value in later.items() if value},
        }

    @property
    def key(self) -> str:
        """The first 16 hex digits of the SHA-256 of the canonical identity."""
        return content_hash(self.identity)[:16]

    @property
    def folder(self) -> str:
        """The run's folder below the store."""
        return f"{self.protocol.name}/{slug(self.label)}/seed-{self.seed}-{self.key}"


def make_spec(
    registry: Registry,
    protocol: Protocol,
    method: Composed,
    dataset: DatasetRef,
    seed: int,
    helped: tuple[str, ...] = (),
) -> RunSpec:
    """Describe a run.

    Parameters
    ----------
    registry : Registry
        Resolves the protocol's components and the method's helpers.
    protocol : Protocol
        With the run's settings applied.
    method : Composed
        The method with its modifiers.
    dataset : DatasetRef
        The data as loaded.
    seed : int
        Seed of training.
    helped : tuple of str
        Canonical texts of the methods that this one is a helper of, directly or indirectly.

    Returns
    -------
    RunSpec
        Plugins behind its components enter with their version and the hash of their source.

    Raises
    ------
    UsageError
        The method is its own helper, trains on spare images and there are none, attacks from the images where the
        gradient of its objective is zero, is not defined under the threat's norm, or cannot be trained in shards.
    """
    _check_trainable(protocol, method, dataset, helped)
    changes = " ".join(brief_setting(key, value) for key, value in sorted(protocol.overrides.items()))
    helped = (*helped, method.canonical)
    helpers = {name: compose(registry, text) for name, text in sorted(method.helpers.items())}
    return RunSpec(
        protocol=ProtocolRef(name=protocol.name, version=protocol.version, hash=protocol.hash),
        recipe=protocol.recipe,
        method=method.canonical,
        dataset=dataset,
        seed=seed,
        numerics=NUMERICS,
        plugins=plugin_sources(used_components(registry, protocol, method)),
        helpers={name: make_spec(registry, protocol, one, dataset, seed, helped).key for name, one in helpers.items()},
        extra_data=dataset.spare if method.extra_data else "",
        label=f"{method.brief} [{changes}]" if changes else method.brief,
    )


def run_options(spec: RunSpec, own: Protocol, known: str) -> list[str]:
    """Options of `robflat-bench run` that train a spec's method, recipe and seed.

    Parameters
    ----------
    spec : RunSpec
        The run.
    own : Protocol
        Its protocol; settings of the recipe that differ from the defaults are named.
    known : str
        What `--protocol` takes.
    """
    changes = replace(own, recipe=spec.recipe).overrides
    settings = [part for key, value in changes.items() for part in ("--set", f"recipe.{key}={value}")]
    return ["--method", spec.method, "--protocol", known, "--seed", str(spec.seed), *settings]


def _check_trainable(protocol: Protocol, method: Composed, dataset: DatasetRef, helped: tuple[str, ...]) -> None:
    """UsageError for the reasons that `make_spec` names."""
    if method.canonical in helped:
        raise UsageError(f"{method.brief} would have to be trained before itself: its helpers need it")
    if method.extra_data and not dataset.spare:
        raise UsageError(
            f"{method.brief} trains on images outside the training split, and {protocol.name} uses every image of "
            f"its training pool ({dataset.origin}); choose a protocol whose splits leave some over"
        )
    if protocol.recipe.attack_start == "zero" and method.method.info.random_start:
        raise UsageError(
            f"{method.brief} attacks an objective whose gradient is zero at the images, so with attack_start=zero it "
            'would follow rounding errors; start at random: --set "recipe.attack_start=normal"'
        )
    for member in method.members:
        check_norm(member, protocol.fixed.threat.norm)
    for member in method.members if protocol.recipe.shards > 1 else ():
        if member.info.sharded is not True:
            reason = member.info.sharded or "its catalogue row does not declare sharded=True"
            raise UsageError(
                f"{member.name} is not trained in shards: {reason}; train it without: --set recipe.shards=1"
            )


def used_components(registry: Registry, protocol: Protocol, method: Composed) -> list[Component]:
    """Every component of a run of this method under this protocol."""
    return [*method.members, *(resolve(registry, kind, text) for kind, text in components(protocol))]


def plugin_sources(used: list[Component]) -> dict[str, str]:
    """ "distribution version" -> source hash of each plugin behind these components.

    A plugin whose components lie in several packages has several hashes, sorted and separated by spaces.
    """
    hashes: dict[str, set[str]] = {}
    for component in used:
        offer = component.offer
        if not offer.provider.built_in:
            hashes.setdefault(str(offer.provider), set()).add(offer.provenance["source"])
    return {name: " ".join(sorted(found)) for name, found in sorted(hashes.items())}
