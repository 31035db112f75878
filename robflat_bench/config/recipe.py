"""Recipes: the training defaults of a protocol, which a run may change with `--set recipe.KEY=VALUE`.

Optimizers and schedules are written in the components' grammar, but are no plugins: all but Muon are torch's own. Their
parameters are declared here, so that a recipe is validated before torch is imported; `training.schedule` builds them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from robflat_bench.config.threat import MOST
from robflat_bench.core import Number, Params, UsageError
from robflat_bench.registry.components import brief_text, canonical_text
from robflat_bench.registry.grammar import parse
from robflat_bench.registry.validation import did_you_mean, validate


class SGDParams(Params):
    """Stochastic gradient descent with momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum factor.")
    nesterov: bool = Field(default=True, description="Use Nesterov's momentum.")


class AdamParams(Params):
    """Adam; weight decay is added to the gradient."""

    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the gradients' running mean; torch's default.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of their squares' mean; torch's default.")


class AdamWParams(AdamParams):
    """Adam; weight decay is applied to the weights, apart from the gradient."""


class MuonParams(Params):
    """Muon for hidden matrices, AdamW for other weights; one learning rate, of AdamW's size, suits both."""

    momentum: float = Field(default=0.95, ge=0, lt=1, description="Momentum factor of matrices; torch's default.")
    nesterov: bool = Field(default=True, description="Use Nesterov's momentum.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Of AdamW: decay of the gradients' running mean.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Of AdamW: decay of their squares' mean; Jordan's.")


class PiecewiseParams(Params):
    """The learning rate is multiplied by a factor at certain points of training."""

    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.4, 0.6, 0.8), description="Where the rate drops, in fractions of training."
    )
    factor: float = Field(default=0.1, gt=0, lt=1, description="Factor of each drop.")


class OneCycleParams(Params):
    """One linear rise from peak/25 to the peak, then a linear fall to (almost) zero."""

    rise: float = Field(default=0.3, gt=0, lt=1, description="Length of the rise, as a fraction of training.")


class CyclicParams(Params):
    """Triangles from 0 up to the learning rate and down to 0."""

    cycles: PositiveInt = Field(default=1, description="Number of triangles.")


class CosineParams(Params):
    """Half a cosine from the learning rate down."""

    final: float = Field(default=0.0, ge=0, lt=1, description="The last rate, as a fraction of the learning rate.")


OPTIMIZERS: dict[str, type[Params]] = {
    "sgd": SGDParams,
    "adam": AdamParams,
    "adamw": AdamWParams,
    "muon": MuonParams,
}
SCHEDULES: dict[str, type[Params]] = {
    "constant": Params,
    "piecewise": PiecewiseParams,
    "one-cycle": OneCycleParams,
    "cyclic": CyclicParams,
    "cosine": CosineParams,
}
_TABLES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def named(table: dict[str, type[Params]], what: str, text: str) -> tuple[str, Any]:
    """'sgd(momentum=0)' -> ('sgd', SGDParams(momentum=0)); UsageError with a suggestion for an unknown name."""
    name, values = parse(text)
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'{did_you_mean(name, table)}; there are {', '.join(table)}")
    return name, validate(table[name], values, f"{what} {name}")


def _canonical(what: str) -> AfterValidator:
    def canonical(text: str) -> str:
        try:
            return canonical_text(*named(_TABLES[what], what, text))
        except UsageError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(canonical)


def brief_setting(key: str, value: Any) -> str:
    """A setting as a row's name shows it: `schedule=cyclic(cycles=2)`, without parameters that are defaults."""
    return f"{key}={brief_text(*named(_TABLES[key], key, value)) if key in _TABLES else value}"


class Recipe(Params):
    """How a method is trained. Settings that differ from the protocol's appear in the row's name."""

    epochs: PositiveInt = Field(description="Passes through the training images.")
    batch_size: PositiveInt = Field(
        description="Images of one update; one left over at the end of an epoch joins the last batch."
    )
    optimizer: Annotated[str, _canonical("optimizer")] = Field(
        default="sgd(momentum=0.9, nesterov=true)", description="sgd, adam, adamw or muon, with parameters."
    )
    learning_rate: Number = Field(gt=0, description="The highest rate of the schedule.")
    weight_decay: Number = Field(default=5e-4, ge=0, description="The optimizer's weight decay.")
    schedule: Annotated[str, _canonical("schedule")] = Field(
        default="constant", description="constant, piecewise, one-cycle, cyclic or cosine, with parameters."
    )
    augmentation: Literal["none", "flip", "crop-flip"] = Field(
        default="none", description="Random changes of training images: mirroring, or random crops and mirroring."
    )
    activation: Literal["relu", "silu", "gelu", "mish"] = Field(
        default="relu", description="Activation function of the backbone."
    )
    epsilon: Number = Field(
        ge=0,
        le=MOST,
        description="Radius of the training attack in pixels of [0,1], in the norm fixed.threat.norm; evaluation: "
        "fixed.threat.epsilon. Under linf at most 1.",
    )
    attack_steps: PositiveInt = Field(description="T, the number of steps of the training attack.")
    attack_step: Number = Field(
        gt=0, le=MOST, description="Size of one step, in pixels of [0,1] and in the same norm. Under linf at most 1."
    )
    attack_start: Literal["uniform", "normal", "zero"] = Field(
        default="uniform",
        description="Start of the training attack: uniform in the ball, normal with a standard deviation of 0.001 (as "
        "in TRADES), or the image itself.",
    )
    attack_bn: Literal["eval", "train"] = Field(
        default="eval",
        description="Batch normalisation during the training attack: eval uses its running statistics, train the "
        "statistics of the batch, without updating the running ones.",
    )
    shards: PositiveInt = Field(
        default=1,
        description="Parts of each batch that are normalised apart, each with random numbers of its own; any number of "
        "processes that divides it computes the same weights (torchrun).",
    )
