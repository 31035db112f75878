"""Catalogue of attacks (torch-free); equations and code lie in the files the factories name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core.hooks import hookimpl
from robflat_bench.core.infos import AttackInfo, Passes
from robflat_bench.core.params import Number, Params


class PGDParams(Params):
    """step: size in pixels of [0,1], by default a quarter of the threat's epsilon. init: where restarts begin."""

    steps: PositiveInt = 20
    restarts: PositiveInt = 1
    step: Number | None = Field(default=None, gt=0)
    loss: Literal["ce", "margin"] = "ce"
    init: Literal["uniform", "zero"] = "uniform"


class AutoAttackParams(Params):
    """version: "standard" = APGD-CE, APGD-T, FAB-T, Square; "apgd" = the first two only, and not "AutoAttack".

    batch and seed are part of the definition: AutoAttack draws per batch of the examples that still stand. fast: the
    network's normalisation is folded into its convolutions, which rounds differently: a flag in hundreds may differ.
    """

    version: Literal["standard", "apgd"] = "standard"
    batch: PositiveInt = 250
    seed: NonNegativeInt = 0
    fast: bool = True


@hookimpl
def robflat_bench_attacks() -> list[AttackInfo]:
    return [
        AttackInfo(
            "fgsm",
            "one step of the whole radius along the sign of the gradient",
            "robflat_bench.attacks.fgsm:FGSM",
            citation="Goodfellow, Shlens, Szegedy: Explaining and harnessing adversarial examples. ICLR 2015",
            title="FGSM",
            passes=Passes("1", "1"),
        ),
        AttackInfo(
            "pgd",
            "projected sign-gradient ascent with restarts; keeps the highest loss per example",
            "robflat_bench.attacks.pgd:PGD",
            PGDParams,
            "Madry et al.: Towards deep learning models resistant to adversarial attacks. ICLR 2018",
            "PGD-{steps} x {restarts}",
            passes=Passes("restarts * (steps + 1)", "restarts * steps"),
        ),
        AttackInfo(
            "autoattack",
            "parameter-free ensemble by its authors; version=apgd is its APGD tier",
            "robflat_bench.attacks.autoattack:AutoAttack",
            AutoAttackParams,
            "Croce, Hein: Reliable evaluation of adversarial robustness with an ensemble of diverse "
            "parameter-free attacks. ICML 2020",
            "{version} tier of AutoAttack",
            {"version": "apgd"},
        ),
    ]
