"""The JSON of an experiment: what was read from which models, under which protocol. A figure is drawn from it alone.

A document may come from a stranger (`experiment redraw`): its size, names and numbers are checked before it is drawn.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from robflat_bench.config.protocol import Strict
from robflat_bench.config.spec import ProtocolRef
from robflat_bench.core import CheckFailed, UsageError
from robflat_bench.registry.validation import explain

MAX_BYTES = 16 * 1024 * 1024
Text = Annotated[str, Field(max_length=300)]


class Row(Strict):
    """What an experiment reads from one model. `n`: on how many test examples."""

    n: int

    @property
    @abstractmethod
    def brief(self) -> dict[str, float | None]:
        """The few numbers the command's table shows, by column."""


class Value(Strict):
    """A number (None: it has none here) with its standard error (None: not defined) over n examples."""

    value: float | None
    standard_error: float | None
    n: int

    @property
    def drawn(self) -> float:
        """What a figure shows: nothing, where there is no value."""
        return math.nan if self.value is None else self.value


class About(Strict):
    """Which model: the label of its run (or name of its file), training seed, checkpoint, epoch counted from 0, and the
    run's early-stopping epoch."""

    label: Text
    seed: int | None
    checkpoint: Text
    epoch: int | None
    best_epoch: int | None
    run: Text | None
    weights: Text


R = TypeVar("R", bound=Row)


class Reading(Strict, Generic[R]):
    """One model and what was read from it."""

    model: About
    values: R


class Document(Strict, Generic[R]):
    """All a figure shows. Losses and flatness are in nats."""

    schema_version: Literal[1] = 1
    experiment: Annotated[str, Field(max_length=2000)]
    protocol: ProtocolRef
    dataset: Text
    dataset_checksum: Text
    canonical_data: bool
    epsilon: float
    evaluation_seed: int
    numerics: int
    readings: tuple[Reading[R], ...] = Field(min_length=1, max_length=1000)


def names(models: Sequence[About], among: Sequence[str] = ("seed", "checkpoint", "weights")) -> list[str]:
    """What each model is called in a legend: its label, and of these properties what tells equal labels apart."""
    found = [model.label for model in models]
    for key in among:
        if len({*found}) < len(found) and len({getattr(model, key) for model in models}) > 1:
            prefix = "seed " if key == "seed" else ""
            found = [f"{name}, {prefix}{str(getattr(m, key))[:20]}" for name, m in zip(found, models, strict=True)]
    return found


def read_document(path: Path) -> bytes:
    """The file's bytes; UsageError where there is none, CheckFailed where it is too large."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckFailed(f"{path} is larger than {MAX_BYTES} bytes, which no experiment writes")
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name the JSON file of an experiment") from None


class Headed(Strict):
    """Only what a document says of its experiment: what the rest must look like follows from it."""

    model_config = ConfigDict(extra="ignore")
    experiment: Annotated[str, Field(max_length=2000)]


def parsed(raw: bytes, model: type[Any], source: str) -> Any:
    """`raw` as that model; CheckFailed naming the source and the first problem."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise CheckFailed(f"{source} is no experiment's JSON: {explain(error, model)}") from None
