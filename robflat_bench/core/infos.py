"""Rows of the catalogue: what a component is called, takes and costs. Reading them never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from robflat_bench.core.params import Params

Kind = Literal["method", "modifier", "attack", "measure", "backbone", "dataset", "launcher"]

Joint = Literal["augment", "batch", "target", "attack", "model", "loss", "backward", "after_step"]
"""Where a modifier takes hold of a training step; see `method`."""
EXCLUSIVE: tuple[Joint, ...] = ("attack", "backward")
"""Joints that admit one claimant; at the others modifiers chain in the order of their rank."""


@dataclass(frozen=True)
class Info:
    """One row of a catalogue.

    name: lower case with dashes, unique within its kind. summary: one line. factory: "package.module:Class".
    params: the pydantic model of its parameters. citation: where it comes from. title: how tables name it, a
    format string over the parameters ("PGD-{steps} x {restarts}"); by default the canonical text.
    example: parameters for a quick trial, as the conformance kit makes it.
    """

    name: str
    summary: str
    factory: str
    params: type[Params] = Params
    citation: str = ""
    title: str = ""
    example: Mapping[str, Any] = field(default_factory=dict, hash=False)

    kind: ClassVar[Kind]


@dataclass(frozen=True)
class Passes:
    """Passes of each image of a batch, as formulas in T (the recipe's attack steps) and the component's parameters.

    at_most: they are an upper bound, for the data decide how many are made.
    """

    forward: str = "0"
    backward: str = "0"
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'at most ' * self.at_most}{self.forward} forward, {self.backward} backward"


@dataclass(frozen=True)
class MethodInfo(Info):
    """A training method.

    attack, loss: image passes of its inner attack and of one evaluation of its loss, in one update.
    updates: how often each batch is used. claims: joints it needs for itself; a modifier of such a joint cannot be
    added to it.
    helpers: name -> method text of networks trained first, under the same protocol, recipe and seed.
    untrained: shell pattern of parameter names that its loss does not move -> why not.
    """

    attack: Passes = Passes()
    loss: Passes = Passes("1", "1")
    updates: str = "1"
    claims: tuple[Joint, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict, hash=False)
    untrained: Mapping[str, str] = field(default_factory=dict, hash=False)
    kind: ClassVar[Kind] = "method"


@dataclass(frozen=True)
class ModifierInfo(Info):
    """Something that wraps any method.

    joints: where it takes hold. rank: its place among the modifiers of a joint, lower first. attack, loss: image
    passes it adds to the method's. losses: how often the loss is evaluated in one update. helpers: as a method's.
    extra_data: whether it trains on images outside the protocol's training split.
    """

    joints: tuple[Joint, ...] = ()
    rank: int = 0
    attack: Passes = Passes()
    loss: Passes = Passes()
    losses: str = "1"
    helpers: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra_data: bool = False
    kind: ClassVar[Kind] = "modifier"


@dataclass(frozen=True)
class AttackInfo(Info):
    """An attack inside the threat model's ball and the image box.

    passes: of each image, as formulas in its parameters; None where a search decides how many.
    """

    passes: Passes | None = None
    kind: ClassVar[Kind] = "attack"


Rescaling = Literal["layers", "filters", "units", "logits"]
"""All convolutions whose normalisation undoes it by one factor; each of their filters by its own; what enters a ReLU
unit by a factor and what leaves it by its inverse, each unit by its own; the last layer, and so the logits."""


@dataclass(frozen=True)
class MeasureInfo(Info):
    """A number about a trained model.

    couplings: how adversarial examples follow the weights; none where no example is read. passes: coupling ("": none)
    -> image passes, as formulas of the parameters, A and B the forward and backward passes of one attack; not declared
    where a search decides. powers: what happens to the value when weights are rescaled by c and, but for the logits,
    the function stays: c to that power (0: unchanged); a rescaling that is not named moves it by no fixed power.
    """

    couplings: tuple[str, ...] = ()
    passes: Mapping[str, Passes] = field(default_factory=dict, hash=False)
    powers: Mapping[Rescaling, float] = field(default_factory=dict, hash=False)
    kind: ClassVar[Kind] = "measure"


@dataclass(frozen=True)
class BackboneInfo(Info):
    """A network constructor: images in [0,1] in, logits out.

    pretrained: its weights come with it; otherwise they are drawn afresh from the run's seed."""

    pretrained: bool = False
    kind: ClassVar[Kind] = "backbone"


@dataclass(frozen=True)
class DatasetInfo(Info):
    """A source of labelled images with a checksum."""

    kind: ClassVar[Kind] = "dataset"


@dataclass(frozen=True)
class LauncherInfo(Info):
    """Something that runs command lines."""

    kind: ClassVar[Kind] = "launcher"
