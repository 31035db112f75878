"""Recipes: the training defaults of a protocol, which a run may change with `--set recipe.KEY=VALUE`.

Optimizers and schedules are named in the components' grammar, but are torch's own and no plugins; their
parameters are here, so that a recipe is checked before torch is imported. What they do is `training.schedule`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from robflat_bench.core import Number, Params, UsageError
from robflat_bench.registry.components import non_defaults, parse, write
from robflat_bench.registry.validation import did_you_mean, validate


class SGDParams(Params):
    """Stochastic gradient descent with momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True


class AdamParams(Params):
    """Adam, weight decay added to the gradient."""

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)


class AdamWParams(AdamParams):
    """Adam, weight decay apart from the gradient."""


class PiecewiseParams(Params):
    """The rate is multiplied by `factor` at each of `drops`, given as fractions of training."""

    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.6, 0.8)
    factor: float = Field(default=0.1, gt=0, lt=1)


class OneCycleParams(Params):
    """One linear rise over `rise` of training from peak/25, then a linear fall to (almost) zero."""

    rise: float = Field(default=0.3, gt=0, lt=1)


class CyclicParams(Params):
    """`cycles` triangles from 0 up to the rate and down to 0."""

    cycles: PositiveInt = 1


class CosineParams(Params):
    """Half a cosine from the rate down to `final` times the rate."""

    final: float = Field(default=0.0, ge=0, lt=1)


OPTIMIZERS: dict[str, type[Params]] = {"sgd": SGDParams, "adam": AdamParams, "adamw": AdamWParams}
SCHEDULES: dict[str, type[Params]] = {
    "constant": Params,
    "piecewise": PiecewiseParams,
    "one-cycle": OneCycleParams,
    "cyclic": CyclicParams,
    "cosine": CosineParams,
}


def named(table: dict[str, type[Params]], what: str, text: str) -> tuple[str, Any]:
    """('sgd', SGDParams(...)) of 'sgd(...)'; UsageError with a did-you-mean where the table has no such name."""
    name, values = parse(text)
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'{did_you_mean(name, table)}; there are {', '.join(table)}")
    return name, validate(table[name], values, f"{what} {name}")


def _canonical(table: dict[str, type[Params]], what: str) -> AfterValidator:
    def canonical(text: str) -> str:
        try:
            name, params = named(table, what, text)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return write(name, params.model_dump())

    return AfterValidator(canonical)


def brief(key: str, value: Any) -> str:
    """`schedule=cyclic(cycles=2)`: one setting as a row's name shows it, without what is default."""
    tables = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    if key in tables:
        name, params = named(tables[key], key, value)
        value = write(name, non_defaults(params))
    return f"{key}={value}"


class Recipe(Params):
    """How a method is trained; whatever differs from the protocol's shows in the row's name.

    epsilon: radius of the training attack. attack_step: in pixels of [0,1]. attack_bn: batch normalisation during
    the attack uses its running statistics, or the batch's own (which it never updates).
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: Annotated[str, _canonical(OPTIMIZERS, "optimizer")] = "sgd(momentum=0.9, nesterov=true)"
    learning_rate: Number = Field(gt=0)
    weight_decay: Number = Field(default=5e-4, ge=0)
    schedule: Annotated[str, _canonical(SCHEDULES, "schedule")] = "constant"
    augmentation: Literal["none", "flip", "crop-flip"] = "none"
    activation: Literal["relu", "silu", "gelu", "mish"] = "relu"
    epsilon: Number = Field(ge=0, le=1)
    attack_steps: PositiveInt
    attack_step: Number = Field(gt=0, le=1)
    attack_start: Literal["uniform", "normal", "zero"] = "uniform"
    attack_bn: Literal["eval", "train"] = "eval"
