r"""Average-case flatness of the robust loss:

    F_avg(w) = E_\nu [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

    \nu uniform on the sphere ||\nu_l||_2 = xi ||w_l||_2 in every layer l

with one fresh attack per draw (coupling `reattack`) and L(w) the loss at w itself. `frozen` keeps the images attacked
at w while the weights move; `clean` uses clean images, and measures the flatness of the clean loss. Lower is flatter;
nothing is clipped at 0. For other balls than the paper's see `weight_space`.
Stutz et al., ICCV 2021.

Unchanged when a convolution followed by batch normalisation is rescaled.
Standard error: over draws and examples. Cost: draws + 1 times the attack, or forward passes; with `full_draws` see
`random_moves`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures import shared

with lazy_imports():
    from torch import nn

    from robflat_bench.measures.flatness.reference import subtracted
    from robflat_bench.measures.random_moves import losses_after, mean_rise
    from robflat_bench.numerics.weight_space import Ball, WeightSpace


class AverageCaseParams(shared.DrawsParams):
    coupling: Literal["clean", "frozen", "reattack"] = Field(
        default="reattack", description=shared.couplings("clean", "frozen", "reattack")
    )
    xi: shared.Xi = 0.5
    ball: shared.Shape = "layer"
    norm: shared.Norm = "l2"
    draws: shared.Draws = 10
    reference: shared.Reference = "matched"
    reference_restarts: shared.ReferenceRestarts = 10

    _attacked = model_validator(mode="after")(shared.reference_is_attacked)


INFO = MeasureInfo(
    name="average-case",
    summary="average-case flatness of the robust loss: its mean rise over random weights at distance xi",
    factory=f"{__name__}:AverageCase",
    params=AverageCaseParams,
    citation=cite("stutz2021relating"),
    title="average-case flatness ({coupling}), xi={xi:g}, {draws} draws",
    example={"draws": 2, "steps": 2},
    couplings=("clean", "frozen", "reattack"),
    passes=shared.passes_of_draws(),
    powers={"layers": 0},
    estimate="draws and examples",
)


class AverageCase(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (the mean over draws, minus `reference`);
    `shortfall` [full_draws, N], if short attacks are corrected (`random_moves`)."""

    params: AverageCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        space = WeightSpace(model, ball=Ball(params.ball, params.norm), exclude=params.exclude)
        move = partial(space.on_sphere, params.xi, workspace.seed, INFO.name)
        arrays = losses_after(self, space, examples, workspace, move)
        reference, details = subtracted(self, arrays["reference"], model, examples, workspace)
        return mean_rise({**arrays, "reference": reference}, details)
