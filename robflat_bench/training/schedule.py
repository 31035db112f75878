"""Optimizers and learning-rate schedules of a recipe, by name; torch's own, stepped once per batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import Field
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR

from robflat_bench.base import Params, UsageError
from robflat_bench.components import parse, validate
from robflat_bench.protocol import Recipe
from robflat_bench.registry import did_you_mean


class SGDParams(Params):
    """Stochastic gradient descent with momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True


class PiecewiseParams(Params):
    """The rate is multiplied by `factor` at each of `drops`, given as fractions of training."""

    drops: tuple[float, ...] = (0.4, 0.6, 0.8)
    factor: float = Field(default=0.1, gt=0, lt=1)


class OneCycleParams(Params):
    """One linear rise over `rise` of training from peak/25, then a linear fall to (almost) zero."""

    rise: float = Field(default=0.3, gt=0, lt=1)


def _sgd(parameters: Iterable[nn.Parameter], recipe: Recipe, params: SGDParams) -> Optimizer:
    return SGD(
        parameters,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=params.momentum,
        nesterov=params.nesterov,
    )


def _constant(optimizer: Optimizer, recipe: Recipe, steps: int, params: Params) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0)


def _piecewise(optimizer: Optimizer, recipe: Recipe, steps: int, params: PiecewiseParams) -> LRScheduler:
    return MultiStepLR(optimizer, [round(drop * steps) for drop in params.drops], params.factor)


def _one_cycle(optimizer: Optimizer, recipe: Recipe, steps: int, params: OneCycleParams) -> LRScheduler:
    return OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps + 1,
        pct_start=params.rise,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


class _Row(NamedTuple):
    params: type[Params]
    build: Any


OPTIMIZERS = {"sgd": _Row(SGDParams, _sgd)}
SCHEDULES = {
    "constant": _Row(Params, _constant),
    "piecewise": _Row(PiecewiseParams, _piecewise),
    "one-cycle": _Row(OneCycleParams, _one_cycle),
}


def _row(table: dict[str, _Row], what: str, text: str) -> tuple[Any, Params]:
    name, values = parse(text)
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'{did_you_mean(name, table)}; there are {', '.join(table)}")
    return table[name].build, validate(table[name].params, values, f"{what} {name}")


def check_recipe(recipe: Recipe) -> None:
    """UsageError where the recipe names an optimizer or schedule that does not exist, before any work is done."""
    _row(OPTIMIZERS, "optimizer", recipe.optimizer)
    _row(SCHEDULES, "schedule", recipe.schedule)


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimizer over these parameters."""
    build, params = _row(OPTIMIZERS, "optimizer", recipe.optimizer)
    optimizer: Optimizer = build(parameters, recipe, params)
    return optimizer


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps: int, done: int) -> LRScheduler:
    """The recipe's schedule over `steps` batches, advanced by `done` (replaying it is exact and cheap)."""
    build, params = _row(SCHEDULES, "schedule", recipe.schedule)
    schedule: LRScheduler = build(optimizer, recipe, steps, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # stepping before the optimizer is what a replay does
        for _ in range(done):
            schedule.step()
    return schedule


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of the first group, as a plain number."""
    return float(optimizer.param_groups[0]["lr"])
