"""Protocols: versioned TOML in two parts.

`[fixed]` is what every row of a board shares: data, splits, backbone, threat model, evaluation. The hash of its
content (not of its spelling) *is* the board. `[recipe]` holds training defaults that a run may change with
`--set recipe.X=...`: such a run keeps its board and shows the change in its name.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.config.recipe import Recipe
from robflat_bench.core import Kind, Number, PluginError, UsageError
from robflat_bench.registry.components import parse_value, resolve, without_negative_zeros
from robflat_bench.registry.registry import Registry
from robflat_bench.registry.validation import validate

DEFAULT = "digits-linf"
MAX_BYTES = 64 * 1024
Checkpoint = Literal["best", "last"]
Checkpoints = Annotated[
    tuple[Checkpoint, ...], Field(min_length=1), AfterValidator(lambda value: tuple(sorted({*value})))
]
SplitName = Literal["train", "heldout", "test"]


class Strict(BaseModel):
    """Frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Slice(Strict):
    """Examples of a pool whose canonical index i has start <= i < stop (i modulo `modulo`, where given)."""

    pool: str
    start: NonNegativeInt
    stop: PositiveInt
    modulo: PositiveInt | None = None
    count: PositiveInt
    """How many examples that is: a partial copy of the data that lacks some is refused."""


class Data(Strict):
    """Which dataset and which of its examples; pixels: SHA-256 of the canonical uint8 NHWC pixels per split."""

    dataset: str
    train: Slice
    heldout: Slice
    test: Slice
    pixels: dict[SplitName, str] = Field(default_factory=dict)


class ThreatModel(Strict):
    """||x' - x||_norm <= epsilon on images in [0,1]."""

    norm: Literal["linf"] = "linf"
    epsilon: Number = Field(ge=0, le=1)


class Selection(Strict):
    """The best checkpoint has the lowest robust error under `attack` on held-out examples, tried `every` epochs."""

    attack: str
    every: PositiveInt = 1


class Attacked(Strict):
    """One evaluation attack on the first `test` test and `train` training examples."""

    attack: str
    test: PositiveInt
    train: NonNegativeInt = 0
    checkpoints: Checkpoints = ("best", "last")


class Measured(Strict):
    """One measure on the first `test` test examples and, for comparison, the first `train` training examples."""

    measure: str
    test: PositiveInt
    train: NonNegativeInt = 0
    checkpoints: Checkpoints = ("best", "last")


class Fixed(Strict):
    """What every row of the board shares. The first attack is the reference: robust loss and gap are its."""

    backbone: str
    precision: Literal["float32", "float64"]
    training_precision: Literal["same", "bfloat16"] = "same"
    """bfloat16: training runs under torch.autocast, its weights and everything evaluated stay float32. Fast where the
    processor computes in bfloat16, ten times slower elsewhere; never chosen by the machine."""
    threads: PositiveInt
    """Intra-op threads on a CPU; they change the last bits, so the protocol names them."""
    seed: NonNegativeInt = 0
    """Key of every random number in evaluation; independent of the run's seed, so models meet the same draws."""
    data: Data
    threat: ThreatModel
    selection: Selection
    attacks: tuple[Attacked, ...] = Field(min_length=1)
    measures: tuple[Measured, ...] = ()

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
                    raise ValueError(f"{row} asks for more {split} examples than data.{split} has")
        return self

    @model_validator(mode="after")
    def _names_nothing_twice(self) -> Fixed:
        """For one checkpoint: a record has one place for each attack and each measure."""
        named = [("attack", row.attack, checkpoint) for row in self.attacks for checkpoint in row.checkpoints]
        named += [("measure", row.measure, checkpoint) for row in self.measures for checkpoint in row.checkpoints]
        for kind, text, checkpoint in named:
            if named.count((kind, text, checkpoint)) > 1:
                raise ValueError(f"the {kind} {text} is there twice for the checkpoint '{checkpoint}'")
        return self


@dataclass(frozen=True)
class Protocol:
    """A validated protocol; component texts in `fixed` are canonical."""

    name: str
    version: str
    summary: str
    fixed: Fixed
    recipe: Recipe
    defaults: Recipe

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical `[fixed]`: the board."""
        return content_hash(self.fixed.model_dump(mode="json"))

    @property
    def overrides(self) -> dict[str, Any]:
        """What of the recipe differs from this protocol's defaults."""
        return {
            key: value
            for key, value in self.recipe.model_dump(mode="json").items()
            if value != getattr(self.defaults, key)
        }


class _File(Strict):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    version: str = Field(pattern=r"^\d+\.\d+$")
    summary: str
    fixed: Fixed
    recipe: Recipe


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; -0.0 is 0.0."""
    return json.dumps(without_negative_zeros(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def load(registry: Registry, name: str = DEFAULT, settings: tuple[str, ...] = ()) -> Protocol:
    """The protocol of that name or file, with `--set` settings applied.

    A setting of `fixed` leaves the board: the protocol's name gets the new hash as a suffix.
    """
    text = _text(registry, name)
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or more digits or brackets than Python reads
        raise UsageError(f"protocol {name} is not valid TOML: {error}") from None
    original = _validated(registry, name, content)
    if name in registry.protocols and original.name != name:
        raise PluginError(f"protocol {name} calls itself {original.name}; its file must be called so")
    for setting in settings:
        _apply(content, setting)
    changed = _validated(registry, name, content)
    loaded = Protocol(changed.name, changed.version, changed.summary, changed.fixed, changed.recipe, original.recipe)
    if changed.fixed != original.fixed:
        return Protocol(
            f"{loaded.name}-{loaded.hash[:8]}",
            loaded.version,
            loaded.summary,
            loaded.fixed,
            loaded.recipe,
            original.recipe,
        )
    return loaded


def _text(registry: Registry, name: str) -> str:
    if name in registry.protocols:
        return registry.protocol(name)[0]
    path = Path(name)
    if path.suffix != ".toml":
        raise registry.unknown("protocol", name, registry.protocols)
    return read_text(path, "protocol")


def read_text(path: Path, what: str) -> str:
    """A small text file; UsageError that says of what, where it cannot be read or is too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{what} {path} is larger than {MAX_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} cannot be read: {error}") from None


_COMPONENTS: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (("backbone",), "backbone"),
    (("data", "dataset"), "dataset"),
    (("selection", "attack"), "attack"),
    (("attacks", "*", "attack"), "attack"),
    (("measures", "*", "measure"), "measure"),
)


def _validated(registry: Registry, name: str, content: dict[str, Any]) -> _File:
    file = validate(_File, content, f"protocol {name}")
    fixed = file.fixed.model_dump(mode="json")
    for path, kind in _COMPONENTS:
        _canonicalise(registry, fixed, path, kind)
    return file.model_copy(update={"fixed": validate(Fixed, fixed, f"protocol {name}")})


def _canonicalise(registry: Registry, node: Any, path: tuple[str, ...], kind: Kind) -> None:
    step, rest = path[0], path[1:]
    if step == "*":
        for item in node:
            _canonicalise(registry, item, rest, kind)
    elif rest:
        _canonicalise(registry, node[step], rest, kind)
    else:
        node[step] = resolve(registry, kind, node[step]).canonical


def _apply(content: dict[str, Any], setting: str) -> None:
    """`recipe.epochs=3` into the parsed TOML."""
    path, equals, value = setting.partition("=")
    steps = path.strip().split(".")
    if not equals or len(steps) < 2 or steps[0] not in ("recipe", "fixed"):
        raise UsageError(f"--set {setting}: write recipe.KEY=VALUE (or fixed.KEY=VALUE, which leaves the board)")
    node = content
    for step in steps[:-1]:
        node = node.setdefault(step, {})
        if not isinstance(node, dict):
            raise UsageError(f"--set {setting}: '{step}' is not a table")
    text = value.strip()
    component = "(" in text and not text.startswith(('"', "'", "["))
    node[steps[-1]] = text if component else parse_value(text, setting)


def components(protocol: Protocol) -> list[tuple[Kind, str]]:
    """Every component the fixed part names, as (kind, canonical text)."""
    fixed = protocol.fixed
    return [
        ("backbone", fixed.backbone),
        ("dataset", fixed.data.dataset),
        ("attack", fixed.selection.attack),
        *(("attack", row.attack) for row in fixed.attacks),
        *(("measure", row.measure) for row in fixed.measures),
    ]
