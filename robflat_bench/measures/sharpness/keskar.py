r"""Keskar's sharpness: the highest loss in a small box around w, relative to the loss at w, in per cent,

    100 ( max_{z \in C} L(w + z) - L(w) ) / (1 + L(w)),   C = { |z_i| <= \epsilon (|w_i| + 1) for all i }

by L-BFGS-B in the full space, from z = 0, in float64 (the network keeps its own precision). The highest of all points
that it evaluates counts, w included, so the value is never negative. Its stopping tolerances are off: it makes all its
iterations, however flat the loss. Normalisation layers and tensors of zero norm do not move.
Keskar et al.: ICLR 2017; L-BFGS-B: Byrd et al.: SIAM J. Sci. Comput. 1995.

Invariances: none exactly. Where |w_i| >> 1 the box follows the weights, elsewhere it is absolute: scaling a convolution
by c, where batch normalisation undoes it, shrinks the box relative to the weights by up to c. Scaling the logits
changes the value, unless they are normalised.
Standard error: over examples, at the highest point. It is the standard error of a ratio, whose denominator varies too.
Cost: one forward and backward pass per evaluation (detail `evaluations`), of which an iteration makes one or a few, and
one at w; frozen adds its attack.
"""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import SlopesParams

with lazy_imports():
    import numpy as np
    import torch
    from scipy import optimize
    from torch import nn

    from robflat_bench.core.estimates import estimated
    from robflat_bench.measures.ascent import BALLS, LossOverWeights, gap
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.units import Results, unit


class KeskarParams(SlopesParams):
    epsilon: Number = Field(
        default=1e-3, ge=0, description="Half-width of the box, relative to |w_i| + 1. The paper has 1e-3 and 5e-4."
    )
    iterations: PositiveInt = Field(default=10, description="Iterations of L-BFGS-B. Default: the paper's.")


INFO = MeasureInfo(
    name="keskar",
    summary="highest loss in a box around the weights, relative to the loss there, in per cent",
    factory=f"{__name__}:Keskar",
    params=KeskarParams,
    citation=cite("keskar2017large"),
    title="Keskar sharpness ({coupling}), eps={epsilon:g}",
    example={"steps": 2, "iterations": 3},
    couplings=("clean", "frozen"),
    estimate="examples of a quotient",
)


class Keskar(Measure):
    """Arrays: `losses` [N] at the highest point, `reference` [N], `per_example` [N], 100 (loss_i - L_i) / (1 + L).

    Details: `residual`, the gap of the highest point in nats (see `ascent`); `evaluations` of the loss.
    """

    params: KeskarParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        surface = LossOverWeights(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)
        found = unit(workspace.journal, "maximum", lambda: self._maximise(surface))
        losses, reference = found["losses"], found["reference"]
        per_example = 100 * (losses - reference) / (1 + reference.mean())
        arrays = {"losses": losses, "reference": reference, "per_example": per_example}
        details = {"residual": float(found["residual"]), "evaluations": float(found["evaluations"])}
        return estimated(INFO.estimate, arrays, details)

    def _maximise(self, surface: LossOverWeights) -> Results:
        h = self.params.epsilon * (surface.weights.abs() + 1)
        origin = highest = surface.origin()

        def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal highest
            point = surface.at(torch.from_numpy(z.copy()).to(h.device))
            if highest.mean < point.mean < math.inf:
                highest = point
            return -point.mean, -point.gradient.cpu().numpy()

        bound = h.cpu().numpy()
        end = optimize.minimize(
            objective,
            np.zeros_like(bound),
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(-bound, bound),
            options={"maxiter": self.params.iterations, "ftol": 0.0, "gtol": 0.0},
        )
        return {
            "losses": highest.losses,
            "reference": origin.losses,
            "residual": gap(h, BALLS["linf"], highest),
            "evaluations": end.nfev,
        }
