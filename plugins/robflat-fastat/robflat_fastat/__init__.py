"""Fast adversarial training for robflat-bench: NuAT, GAT and ZeroGrad (rows, without torch), and the cost of methods.

Each method's file holds its equation and code. A radius is the recipe's epsilon. The defaults are the authors' for
CIFAR-10 at 8/255; they are not rescaled for other radii.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from robflat_bench.api import LeaderboardColumn, MethodInfo, Params, Passes, hookimpl
from robflat_fastat.cost import training_cost


class GuidedParams(Params):
    noise: float = Field(default=0.5, ge=0, le=1, description="Size of the random start, in radii.")
    alpha: float = Field(default=1.0, gt=0, description="Size of the step, in radii.")


class NuATParams(GuidedParams):
    weight: float = Field(default=4.5, ge=0, description="Final weight (lambda) of the nuclear norm.")
    ramp: float = Field(default=0.9, ge=0, le=1, description="Fraction of training over which it rises from 0.")


class GATParams(GuidedParams):
    weight: float = Field(default=10.0, ge=0, description="Weight (lambda) of the squared distance.")
    late: float = Field(
        default=0.86, ge=0, le=1, description="Fraction of training after which `boost` multiplies the weight."
    )
    boost: float = Field(default=4.0, gt=0, description="Factor of the weight late in training.")


class ZeroGradParams(Params):
    q: float = Field(
        default=0.35,
        ge=0,
        lt=1,
        description="Quantile of the gradient's magnitudes below which a pixel does not step; the authors use 0.35 for "
        "CIFAR-10, 0.45 for CIFAR-100, 0.7 for SVHN.",
    )
    alpha: float = Field(default=2.0, gt=0, description="Size of the step, in radii.")


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
            sharded="its nuclear norm couples the images of a batch",
        ),
        MethodInfo(
            "gat",
            "clean cross-entropy plus the squared change of the prediction by one guided step",
            "robflat_fastat.gat:GAT",
            GATParams,
            "Sriramanan et al.: Guided adversarial attack for evaluating and enhancing adversarial defenses. "
            "NeurIPS 2020, arXiv 2011.14969",
            attack=Passes("2", "1"),
            loss=Passes("2", "2"),
            claims=("attack",),
            sharded=True,
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
            sharded=True,
        ),
    ]


@hookimpl
def robflat_bench_leaderboard_columns(board: Mapping[str, Any]) -> list[LeaderboardColumn]:
    return training_cost(board)
