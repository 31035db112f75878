"""Base classes of attacks, measures and datasets; methods and modifiers are in `core.method`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from robflat_bench.core.examples import Examples, Threat, Workspace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class Attack(ABC):
    """An attack under evaluation. Implement `perturb`; override `run` only if the attack needs the whole set at once.

    Parameters
    ----------
    params : Params
        Its validated parameters.
    threat : Threat
        The ball that adversarial images stay in.
    """

    def __init__(self, params: Any, threat: Threat) -> None:
        self.params = params
        self.threat = threat
        self.notes: dict[str, int] = {}
        """Counts for the record beside the result, e.g. {"only_square": 3}: examples that no other attack broke."""

    def admit(self, examples: Examples) -> None:  # noqa: B027  (most attacks take all examples)
        """Raise UsageError for examples that it cannot attack; called before any work of an evaluation."""

    @abstractmethod
    def perturb(self, model: nn.Module, examples: Examples, seed: int) -> Tensor:
        """Attack one memory batch.

        Parameters
        ----------
        model : nn.Module
            Its weights, mode and gradients are afterwards as before.
        examples : Examples
            B examples.
        seed : int
            Random numbers are keyed by (seed, examples.index).

        Returns
        -------
        Tensor
            x_adv, float [B,C,H,W], within the threat and [0,1].
        """

    def run(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """x_adv of all examples, one memory batch at a time, each batch a unit of the journal."""
        from robflat_bench.core.batching import in_batches

        return in_batches(examples, workspace, lambda part: self.perturb(model, part, workspace.seed), "x_adv")


@dataclass(frozen=True)
class Measurement:
    """The result of a measure.

    Parameters
    ----------
    value : float
        The number.
    standard_error : float or None
        Its standard error; None where it has none.
    n : int
        Number of examples behind it.
    details : Mapping of str to float
        Further numbers, e.g. the parts of the standard error.
    arrays : Mapping of str to ndarray
        Numbers for each draw, example, ...; kept beside the record.
    """

    value: float
    standard_error: float | None
    n: int
    details: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Measure(ABC):
    """A number about a trained model under a threat.

    Parameters
    ----------
    params : Params
        Its validated parameters.
    threat : Threat
        The threat model of the protocol.
    """

    def __init__(self, params: Any, threat: Threat) -> None:
        self.params = params
        self.threat = threat

    @abstractmethod
    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        """Measure the model; restore its weights, its mode and the global random state bit for bit.

        Raises
        ------
        NoValue
            The measure is not defined for this model.
        """


@dataclass(frozen=True)
class Pool:
    """Labelled images of one source.

    Parameters
    ----------
    x : ndarray
        Images, uint8 [N,H,W,C].
    y : ndarray
        Labels, uint8 [N].
    index : ndarray
        Canonical positions, int64 [N].
    """

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class Source:
    """A loaded dataset: its pools ("train", "test", ...), the number of classes, and its origin in one line."""

    pools: Mapping[str, Pool]
    classes: int
    origin: str


class Dataset(ABC):
    """A source of labelled images.

    Parameters
    ----------
    params : Params
        Its validated parameters.
    """

    repeats: ClassVar[bool] = False
    """Whether it has equal images in its training and test pools as published. Their number is told in the origin;
    of any other dataset, an image in two splits is refused."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def canonical(self, source: Source) -> bool:
        """Whether pixels and labels are byte-identical to the canonical dataset, by its known digests."""

    @abstractmethod
    def sources(self, root: str | None, download: bool = True) -> list[Callable[[], Source]]:
        """Find copies of the dataset.

        Parameters
        ----------
        root : str or None
            Folder to search, from `--data`.
        download : bool
            Whether a copy may be downloaded if there is none.

        Returns
        -------
        list of callable
            The copies found, best first; each is loaded when it is called.

        Raises
        ------
        UsageError
            There is no copy; the text names the layouts searched for and how to get the data.
        """


@dataclass(frozen=True)
class ImageShape:
    """The images and classes that a backbone is built for.

    Parameters
    ----------
    channels : int
        C.
    size : int
        Height and width.
    classes : int
        K.
    mean, std : tuple of float
        Mean and standard deviation of the images in [0,1], one number for each channel.
    """

    channels: int
    size: int
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
