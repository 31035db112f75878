r"""Average-case flatness of the robust loss:

    F_avg(w) = E_{\nu ~ U(\partial B_xi(w))} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

with one fresh attack per draw (coupling `reattack`) and L(w) the loss at w itself; under `frozen` and `clean` the
images stay while the weights move. Lower is flatter; nothing is clipped at 0. Invariant to scaling a convolution
whose batch normalisation undoes it. The ball is the paper's (layer by layer, l2) or another of `weight_space`.
Cost: draws + 1 times the attack, or forward passes.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from robflat_bench.core import (
    BallNorm,
    BallShape,
    Examples,
    Measure,
    MeasureInfo,
    Measurement,
    Number,
    Workspace,
    lazy_imports,
)
from robflat_bench.measures.shared import OracleParams, read, reference_is_attacked

with lazy_imports():
    from torch import nn

    from robflat_bench.measures.flatness.reference import subtracted
    from robflat_bench.measures.oracle import Oracle
    from robflat_bench.measures.random_moves import losses_after, mean_rise
    from robflat_bench.numerics.weight_space import Ball, WeightSpace


class AverageCaseParams(OracleParams):
    """xi: radius relative to the norm of each group of weights, `ball` and `norm` (see `weight_space`). draws: of the
    weights. steps, step, restarts: of the attack at each draw.

    reference="matched" subtracts the loss at w under the same attack, restarts and starts (0 at xi=0); "paper"
    subtracts the loss of `reference_restarts` restarts selected by wrong-class confidence.
    """

    coupling: Literal["clean", "frozen", "reattack"] = "reattack"
    xi: Number = Field(default=0.5, ge=0)
    ball: BallShape = "layer"
    norm: BallNorm = "l2"
    draws: int = Field(default=10, ge=2)
    reference: Literal["matched", "paper"] = "matched"
    reference_restarts: PositiveInt = 10

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
    passes=read("draws + 1"),
    powers={"layers": 0},
)


class AverageCase(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: AverageCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        space = WeightSpace(model, ball=Ball(params.ball, params.norm))
        oracle = Oracle(self.threat, params)
        moves = (space.on_sphere(params.xi, workspace.seed, "average-case", draw) for draw in range(params.draws))
        matched, losses = losses_after(oracle, space, model, examples, workspace, moves)
        reference, details = subtracted(params, matched, model, examples, self.threat, workspace)
        return mean_rise(reference, losses, details)
