"""Catalogue of experiments (torch-free): each is one figure about trained models, and its data as JSON.

A row names a module with three things: `Row`, a pydantic model of what is read from one model; `read(subject, params,
journal) -> Row`, every piece of work a unit of the journal; and `draw(document) -> Figure`, which needs nothing but
the JSON. Finding models, resuming, files and tables are the same for all (`work`, `document`, `figures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from robflat_bench.base import Number, Params, UsageError
from robflat_bench.components import parse, validate, write
from robflat_bench.measures import OracleParams
from robflat_bench.registry import did_you_mean

PACKAGE = "robflat_bench.experiments"


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that the middle point is the model itself")
    return value


Points = Annotated[int, Field(ge=3, le=999), AfterValidator(_odd)]


class ReadingsParams(Params):
    """measures: e.g. ["average-case(xi=0.25)"]; none: the protocol's, on its number of test examples."""

    measures: tuple[str, ...] = ()


class LandscapeParams(OracleParams):
    """coupling: how adversarial examples follow the weights (steps, step, restarts: of their attack).

    points: over s in [-1,1] for random directions; the adversarial one has those with s >= 0. directions: random ones.
    normalisation: what of a random direction has the norm of its weights, times `random`; the adversarial one has
    `adversarial` of each layer's norm, after an ascent of `ascent` steps. examples: 0 is the protocol's number.
    """

    coupling: Literal["clean", "frozen", "reattack"] = "reattack"
    steps: PositiveInt = 10
    points: Points = 51
    directions: int = Field(default=10, ge=2)
    normalisation: Literal["layer", "filter"] = "layer"
    random: Number = Field(default=0.5, gt=0)
    adversarial: Number = Field(default=0.01, gt=0)
    ascent: PositiveInt = 7
    examples: NonNegativeInt = 0


class SurfaceParams(LandscapeParams):
    """second: what the second axis is; the first is random. points: per axis. The rest as in `landscape`."""

    coupling: Literal["clean", "frozen", "reattack"] = "frozen"
    points: Points = 25
    directions: Literal[1] = 1
    second: Literal["random", "adversarial"] = "random"


@dataclass(frozen=True)
class Experiment:
    """One row. reads: which weights of each model: the chosen checkpoint, `best` and `last`, or every kept epoch
    (the latter two take runs only). title: of the figure, one line."""

    name: str
    summary: str
    module: str
    params: type[Params]
    reads: Literal["chosen", "both", "kept"] = "chosen"


EXPERIMENTS = (
    Experiment(
        "training",
        "Robust loss and flatness through training, the early-stopping point marked (needs run --keep-every).",
        f"{PACKAGE}.training",
        ReadingsParams,
        reads="kept",
    ),
    Experiment(
        "best-last",
        "Best against last checkpoint in the plane of flatness and robust loss.",
        f"{PACKAGE}.best_last",
        ReadingsParams,
        reads="both",
    ),
    Experiment(
        "landscape",
        "Loss along random and along adversarial directions in weight space, attacked again at every point.",
        f"{PACKAGE}.landscape",
        LandscapeParams,
    ),
    Experiment(
        "surface",
        "Loss over the plane of two directions in weight space, a panel for each model.",
        f"{PACKAGE}.surface",
        SurfaceParams,
    ),
)


@dataclass(frozen=True)
class Chosen:
    """An experiment with validated parameters."""

    experiment: Experiment
    params: Params

    @property
    def canonical(self) -> str:
        """`name(every=parameter)`, keys sorted: equal experiments have equal text."""
        return write(self.experiment.name, self.params.model_dump())


def choose(text: str) -> Chosen:
    """`landscape(points=21)` found and validated; UsageError with a did-you-mean where there is none."""
    name, values = parse(text)
    table = {row.name: row for row in EXPERIMENTS}
    if name not in table:
        raise UsageError(
            f"unknown experiment '{name}'{did_you_mean(name, table)}; see `robflat-bench list experiments`"
        )
    return Chosen(table[name], validate(table[name].params, values, f"experiment {name}"))
