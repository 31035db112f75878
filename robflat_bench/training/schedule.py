"""Optimizers and learning-rate schedules of a recipe: torch's own, stepped once per batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
)

from robflat_bench.config import recipe as recipes
from robflat_bench.config.recipe import (
    AdamParams,
    AdamWParams,
    CosineParams,
    CyclicParams,
    OneCycleParams,
    PiecewiseParams,
    Recipe,
    SGDParams,
    named,
)


def _sgd(parameters: Iterable[nn.Parameter], recipe: Recipe, params: SGDParams) -> Optimizer:
    return SGD(
        parameters,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=params.momentum,
        nesterov=params.nesterov,
    )


def _adam(parameters: Iterable[nn.Parameter], recipe: Recipe, params: AdamParams) -> Optimizer:
    family = AdamW if isinstance(params, AdamWParams) else Adam
    return family(
        parameters,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(params.beta1, params.beta2),
    )


def _constant(optimizer: Optimizer, recipe: Recipe, steps: int, params: Any) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0)


def _piecewise(optimizer: Optimizer, recipe: Recipe, steps: int, params: PiecewiseParams) -> LRScheduler:
    return MultiStepLR(optimizer, [round(drop * steps) for drop in params.drops], params.factor)


def _one_cycle(optimizer: Optimizer, recipe: Recipe, steps: int, params: OneCycleParams) -> LRScheduler:
    return OneCycleLR(
        optimizer,
        recipe.learning_rate,
        total_steps=steps + 1,  # torch refuses the step after the last one, and we step after every batch
        pct_start=params.rise,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def _cyclic(optimizer: Optimizer, recipe: Recipe, steps: int, params: CyclicParams) -> LRScheduler:
    half: Any = steps / params.cycles / 2  # a fraction, where torch declares an int, lets the last step end at 0
    return CyclicLR(optimizer, 0.0, recipe.learning_rate, half, half, cycle_momentum=False)


def _cosine(optimizer: Optimizer, recipe: Recipe, steps: int, params: CosineParams) -> LRScheduler:
    return CosineAnnealingLR(optimizer, steps, params.final * recipe.learning_rate)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": _sgd, "adam": _adam, "adamw": _adam}
SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": _constant,
    "piecewise": _piecewise,
    "one-cycle": _one_cycle,
    "cyclic": _cyclic,
    "cosine": _cosine,
}


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimizer over these parameters."""
    name, params = named(recipes.OPTIMIZERS, "optimizer", recipe.optimizer)
    return OPTIMIZERS[name](parameters, recipe, params)


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps: int, done: int) -> LRScheduler:
    """The recipe's schedule over `steps` batches, advanced by `done` (replaying it is exact and cheap)."""
    name, params = named(recipes.SCHEDULES, "schedule", recipe.schedule)
    schedule = SCHEDULES[name](optimizer, recipe, steps, params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # stepping before the optimizer is what a replay does
        for _ in range(done):
            schedule.step()
    return schedule


def learning_rate(optimizer: Optimizer) -> float:
    """The rate of the first group."""
    return float(optimizer.param_groups[0]["lr"])
