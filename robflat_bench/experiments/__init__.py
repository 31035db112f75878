"""Catalogue of experiments (torch-free): each is one figure about trained models, and its data as JSON.

A row names a module with three things: `Row`, a pydantic model of what is read from one model; `read(subject, params,
journal) -> Row`, every piece of work a unit of the journal; and `draw(document) -> Figure`, which needs nothing but
the JSON. Finding models, resuming, files and tables are the same for all (`work`, `document`, `figures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from robflat_bench.core import Number, Params, UsageError
from robflat_bench.measures.curvature.hessian_lambda_max import HessianLambdaMaxParams
from robflat_bench.measures.shared import OracleParams
from robflat_bench.registry.components import parse, write
from robflat_bench.registry.validation import did_you_mean, validate

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


def _factor(value: float) -> float:
    if value <= 0 or value == 1:
        raise ValueError("must be positive and not 1, which rescales nothing")
    return value


class ScalingParams(Params):
    """factors: c of every rescaling. measures: e.g. ["hessian-trace", "lpf(std=0.02)"]; none: the whole catalogue,
    with fewer draws than usual.

    coupling: of the measures that have one, unless they say their own. examples: 0 is the protocol's number.
    """

    factors: tuple[Annotated[Number, AfterValidator(_factor)], ...] = Field(default=(0.5, 2.0), min_length=1)
    measures: tuple[str, ...] = ()
    coupling: Literal["clean", "frozen"] = "frozen"
    examples: NonNegativeInt = 0


class SpectrumParams(HessianLambdaMaxParams):
    """tolerance, vectors, iterations: of Lanczos. density: probes of the density, of `nodes` products each. probes: of
    the trace. width: of the Gaussians that smooth the density, in decades. examples: 0 is the protocol's number.
    """

    density: PositiveInt = 4
    probes: int = Field(default=50, ge=2)
    width: Number = Field(default=0.05, gt=0)
    examples: NonNegativeInt = 0


class SplitsParams(Params):
    """measure: read on training and test examples, under each of the `couplings` (none: all it takes).

    examples: of each split; 0 is the protocol's number.
    """

    measure: str = "average-case"
    couplings: tuple[str, ...] = ()
    examples: NonNegativeInt = 0


class AblationParams(Params):
    """measures: with the parameters that stay while one of them, the axis, moves. axis: a parameter of the measures
    (`ball`: with its norm, e.g. filter-l2), or all that have usual values. values: of that one axis, instead.

    examples: 0 is the protocol's number.
    """

    measures: tuple[str, ...] = Field(
        default=("average-case(draws=5)", "worst-case(xi=0.03, restarts=3)"), min_length=1
    )
    axis: str = "all"
    values: tuple[int | float | str, ...] = ()
    examples: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_axis(self) -> AblationParams:
        if self.values and self.axis == "all":
            raise ValueError("values belong to one axis; add e.g. axis=xi")
        return self


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
    Experiment(
        "scaling",
        "Rescaled copies of a model under every measure: which stay, which move, by what power.",
        f"{PACKAGE}.scaling",
        ScalingParams,
    ),
    Experiment(
        "spectrum",
        "Density of the Hessian's eigenvalues, with lambda max, trace and convexity ratio.",
        f"{PACKAGE}.spectrum",
        SpectrumParams,
    ),
    Experiment(
        "splits",
        "A measure on training and test examples, clean and robust; test robust loss as train robust loss and gap.",
        f"{PACKAGE}.splits",
        SplitsParams,
    ),
    Experiment(
        "ablation",
        "Measures as functions of their own parameters: radius, draws, restarts, ball, steps.",
        f"{PACKAGE}.ablation",
        AblationParams,
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
