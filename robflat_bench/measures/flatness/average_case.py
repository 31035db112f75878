r"""Average-case flatness of the robust loss:

    F_avg(w) = E_{\nu ~ U(\partial B_xi(w))} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

with one fresh attack per draw (coupling `reattack`) and L(w) the loss at w itself. Under `frozen` and `clean` the
images stay while the weights move. Lower is flatter; nothing is clipped at 0. The paper's ball has one l2 radius per
layer; for other balls see `weight_space`.
Stutz et al., ICCV 2021.

Invariant to scaling a convolution whose batch normalisation undoes it.
Standard error: over draws and examples. Cost: draws + 1 times the attack, or forward passes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.measures.shared import (
    COUPLING,
    Draws,
    Norm,
    OracleParams,
    Reference,
    ReferenceRestarts,
    Shape,
    Xi,
    passes_of_readings,
    reference_is_attacked,
)

with lazy_imports():
    from torch import nn

    from robflat_bench.measures.flatness.reference import subtracted
    from robflat_bench.measures.random_moves import losses_after, mean_rise
    from robflat_bench.numerics.weight_space import Ball, WeightSpace


class AverageCaseParams(OracleParams):
    """Parameters of `average-case`."""

    coupling: Literal["clean", "frozen", "reattack"] = Field(default="reattack", description=COUPLING)
    xi: Xi = 0.5
    ball: Shape = "layer"
    norm: Norm = "l2"
    draws: Draws = 10
    reference: Reference = "matched"
    reference_restarts: ReferenceRestarts = 10

    _attacked = model_validator(mode="after")(reference_is_attacked)


INFO = MeasureInfo(
    name="average-case",
    summary="average-case flatness of the robust loss: its mean rise over random weights at distance xi",
    factory=f"{__name__}:AverageCase",
    params=AverageCaseParams,
    citation="Stutz, Hein, Schiele: Relating adversarially robust generalization to flat minima. ICCV 2021",
    title="average-case flatness ({coupling}), xi={xi:g}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=passes_of_readings("draws + 1"),
    powers={"layers": 0},
)


class AverageCase(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: AverageCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        space = WeightSpace(model, ball=Ball(params.ball, params.norm))
        moves = (space.on_sphere(params.xi, workspace.seed, INFO.name, draw) for draw in range(params.draws))
        matched, losses = losses_after(self, space, model, examples, workspace, moves)
        reference, details = subtracted(self, matched, model, examples, workspace)
        return mean_rise(reference, losses, details)
