"""Protocols: versioned TOML files in two parts.

`[fixed]` holds what every row of a board shares: data, splits, backbone, threat model, evaluation. The hash of its
content, not of its spelling, identifies the board. `[recipe]` holds training defaults. A run with `--set recipe.X=...`
stays on the board, and its name shows the setting; a run with `--set fixed.X=...` leaves it.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from robflat_bench.config.recipe import Recipe
from robflat_bench.config.threat import ThreatModel, check_norm, in_pixels
from robflat_bench.core import MAX_INTEGER, Kind, PluginError, Seed, Strict, UsageError
from robflat_bench.core.files import read_regular
from robflat_bench.registry.components import resolve, without_negative_zeros
from robflat_bench.registry.grammar import parse_value
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import nearest, validate

DEFAULT = "digits-linf"
MAX_BYTES = 64 * 1024
Checkpoint = Literal["best", "last"]
Checkpoints = Annotated[
    tuple[Checkpoint, ...], Field(min_length=1), AfterValidator(lambda value: tuple(sorted({*value})))
]
SplitName = Literal["train", "heldout", "test"]
ProtocolVersion = Annotated[str, Field(pattern=r"^\d{1,9}\.\d{1,9}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in hex."""


MAX_EXAMPLES = 10**9
Position = Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]
Count = Annotated[int, Field(ge=1, le=MAX_EXAMPLES)]


class Slice(Strict):
    """A range of a pool's examples by their canonical index i: start <= i < stop."""

    pool: str = Field(description="Part of the dataset, e.g. train or test.")
    start: Position = Field(description="First index of the slice.")
    stop: Count = Field(description="First index after the slice.")
    modulo: Count | None = Field(default=None, description="If given, i modulo this number is compared.")
    count: Count = Field(description="Number of examples; a copy of the data that lacks some is refused.")


class Data(Strict):
    """The dataset, and its examples for training, selection and test."""

    dataset: str = Field(description="A dataset with its parameters.")
    train: Slice = Field(description="Training examples.")
    heldout: Slice = Field(description="Examples that choose the best checkpoint and are never evaluated.")
    test: Slice = Field(description="Examples under evaluation.")
    pixels: dict[SplitName, str] = Field(
        default_factory=dict,
        description="Split -> SHA-256 of its canonical pixels, uint8 NHWC; data that agrees with all is canonical.",
    )


class Selection(Strict):
    """The choice of the best checkpoint: the lowest robust error on held-out examples.

    Ties are decided by the robust loss, then in favour of the earlier epoch.
    """

    attack: str = Field(description="Attack on the held-out examples, with its parameters.")
    every: int = Field(default=1, ge=1, le=MAX_INTEGER, description="Epochs between two checks.")


class Attacked(Strict):
    """An evaluation attack, and the examples it is run on."""

    attack: str = Field(description="An attack with its parameters.")
    test: Count = Field(description="Number of test examples, the first ones of the split.")
    train: Position = Field(default=0, description="Number of training examples, for the generalization gap.")
    checkpoints: Checkpoints = Field(default=("best", "last"), description="The checkpoints that are attacked.")


class Measured(Strict):
    """A measure, and the examples it reads."""

    measure: str = Field(description="A measure with its parameters.")
    test: Count = Field(description="Number of test examples, the first ones of the split.")
    train: Position = Field(default=0, description="Number of training examples, for comparison.")
    checkpoints: Checkpoints = Field(default=("best", "last"), description="The checkpoints that are measured.")


class Fixed(Strict):
    """What every row of a board shares: data, splits, backbone, threat model, evaluation."""

    backbone: str = Field(description="A backbone with its parameters.")
    precision: Literal["float32", "float64"] = Field(description="Precision of weights and of all evaluation.")
    training_precision: Literal["same", "bfloat16"] = Field(
        default="same",
        description="bfloat16: training runs under torch.autocast; weights and evaluation stay float32. Fast on "
        "processors that compute in bfloat16, ten times slower on others; the machine never chooses it.",
    )
    threads: int = Field(
        ge=1, le=1024, description="Intra-op threads on a CPU. Their number changes the last bits of results."
    )
    seed: Seed = Field(
        default=0,
        description="Seed of all random numbers in evaluation. It is not the run's seed: all models meet equal draws.",
    )
    data: Data = Field(description="Dataset and splits.")
    threat: ThreatModel = Field(description="What the adversary may do in evaluation.")
    selection: Selection = Field(description="How the best checkpoint is chosen.")
    attacks: tuple[Attacked, ...] = Field(
        min_length=1,
        description="Evaluation attacks. The first one is the reference: robust loss and gaps are measured under it.",
    )
    measures: tuple[Measured, ...] = Field(default=(), description="Measures, in the order of the board.")

    @model_validator(mode="after")
    def _autocast_begins_with_float32(self) -> Fixed:
        if self.training_precision == "bfloat16" and self.precision != "float32":
            raise ValueError(f"training_precision bfloat16 needs precision float32, not {self.precision}")
        return self

    @model_validator(mode="after")
    def _reference_covers_everything(self) -> Fixed:
        if set(self.attacks[0].checkpoints) != {"best", "last"}:
            raise ValueError("the first attack is the reference and must cover both checkpoints")
        for row in (*self.attacks, *self.measures):
            for split in ("test", "train"):
                if getattr(row, split, 0) > getattr(self.data, split).count:
                    raise ValueError(f"{row} asks for more {split} examples than data.{split} has; lower {split}")
        return self

    @model_validator(mode="after")
    def _names_nothing_twice(self) -> Fixed:
        """A record has one place for each attack and each measure of a checkpoint."""
        named = [("attack", row.attack, checkpoint) for row in self.attacks for checkpoint in row.checkpoints]
        named += [("measure", row.measure, checkpoint) for row in self.measures for checkpoint in row.checkpoints]
        ((kind, text, checkpoint), count), *_ = Counter(named).most_common()
        if count > 1:
            raise ValueError(f"the {kind} {text} is there twice for the checkpoint '{checkpoint}'")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical content: it identifies the board."""
        return content_hash(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Protocol:
    """A validated protocol.

    Parameters
    ----------
    name, version, summary, checksum : str
        As in the file; a run with settings of `fixed` has the new hash at the end of its protocol's name.
    fixed : Fixed
        What all rows of the board share; texts of components are canonical.
    recipe : Recipe
        How this run trains.
    defaults : Recipe
        The file's recipe, without the run's settings.
    """

    name: str
    version: str
    summary: str
    fixed: Fixed
    recipe: Recipe
    defaults: Recipe
    checksum: str = ""

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical `[fixed]`: it identifies the board."""
        return self.fixed.hash

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings of the recipe that differ from the protocol's defaults."""
        defaults = self.defaults.model_dump(mode="json")
        return {key: value for key, value in self.recipe.model_dump(mode="json").items() if value != defaults[key]}


class _File(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="The file is called after it.")
    version: ProtocolVersion = Field(description="major.minor; for people, not part of the hash.")
    summary: str = Field(description="One line.")
    checksum: Digest | Literal[""] = Field(
        default="",
        description="SHA-256 over the canonical pixels and labels of all splits, if known; not part of the hash. "
        "A leaderboard refuses an entry that calls other data canonical.",
    )
    fixed: Fixed = Field(description="What all rows share.")
    recipe: Recipe = Field(description="Training defaults.")

    @model_validator(mode="after")
    def _trains_in_pixels(self) -> _File:
        for key in ("epsilon", "attack_step"):
            in_pixels(getattr(self.recipe, key), self.fixed.threat.norm, f"'recipe.{key}'")
        return self


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; -0.0 is 0.0."""
    return json.dumps(without_negative_zeros(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def load(registry: Registry, name: str = DEFAULT, settings: tuple[str, ...] = ()) -> Protocol:
    """Read and validate a protocol.

    Parameters
    ----------
    registry : Registry
        Provides the protocols of the package and of plugins, and the components that a protocol names.
    name : str
        Name of a protocol, NAME@VERSION of an earlier version, or path of a TOML file.
    settings : tuple of str
        As after `--set`: "recipe.epochs=3". A setting of `fixed` makes another board: its hash is added to the name.

    Raises
    ------
    UsageError
        The protocol does not exist, is not valid TOML, or has a wrong value.
    PluginError
        Two plugins offer the protocol, or its file has another name than its content.
    """
    content = parse_toml(_text(registry, name), f"protocol {name}")
    original = _validated(registry, name, content)
    own = original.name + ("@" in name) * f"@{original.version}"
    if registry.has_protocol(name) and own != name:
        raise PluginError(f"protocol {name} calls itself {own}; rename its file to {own}.toml")
    for setting in settings:
        _apply(content, setting)
    changed = _validated(registry, name, content)
    suffix = "" if changed.fixed == original.fixed else f"-{changed.fixed.hash[:8]}"
    label = f"{changed.name}{suffix}"
    same = (changed.version, changed.summary, changed.fixed, changed.recipe, original.recipe)
    return Protocol(label, *same, changed.checksum)


def named(registry: Registry, name: str, version: str) -> str:
    """What `--protocol` takes for that name and version: NAME or NAME@VERSION; "" where it is not known."""
    candidates = [known for known in (name, f"{name}@{version}") if registry.has_protocol(known)]
    return next((known for known in candidates if load(registry, known).version == version), "")


def recorded(registry: Registry, name: str, version: str) -> str:
    """What `--protocol` takes for the protocol of a record: `named`, or where that version is not known the version in
    force; "" where no protocol has the name."""
    return named(registry, name, version) or (name if registry.has_protocol(name) else "")


def _text(registry: Registry, name: str) -> str:
    if registry.has_protocol(name):
        return registry.protocol(name)[0]
    path = Path(name)
    if path.suffix != ".toml":
        raise registry.unknown("protocol", name, registry.protocols)
    return read_text(path, "protocol")


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The content of a TOML document; UsageError that begins with `what` where it is not valid."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or more digits or brackets than Python reads
        raise UsageError(f"{what} is not valid TOML: {error}") from None


def read_text(path: Path, what: str) -> str:
    """The content of a text file; UsageError that begins with `what` where it is no regular file of at most
    `MAX_BYTES`, or not UTF-8."""
    try:
        return read_regular(path, MAX_BYTES).decode()
    except (OSError, ValueError) as error:  # not UTF-8, or a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{what} {path} cannot be read: {reason}; give a TOML file, or the name of a {what}") from None


def _tables(fixed: dict[str, Any]) -> list[tuple[Kind, dict[str, Any]]]:
    """(kind, table) for every component that `[fixed]` names: the component's text is `table[kind]`."""
    single: list[tuple[Kind, dict[str, Any]]]
    single = [("backbone", fixed), ("dataset", fixed["data"]), ("attack", fixed["selection"])]
    return [*single, *(("attack", row) for row in fixed["attacks"]), *(("measure", row) for row in fixed["measures"])]


def _validated(registry: Registry, name: str, content: dict[str, Any]) -> _File:
    """The content with canonical texts of components; validated again, for two texts may name one component."""
    file = validate(_File, content, f"protocol {name}")
    fixed = file.fixed.model_dump(mode="json")
    for kind, table in _tables(fixed):
        component = resolve(registry, kind, table[kind])
        check_norm(component, file.fixed.threat.norm)
        table[kind] = component.canonical
    return file.model_copy(update={"fixed": validate(Fixed, fixed, f"protocol {name}")})


def _apply(content: dict[str, Any], setting: str) -> None:
    """Write a setting, `recipe.epochs=3`, into the parsed TOML."""
    path, equals, value = setting.partition("=")
    steps = path.strip().split(".")
    if not equals or len(steps) < 2 or steps[0] not in ("recipe", "fixed"):
        raise _unreadable(setting)
    node = content
    for step in steps[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise UsageError(f"--set {setting}: '{step}' is not a table")
    text = value.strip()
    component = "(" in text and not text.startswith(('"', "'", "["))
    node[steps[-1]] = text if component else parse_value(text, setting)


EVALUATION = {
    **{name: f"threat.{name}" for name in ThreatModel.model_fields},
    **{name: name for name in ("precision", "threads", "seed", "backbone")},
}
"""Last word of a key of `[fixed]` that evaluation reads -> the key."""


def _unreadable(setting: str) -> UsageError:
    """The error of a setting that is not recipe.KEY=VALUE or fixed.KEY=VALUE; it names the keys that may be meant."""
    name, *value = re.split(r"[\s=]+", setting.strip(), maxsplit=1)
    written = "".join(value) or "VALUE"
    fixed = EVALUATION.get(name.rpartition(".")[2])
    key = nearest(name.removeprefix("recipe."), Recipe.model_fields)
    meant = [f"--set recipe.{key}={written} for training"] if key and (not fixed or key == name) else []
    meant += [f"--set fixed.{fixed}={written} for evaluation"] if fixed else []
    told = ", ".join(meant) or f"keys are {', '.join(Recipe.model_fields)}"
    return UsageError(f"--set {setting}: write recipe.KEY=VALUE, or fixed.KEY=VALUE, which leaves the board; {told}")


def components(protocol: Protocol) -> list[tuple[Kind, str]]:
    """(kind, canonical text) of every component that `[fixed]` names."""
    return [(kind, table[kind]) for kind, table in _tables(protocol.fixed.model_dump(mode="json"))]
