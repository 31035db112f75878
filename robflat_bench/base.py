"""What a component is: its description (torch-free) and the class behind it.

A component is offered as an `Info` row: name, one line, citation, parameter model and where its class lives.
The class is imported only when it is used, so `list` and `info` never import torch. The base classes below say
what each kind must do; everything that finds, names and runs components lives in `plugins`, `registry`,
`components` and above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pluggy
from pydantic import BaseModel, BeforeValidator, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

PROJECT = "robflat_bench"
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as its implementation of the hook of that name."""


# ---------------------------------------------------------------------------------------------------------
# Errors: what is wrong, why, and the next command to type
# ---------------------------------------------------------------------------------------------------------


class RobflatError(Exception):
    """Base of every error the command line shows as one line. `exit_code` is the process's."""

    exit_code = 1


class NoValue(RobflatError):
    """A measure has no value for this model; says why. The evaluation goes on, and its record keeps the reason."""


class RunFailed(RobflatError):
    """A run cannot go on: diverged, locked by another process, disk full."""


class UsageError(RobflatError):
    """What was asked for does not exist or is out of range."""

    exit_code = 2


class CheckFailed(RobflatError):
    """A check found problems: a record that disagrees with its outcomes, a component that fails the kit."""

    exit_code = 3


class PluginError(RobflatError):
    """The requested component belongs to a plugin that is broken, or is offered twice."""

    exit_code = 4


# ---------------------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------------------


class Params(BaseModel):
    """Base of every component's parameters: frozen, no unknown names, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def parse_fraction(value: Any) -> Any:
    """'8/255' -> 0.0313...; everything else is left to pydantic."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Number = Annotated[float, BeforeValidator(parse_fraction)]
"""A float that may be written as a fraction: 0.03 or "8/255"."""


# ---------------------------------------------------------------------------------------------------------
# Descriptions
# ---------------------------------------------------------------------------------------------------------

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


# ---------------------------------------------------------------------------------------------------------
# What other hooks see and give
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunView:
    """A run, as an observer sees it.

    key: of the run, 16 hex digits; the same again when an interrupted run goes on. label: how a person names it.
    method: its canonical text. folder: where it lies; an observer may write below `folder / "observers"`.
    spec: the JSON document of spec.json.
    """

    key: str
    label: str
    method: str
    protocol: str
    seed: int
    folder: Path
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class LeaderboardColumn:
    """A column that a plugin adds to a board's page.

    name: [a-z0-9-], unique on the board. title, note: the two lines of its heading, e.g. "Cost" and "passes of AT".
    values: row id -> number (rows that have none are left out). form: how a number is written, a format spec.
    """

    name: str
    title: str
    values: Mapping[str, float] = field(hash=False)
    note: str = ""
    form: str = ".3g"


# ---------------------------------------------------------------------------------------------------------
# What each kind does
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Threat:
    """What an adversary may do to an image: ||x' - x||_inf <= epsilon (pixels in [0,1]) and x' in [0,1]."""

    epsilon: float
    norm: Literal["linf"] = "linf"


@dataclass(frozen=True)
class Examples:
    """Examples under evaluation: x float [N,C,H,W] in [0,1], y int64 [N], index int64 [N] in their dataset."""

    x: Tensor
    y: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        return Examples(self.x[rows], self.y[rows], self.index[rows])


@dataclass(frozen=True)
class Spent:
    """What work took: seconds, and image passes through the network."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.forward + other.forward, self.backward + other.backward)


class Journal:
    """Units of finished work. This one only computes; the store's keeps each unit on disk and skips it next time.

    A unit is a function that returns arrays, under a name [A-Za-z0-9_.-] unique within one journal; `section` opens a
    child whose names cannot collide with its siblings'. `spent` sums what all units took, read back or not.
    """

    spent: Spent = Spent()

    def unit(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """The unit's arrays: computed now, or read back bit for bit if it had finished before."""
        return compute()

    def section(self, name: str) -> Journal:
        """A journal for one part of the work."""
        return self


@dataclass(frozen=True)
class Workspace:
    """What the harness lends to an attack or a measure: memory batch (changes nothing but memory), evaluation
    seed (in the protocol), the journal that makes the work resumable, and the weights that training began with
    (by name; None where they are not known)."""

    batch: int = 100
    seed: int = 0
    journal: Journal = field(default_factory=Journal)
    initial: Mapping[str, Tensor] | None = None


class Attack(ABC):
    """An attack under evaluation. Implement `perturb` for batches; override `run` only if the whole set matters."""

    def __init__(self, params: Any, threat: Threat) -> None:
        self.params = params
        self.threat = threat
        self.notes: dict[str, int] = {}
        """What a run wants known beside its result, e.g. {"only_square": 3}: examples nothing else broke."""

    @abstractmethod
    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        """x_adv [B,C,H,W] within the threat, random numbers keyed by (seed, examples.index)."""

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """x_adv for all examples, one memory batch at a time, each batch a unit of the journal."""
        from robflat_bench.batching import in_batches

        return in_batches(examples, workspace, lambda part: self.perturb(model, part, workspace.seed), "x_adv")


@dataclass(frozen=True)
class Measurement:
    """value and standard_error (None where none is defined) over n examples.

    details: further numbers by name, e.g. the parts of the error. arrays: per draw, per example, ... evidence,
    kept beside the record.
    """

    value: float
    standard_error: float | None
    n: int
    details: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Measure(ABC):
    """A number about a trained model under a threat, read on given examples; the model leaves as it came."""

    def __init__(self, params: Any, threat: Threat) -> None:
        self.params = params
        self.threat = threat

    @abstractmethod
    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        """The measurement; weights, mode and global random state are restored bit for bit."""


@dataclass(frozen=True)
class Pool:
    """Labelled images of one source: x uint8 [N,H,W,C], y uint8 [N], index int64 [N] (canonical positions)."""

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Source:
    """A loaded dataset: pools ("train", "test", ...), class count, and one line on where it came from."""

    pools: Mapping[str, Pool]
    classes: int
    origin: str


class Dataset(ABC):
    """A source of labelled images."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def canonical(self, source: Source) -> bool:
        """Whether pixels and labels are byte-identical to the canonical dataset, as far as its known digests tell."""

    @abstractmethod
    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Every copy found below `root` (`--data`), best first, each loaded when called; where there is none,
        one to fetch, if `download` allows it.

        Raises UsageError that names the layouts looked for and how to get them, when there is none."""


@dataclass(frozen=True)
class ImageShape:
    """What a backbone is built for: channels, height = width, classes, and the mean and std [C] of the images."""

    channels: int
    size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Resources:
    """What a launcher shares out: `jobs` slots, each of `threads` CPU threads, with a GPU where `device` is cuda."""

    jobs: int = 1
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Job:
    """A command line to run, under a name of its own; log: the file that takes what it writes on stderr."""

    name: str
    command: tuple[str, ...]
    log: Path


class Launcher(ABC):
    """Runs each command line in a process of its own, somewhere, and reports its exit. One thread calls it."""

    foreground: ClassVar[bool] = False
    """Whether what it runs writes to this terminal instead of its log; nothing else should draw there then."""

    def __init__(self, params: Any, resources: Resources) -> None:
        self.params = params
        self.resources = resources

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start it and return; no more than `resources.jobs` are asked to run at a time."""

    @abstractmethod
    def wait(self, seconds: float) -> Mapping[str, int]:
        """Name -> exit code of what has ended since the last call; waits so long at most for the first one.

        What signal n ended has the code -n, or 128 + n as shells say it."""

    @abstractmethod
    def interrupt(self) -> None:
        """Send SIGINT to all that run: they save their state and end."""
