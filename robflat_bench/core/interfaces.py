"""What each kind of component does; methods and modifiers are in `core.method`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from robflat_bench.core.examples import Examples, Threat, Workspace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn


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
        from robflat_bench.core.batching import in_batches

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
