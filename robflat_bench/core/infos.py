"""Rows of the catalogue: name, parameters and declared properties of each component. Reading them needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from robflat_bench.core.params import Params

Kind = Literal["method", "modifier", "attack", "measure", "backbone", "dataset", "launcher"]

Joint = Literal["augment", "batch", "target", "attack", "model", "loss", "backward", "after_step"]
"""The places of a training step that a modifier can change; see `method`."""
EXCLUSIVE: tuple[Joint, ...] = ("attack", "backward")
"""Joints that at most one modifier may change. At the other joints, modifiers act in the order of their rank."""


@dataclass(frozen=True)
class Info:
    """One row of the catalogue.

    Parameters
    ----------
    name : str
        Lower case, digits and dashes; unique within its kind.
    summary : str
        One line.
    factory : str
        The class or function, "package.module:Class"; imported when the component is first used.
    params : type of Params
        The model of its parameters.
    citation : str
        The paper it comes from.
    title : str
        Its name in tables: a format string over the parameters, e.g. "PGD-{steps} x {restarts}". By default the
        canonical text.
    example : Mapping
        Parameters for a quick trial in the conformance kit.
    """

    name: str
    summary: str
    factory: str
    params: type[Params] = Params
    citation: str = ""
    title: str = ""
    example: Mapping[str, Any] = field(default_factory=dict, hash=False)

    kind: ClassVar[Kind]
    __pydantic_config__: ClassVar = ConfigDict(strict=True, revalidate_instances="always")


@dataclass(frozen=True)
class Passes:
    """Image passes of each image of a batch.

    Parameters
    ----------
    forward, backward : str
        Formulas of integers, +, -, *, //, brackets and (name == 0), which is 1 or 0, in T (the recipe's attack steps,
        for methods and modifiers) and the component's parameters.
    at_most : bool
        The formulas are an upper bound: the data decide how many passes are made, or the time.
    least : tuple of str
        Where they are an upper bound: formulas of the forward and backward passes that are made at least. A record of
        fewer is refused.
    """

    forward: str = "0"
    backward: str = "0"
    at_most: bool = False
    least: tuple[str, str] = ("0", "0")

    def __str__(self) -> str:
        return f"{'at most ' * self.at_most}{self.forward} forward, {self.backward} backward"


@dataclass(frozen=True)
class MethodInfo(Info):
    """A training method: `Info`, and what its training step does.

    Parameters
    ----------
    attack, loss : Passes
        Image passes of its inner attack, and of one evaluation of its loss, in one update.
    updates : str
        Formula of the updates that are made with each batch.
    claims : tuple of Joint
        Joints that it uses itself; modifiers of these joints cannot be added to it.
    helpers : Mapping of str to str
        Name -> method text of networks that are trained first, under the same protocol, recipe and seed.
    untrained : Mapping of str to str
        Shell pattern of parameter names that its loss does not train -> the reason.
    random_start : bool
        Whether the recipe's attack must start at random, because the gradient of its objective is zero at the images.
    sharded : bool or str
        Whether batches may be cut into shards (`recipe.shards`), or the reason why not. True if attack and loss treat
        each example apart from the others of its batch, batch normalisation aside, and keep nothing from one update to
        the next, except in `after_step`. What the attack keeps for the loss is no obstacle.
    """

    attack: Passes = Passes()
    loss: Passes = Passes("1", "1")
    updates: str = "1"
    claims: tuple[Joint, ...] = ()
    helpers: Mapping[str, str] = field(default_factory=dict, hash=False)
    untrained: Mapping[str, str] = field(default_factory=dict, hash=False)
    random_start: bool = False
    sharded: bool | str = False
    kind: ClassVar[Kind] = "method"


@dataclass(frozen=True)
class ModifierInfo(Info):
    """A change that can be added to any method: `Info`, and what it changes.

    Parameters
    ----------
    joints : tuple of Joint
        The places of a training step that it changes.
    rank : int
        Its place among the modifiers of a joint; lower ranks act first.
    attack, loss : Passes
        Image passes that it adds to the method's attack and to one evaluation of its loss.
    losses : str
        Formula of the evaluations of the loss in one update.
    least_losses : str
        Formula of the evaluations that are made at least, where `losses` is an upper bound; "" where it is exact.
    helpers : Mapping of str to str
        As a method's.
    extra_data : bool
        Whether it trains on images outside the protocol's training split.
    replaces_augmentation : bool
        Whether it augments in place of `recipe.augmentation`, which is then skipped.
    sharded : bool or str
        As a method's. Only what it does at `backward`, `after_step` and `model` may depend on earlier updates.
    """

    joints: tuple[Joint, ...] = ()
    rank: int = 0
    attack: Passes = Passes()
    loss: Passes = Passes()
    losses: str = "1"
    least_losses: str = ""
    helpers: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra_data: bool = False
    replaces_augmentation: bool = False
    sharded: bool | str = False
    kind: ClassVar[Kind] = "modifier"


@dataclass(frozen=True)
class AttackInfo(Info):
    """An attack inside the threat model's ball and [0,1]: `Info`, and its cost.

    Parameters
    ----------
    passes : Passes or None
        Passes of each image, as formulas in its parameters; None where a search decides how many are made.
    """

    passes: Passes | None = None
    kind: ClassVar[Kind] = "attack"


Rescaling = Literal["layers", "filters", "units", "logits"]
"""Ways to rescale weights. layers: multiply every convolution followed by normalisation by one factor. filters: a
separate factor for each filter. units: multiply a ReLU unit's inputs by c and its outputs by 1/c, a separate c for each
unit. logits: multiply the last layer by c. All but logits leave the function unchanged."""


@dataclass(frozen=True)
class MeasureInfo(Info):
    """A number about a trained model: `Info`, its cost and its invariances.

    Parameters
    ----------
    couplings : tuple of str
        How adversarial examples follow the weights; empty where it reads no examples.
    passes : Mapping of str to Passes
        Coupling (or "" without couplings) -> passes of each image, as formulas in its parameters and in A and B, the
        forward and backward passes of one attack (more names: `config.cost`). Not declared where a search decides how
        many are made.
    powers : Mapping of Rescaling to float
        If weights are rescaled by c, the value is multiplied by this power of c (0: it is invariant). A rescaling that
        is not named changes the value by no fixed power.
    estimate : str
        How value, standard error, n and details follow from its arrays: a key of `core.estimates.ESTIMATES`, such as
        "examples" for the mean of the array `per_example`. The checks of a record compute them again, and hold the
        sizes of the arrays to the protocol's examples and to its parameters (`core.estimates.AXES`). Empty: unchecked.
    """

    couplings: tuple[str, ...] = ()
    passes: Mapping[str, Passes] = field(default_factory=dict, hash=False)
    powers: Mapping[Rescaling, float] = field(default_factory=dict, hash=False)
    estimate: str = ""
    kind: ClassVar[Kind] = "measure"


@dataclass(frozen=True)
class BackboneInfo(Info):
    """A network from images in [0,1] to logits: `Info`, and the origin of its weights.

    Parameters
    ----------
    pretrained : bool
        Its weights come with it; otherwise the run's seed decides them.
    """

    pretrained: bool = False
    kind: ClassVar[Kind] = "backbone"


@dataclass(frozen=True)
class DatasetInfo(Info):
    """A source of labelled images with a checksum."""

    kind: ClassVar[Kind] = "dataset"


@dataclass(frozen=True)
class LauncherInfo(Info):
    """A way to start the processes of runs."""

    kind: ClassVar[Kind] = "launcher"
