r"""Adaptive worst-case sharpness: the highest rise of the mean loss over an ellipsoid or a box around w,

    max_{\nu \in C} L(w + \nu) - L(w),   C = { ||\nu / c||_2 <= \rho }  or  { |\nu_i| <= \rho c_i for all i }

with c = |w| + \eta (adaptive) or c = 1. It climbs by Auto-PGD in z = \nu / (\rho c), where C is the unit ball and its
projection exact (no search for a multiplier), from z = 0 and then from random points; the highest iterate of all
starts counts. As \nu = 0 is one of them it is never negative. Where c_i = 0, and in tensors of zero norm, nothing
moves; nor does it in normalisation layers.

Invariant, adaptive with \eta = 0, to every rescaling of single weights that leaves the function as it is: a neuron's
by a and its readers' by 1/a, or a convolution that batch normalisation undoes. Otherwise scaling such a convolution
by a acts on its weights as \rho / a. Scaling the logits changes it, unless they are normalised.
Couplings: clean, frozen.
Not inherited: a peer's random starts, which raise a TypeError (all its values are single starts from 0); its mean
over batches of 128, which is `m-sharpness`: here one \nu serves all examples; an identity for biases in c.
At a point without any gradient a start from 0 stays there: starts > 1 leave it.
Cost: per start, iterations + 1 forward and backward passes, and one at w; frozen adds its attack.
Kwon et al.: ICML 2021; Andriushchenko et al.: ICML 2023; Auto-PGD: Croce & Hein: ICML 2020.
"""

from __future__ import annotations

import functools
from typing import Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, differentiate

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.measures.ascent import BALLS, Landscape, auto_pgd, gap, given_images, highest
    from robflat_bench.measures.per_example import error_of_mean


class AdaptiveWorstParams(FixedImagesParams):
    """rho: radius in units of c = |w| + eta, or of 1 without adaptive; of a box (ball="linf") about a hundredth of
    an ellipsoid's. iterations: of Auto-PGD. starts: the first at w, the others random in the ball."""

    rho: Number = Field(default=0.5, ge=0)
    ball: Literal["l2", "linf"] = "l2"
    adaptive: bool = True
    eta: Number = Field(default=0.0, ge=0)
    iterations: PositiveInt = 20
    starts: PositiveInt = 1


INFO = MeasureInfo(
    name="adaptive-worst",
    summary="highest rise of the loss over weights in an ellipsoid or box that follows their magnitude",
    factory=f"{__name__}:AdaptiveWorst",
    params=AdaptiveWorstParams,
    citation=(
        "Andriushchenko, Croce, Mueller, Hein, Flammarion: A modern look at the relationship between "
        "sharpness and generalization. ICML 2023"
    ),
    title="adaptive worst-case sharpness ({coupling}), {ball}, rho={rho:g}",
    example={"steps": 2, "iterations": 3, "starts": 2},
    couplings=("clean", "frozen"),
    passes=differentiate("1 + starts * (iterations + 1)", "1 + starts * (iterations + 1)"),
    powers=FUNCTION,
)


class AdaptiveWorst(Measure):
    """Arrays: `losses` [starts, N] (at each start's highest iterate), `reference` [N], `per_example` [N] (at the
    highest start); standard error over examples, at its \\nu. details: `residual`, the gap there (see `ascent`)."""

    params: AdaptiveWorstParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        landscape = Landscape(model, *given_images(model, self.threat, self.params, examples, workspace))

        def origin() -> dict[str, np.ndarray]:
            return {"losses": landscape.origin().losses.cpu().numpy()}

        def climb(start: int) -> dict[str, np.ndarray]:
            losses, residual = self.climb(landscape, workspace.seed, start)
            return {"losses": losses.cpu().numpy(), "residual": np.array(residual)}

        units = workspace.journal.unit
        reference = units("reference", origin)["losses"]
        found = [units(f"start-{start}", functools.partial(climb, start)) for start in range(self.params.starts)]
        losses = np.stack([arrays["losses"] for arrays in found])
        means = losses.mean(1)
        best = int(means.argmax())
        difference = losses[best] - reference
        return Measurement(
            value=float(difference.mean()),
            standard_error=error_of_mean(difference),
            n=len(examples),
            details={
                "residual": float(found[best]["residual"]),
                "spread_over_starts": float(means.std(ddof=1)) if len(means) > 1 else 0.0,
            },
            arrays={"losses": losses, "reference": reference, "per_example": difference},
        )

    def climb(self, landscape: Landscape, seed: int, start: int) -> tuple[Tensor, float]:
        """The losses [N] at the highest iterate from one start, and its gap."""
        params, ball = self.params, BALLS[self.params.ball]
        weights = landscape.weights
        h = params.rho * (weights.abs() + params.eta if params.adaptive else torch.ones_like(weights))
        z, key = torch.zeros_like(weights), (seed, "adaptive-worst", start)
        if start > 0:
            z = ball.start(landscape.gaussian(*key), *key)
        end = highest(auto_pgd(landscape, h, ball, params.iterations, z))
        return end.losses, gap(h, ball, end)
