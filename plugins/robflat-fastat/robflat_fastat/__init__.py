"""Fast adversarial training for robflat-bench: NuAT, GAT and ZeroGrad (rows, torch-free), and what methods cost.

Equations and code lie in the files the factories name. Radii below are those of the recipe; the defaults are the
authors' for CIFAR-10 at 8/255, none is rescaled for another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from robflat_bench.api import LeaderboardColumn, MethodInfo, Params, Passes, hookimpl
from robflat_fastat.cost import training_cost


class GuidedParams(Params):
    """noise: size of the random start, in radii. alpha: size of the step, in radii."""

    noise: float = Field(default=0.5, ge=0, le=1)
    alpha: float = Field(default=1.0, gt=0)


class NuATParams(GuidedParams):
    """weight: of the nuclear norm (lambda). ramp: the fraction of training over which it rises from 0 to that.
    noise: size of the random start, in radii. alpha: size of the step, in radii."""

    weight: float = Field(default=4.5, ge=0)
    ramp: float = Field(default=0.9, ge=0, le=1)


class GATParams(GuidedParams):
    """weight: of the squared distance (lambda). late: the fraction of training after which it is `boost` times as
    large. noise: size of the random start, in radii. alpha: size of the step, in radii."""

    weight: float = Field(default=10.0, ge=0)
    late: float = Field(default=0.86, ge=0, le=1)
    boost: float = Field(default=4.0, gt=0)


class ZeroGradParams(Params):
    """q: the quantile of the gradient's magnitudes below which pixels do not step (the authors': 0.35 for CIFAR-10,
    0.45 for CIFAR-100, 0.7 for SVHN). alpha: size of the step, in radii."""

    q: float = Field(default=0.35, ge=0, lt=1)
    alpha: float = Field(default=2.0, gt=0)


@hookimpl
def robflat_bench_methods() -> list[MethodInfo]:
    return [
        MethodInfo(
            "nuat",
            "clean cross-entropy plus the nuclear norm of what one guided step changes in the logits of a batch",
            "robflat_fastat.nuat:NuAT",
            NuATParams,
            "Sriramanan et al.: Towards efficient and effective adversarial training. NeurIPS 2021",
            example={"ramp": 0},
            attack=Passes("2", "1"),
            loss=Passes("2", "2"),
            claims=("attack",),
        ),
        MethodInfo(
            "gat",
            "clean cross-entropy plus the squared change of the prediction by one guided step",
            "robflat_fastat.gat:GAT",
            GATParams,
            "Sriramanan et al.: Guided adversarial attack for evaluating and enhancing adversarial defenses. "
            "NeurIPS 2020",
            attack=Passes("2", "1"),
            loss=Passes("2", "2"),
            claims=("attack",),
        ),
        MethodInfo(
            "zerograd",
            "one step from a random start that leaves the pixels of small gradients where they are",
            "robflat_fastat.zerograd:ZeroGrad",
            ZeroGradParams,
            "Golgooni et al.: ZeroGrad: mitigating and explaining catastrophic overfitting in FGSM adversarial "
            "training. arXiv 2103.15476, 2021",
            attack=Passes("1", "1"),
            claims=("attack",),
        ),
    ]


@hookimpl
def robflat_bench_leaderboard_columns(board: Mapping[str, Any]) -> list[LeaderboardColumn]:
    return training_cost(board)
