"""Optimizers and learning-rate schedules of a recipe. All but Muon are torch's; a schedule advances once per update."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from robflat_bench.config import recipe as recipes
from robflat_bench.config.recipe import Recipe, named
from robflat_bench.training.muon import Muon

CLASSES: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "muon": Muon}


def build_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter], outputs: Iterable[Tensor] = ()) -> Optimizer:
    """The recipe's optimizer for these parameters; outputs: those of them that Muon leaves to AdamW."""
    name, params = named(recipes.OPTIMIZERS, "optimizer", recipe.optimizer)
    options = params.model_dump()
    if "beta1" in options:
        options["betas"] = options.pop("beta1"), options.pop("beta2")
    if name == "muon":
        options["outputs"] = outputs
    return eager(CLASSES[name])(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, **options)


def eager(optimizer: type[Optimizer]) -> Callable[..., Optimizer]:
    """The same optimizer without the wrappers in which torch imports its compiler: seconds and memory for nothing,
    because no run compiles an optimizer."""
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    bare = {name: inspect.unwrap(getattr(optimizer, name)) for name in methods}
    return type(optimizer.__name__, (optimizer,), {**bare, "step": torch.no_grad()(bare["step"])})


def build_schedule(recipe: Recipe, optimizer: Optimizer, steps: int, done: int) -> LRScheduler:
    """The recipe's schedule over `steps` updates, advanced by `done` of them. Replaying them is exact and cheap."""
    schedule = _schedule(recipe, optimizer, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of a schedule that advances before the optimizer
        for _ in range(done):
            schedule.step()
    return schedule


def _schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> LRScheduler:
    _, params = named(recipes.SCHEDULES, "schedule", recipe.schedule)
    rate = recipe.learning_rate
    match params:
        case recipes.PiecewiseParams(drops=drops, factor=factor):
            return lr_scheduler.MultiStepLR(optimizer, [round(drop * steps) for drop in drops], factor)
        case recipes.OneCycleParams(rise=rise):
            # One step more than there are: torch refuses to advance after the last step, and the loop does so.
            return lr_scheduler.OneCycleLR(
                optimizer, rate, steps + 1, pct_start=rise, anneal_strategy="linear", cycle_momentum=False
            )
        case recipes.CyclicParams(cycles=cycles):
            half: Any = steps / cycles / 2  # torch declares an int, but only a fraction lets the last step end at 0
            return lr_scheduler.CyclicLR(optimizer, 0.0, rate, half, half, cycle_momentum=False)
        case recipes.CosineParams(final=final):
            return lr_scheduler.CosineAnnealingLR(optimizer, steps, final * rate)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def learning_rate(optimizer: Optimizer) -> float:
    """The current learning rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
