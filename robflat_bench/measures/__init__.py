"""Catalogue of measures (torch-free); equations and code lie in the files the factories name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.base import MeasureInfo, Number, Params, hookimpl

STUTZ = "Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021"


class AverageCaseParams(Params):
    """xi: radius relative to each layer's norm. draws: of the weights. steps, step: of the attack at each draw.

    reference="matched" subtracts the loss at w under the same attack, restarts and starts (0 at xi=0); "paper"
    subtracts the loss of `reference_restarts` restarts selected by wrong-class confidence.
    """

    xi: Number = Field(default=0.5, ge=0)
    draws: int = Field(default=10, ge=2)
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)
    restarts: PositiveInt = 1
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10


class WorstCaseParams(Params):
    """xi: radius relative to each layer's norm. batch: examples per update of nu (0: all of them, one update a
    step). weight_step: of nu, relative to the layer's norm, by default 2.5 xi / updates.

    The released code's setting: batch=128, weight_step=0.01, keep="last", reference="paper".
    """

    xi: Number = Field(default=0.003, ge=0)
    restarts: PositiveInt = 10
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)
    weight_step: Number | None = Field(default=None, gt=0)
    batch: NonNegativeInt = 0
    keep: Literal["best", "last"] = "best"
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10


@hookimpl
def robflat_bench_measures() -> list[MeasureInfo]:
    return [
        MeasureInfo(
            "average-case",
            "average-case flatness of the robust loss: its mean rise over random weights at distance xi",
            "robflat_bench.measures.average_case:AverageCase",
            AverageCaseParams,
            STUTZ,
            "average-case flatness, xi={xi:g}, {draws} draws",
            {"draws": 2, "steps": 2},
            couplings=("reattack",),
        ),
        MeasureInfo(
            "worst-case",
            "worst-case flatness of the robust loss: its highest rise over weights within xi",
            "robflat_bench.measures.worst_case:WorstCase",
            WorstCaseParams,
            STUTZ,
            "worst-case flatness, xi={xi:g}, {restarts} restarts",
            {"restarts": 2, "steps": 2},
            couplings=("joint",),
        ),
    ]
