"""The JSON document of an experiment: the values read from each model, and the protocol. The figure needs nothing else.

Anyone may send a document to `experiment redraw`, so its size, names and numbers are checked before it is drawn.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from robflat_bench.config.spec import ProtocolRef
from robflat_bench.core import CheckFailed, Params, Strict, ThreatNorm, UsageError
from robflat_bench.core.files import read_regular
from robflat_bench.registry.grammar import parse
from robflat_bench.registry.validation import explain, validate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robflat_bench.experiments.trained_model import TrainedModel
    from robflat_bench.records.journal import StoredJournal

MAX_BYTES = 16 * 1024 * 1024
"""Size limit of a document."""
Text = Annotated[str, Field(max_length=300)]
ExperimentText = Annotated[str, Field(max_length=2000)]


class ValueWithError(Strict):
    """A number with its standard error over `n` examples; None where the number or its error is undefined."""

    value: float | None
    standard_error: float | None
    n: int

    @property
    def drawn(self) -> float:
        """The value as a figure draws it: NaN, a gap, where the value is None."""
        return math.nan if self.value is None else self.value


class MeasuredValue(ValueWithError):
    """A measurement with the measure's details, or the reason why the measure has no value."""

    details: dict[str, float] = Field(default_factory=dict)
    reason: Text = ""


class ModelRef(Strict):
    """Names the weights that were read: label of the run (or name of the file), training seed and checkpoint.

    `epoch` and the early-stopping epoch `best_epoch` count from 0. `weights` is the digest of the weights.
    """

    label: Text
    seed: int | None
    checkpoint: Text
    epoch: int | None
    best_epoch: int | None
    run: Text | None
    weights: Text


class Experiment(Strict):
    """Base of every experiment. The class says how to read and to draw; an instance holds the values of one model.

    Attributes
    ----------
    name, summary
        As `robflat-bench list experiments` shows them.
    params
        The model of the experiment's parameters.
    reads
        The weights of each model: the `chosen` checkpoint, `both` best and last, or every `kept` epoch. The latter two
        take runs only, no weights files.
    compares
        Whether the values of one model depend on all models, which `TrainedModel.among` then has.
    n
        Number of test examples.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    params: ClassVar[type[Params]]
    reads: ClassVar[Literal["chosen", "both", "kept"]] = "chosen"
    compares: ClassVar[bool] = False

    n: int

    @classmethod
    @abstractmethod
    def read(cls, model: TrainedModel, params: Any, journal: StoredJournal) -> Self:
        """Read the values of one model; every piece of work is a unit of the journal, so that it can resume."""

    @property
    @abstractmethod
    def brief(self) -> dict[str, float | None]:
        """The few numbers that the command's table shows, by column."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the command's table for this model, by column; one, unless its values are of pairs."""
        return [dict(self.brief)]

    @staticmethod
    @abstractmethod
    def draw(document: Document[Any]) -> Figure:
        """Draw the figure from the document alone."""


E = TypeVar("E", bound=Experiment)


class ModelReading(Strict, Generic[E]):
    """One model and the values read from it."""

    model: ModelRef
    values: E


class Document(Strict, Generic[E]):
    """Everything a figure shows. Losses and flatness are in nats."""

    schema_version: Literal[1] = 1
    experiment: ExperimentText
    protocol: ProtocolRef
    dataset: Text
    dataset_checksum: Text
    canonical_data: bool
    epsilon: float
    norm: ThreatNorm = "linf"
    evaluation_seed: int
    numerics: int
    readings: tuple[ModelReading[E], ...] = Field(min_length=1, max_length=1000)

    @property
    def values(self) -> list[E]:
        """The values of each model."""
        return [reading.values for reading in self.readings]

    @property
    def names(self) -> list[str]:
        """The name of each model in a legend."""
        return names([reading.model for reading in self.readings])

    @property
    def params(self) -> Any:
        """The experiment's parameters."""
        return validate(self.values[0].params, parse(self.experiment)[1], self.experiment)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the summary: label, seed, checkpoint, then the columns of `Experiment.rows`."""
        found = [(reading.model, row) for reading in self.readings for row in reading.values.rows]
        columns = list(dict.fromkeys(column for _, row in found for column in row))
        rows = [[model.label, model.seed, model.checkpoint, *map(row.get, columns)] for model, row in found]
        return ["model", "seed", "checkpoint", *columns], rows


def names(models: Sequence[ModelRef], among: Sequence[str] = ("seed", "checkpoint", "weights")) -> list[str]:
    """Name each model for a legend: its label, plus those properties of `among` that distinguish equal labels."""
    found = [model.label for model in models]
    for key in among:
        if len({*found}) < len(found) and len({getattr(model, key) for model in models}) > 1:
            prefix = "seed " if key == "seed" else ""
            found = [f"{name}, {prefix}{str(getattr(m, key))[:20]}" for name, m in zip(found, models, strict=True)]
    return found


def distinct(models: Sequence[ModelRef]) -> list[str]:
    """The names of models that are compared with each other; UsageError where two models are one, or there is one."""
    found = names(models, among=("seed", "checkpoint", "epoch", "weights"))
    if len({*found}) < len(found) or len(found) < 2:
        twice = next((name for name in found if found.count(name) > 1), None)
        problem = f"{twice} is named twice" if twice else "one model is named"
        raise UsageError(f"{problem}, but the experiment compares models; name two runs at least, each once")
    return found


class Heading(Strict):
    """The part of a document that names its experiment, which decides how the rest is read."""

    model_config = ConfigDict(extra="ignore")
    experiment: ExperimentText


def read_bytes(path: Path) -> bytes:
    """The file's bytes; UsageError where it is no regular file of at most `MAX_BYTES`, or cannot be read."""
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name the JSON file of an experiment") from None


def parsed(raw: bytes, model: type[Any], source: object) -> Any:
    """`raw` validated as that model; CheckFailed names the source and the first problem."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise CheckFailed(f"{source} is not the JSON of an experiment: {explain(error, model)}") from None
