r"""Worst-case adaptive sharpness: the highest rise of the mean loss over an ellipsoid or a box around w,

    max_{\nu \in C} L(w + \nu) - L(w),   C = { ||\nu / c||_2 <= \rho }  or  { |\nu_i| <= \rho c_i for all i }

with c = |w| + \eta (adaptive) or c = 1. Auto-PGD climbs in z = \nu / (\rho c), where C is the unit ball and its
projection exact (no search for a multiplier), from z = 0 and then from random points; the highest iterate of all starts
counts. \nu = 0 is an iterate, so the value is never negative. Weights with c_i = 0, tensors of zero norm and
normalisation layers do not move. At a point without any gradient a start from 0 stays there: starts > 1 leave it.
Kwon et al.: ICML 2021; Andriushchenko et al.: ICML 2023; Auto-PGD: Croce & Hein: ICML 2020.

Three faults of one published implementation are not repeated: its random starts raise a TypeError, so that all its
values are single starts from 0; it averages over batches of 128, which is `m-sharpness`, whereas here one \nu serves
all examples; and it takes c = 1 for biases.

Invariant, adaptive with \eta = 0, to every rescaling of single weights that leaves the function as it is: a neuron's by
a and its readers' by 1/a, or a convolution that batch normalisation undoes. Otherwise scaling such a convolution by a
acts on its weights as \rho / a. Scaling the logits changes it, unless they are normalised.
Standard error: over examples, at the best \nu.
Cost: per start, iterations + 1 forward and backward passes; frozen adds its attack.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import (
    FUNCTION,
    Adaptive,
    Iterations,
    SlopesParams,
    Starts,
    passes_at_fixed_images,
)

with lazy_imports():
    import torch
    from torch import nn

    from robflat_bench.core.estimates import standard_deviation
    from robflat_bench.measures.ascent import BALLS, LossOverWeights, auto_pgd, gap, highest
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import best_start, mean_of
    from robflat_bench.measures.units import Results, units


class AdaptiveWorstParams(SlopesParams):
    rho: Number = Field(
        default=0.5,
        ge=0,
        description="Radius in units of c; for a box, about a hundredth of that. The paper tries 0.25 to 2 (l2).",
    )
    ball: Literal["l2", "linf"] = Field(default="l2", description="Ellipsoid (l2) or box (linf).")
    adaptive: Adaptive = True
    eta: Number = Field(default=0.0, ge=0, description="Added to |w_i|, so that weights of 0 move too.")
    iterations: Iterations = 20
    starts: Starts = 1


INFO = MeasureInfo(
    name="adaptive-worst",
    summary="highest rise of the loss over weights in an ellipsoid or box that follows their magnitude",
    factory=f"{__name__}:AdaptiveWorst",
    params=AdaptiveWorstParams,
    citation=cite("andriushchenko2023modern"),
    title="adaptive worst-case sharpness ({coupling}), {ball}, rho={rho:g}",
    example={"steps": 2, "iterations": 3, "starts": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("starts * (iterations + 1)", "starts * (iterations + 1)"),
    powers=FUNCTION,
    estimate="examples",
)


class AdaptiveWorst(Measure):
    """Arrays: `losses` [starts, N] at each start's highest iterate, `reference` [N], `per_example` [N] of the highest
    start. Details: `residual`, its gap (see `ascent`); `spread_over_starts`, a standard deviation."""

    params: AdaptiveWorstParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, ball = self.params, BALLS[self.params.ball]
        surface = LossOverWeights(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)
        w = surface.weights
        h = params.rho * (w.abs() + params.eta if params.adaptive else torch.ones_like(w))

        def climb(number: int) -> Results:
            start = surface.start(number, ball, workspace.seed, INFO.name)
            points = auto_pgd(surface, h, ball, params.iterations, start)
            begin = next(points)
            end = highest(chain([begin], points))
            return {"begin": begin.losses, "losses": end.losses, "residual": gap(h, ball, end)}

        found = units(workspace.journal, "start", params.starts, climb)
        reference, losses = found["begin"][0], found["losses"]  # the first start is w itself
        best = best_start(losses)
        details = {"residual": float(found["residual"][best]), "spread_over_starts": standard_deviation(losses.mean(1))}
        return mean_of(losses[best] - reference, details, {"losses": losses, "reference": reference})
