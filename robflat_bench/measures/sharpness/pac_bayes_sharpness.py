r"""PAC-Bayesian sharpness: how far all weights may move before the worst case makes `target` more errors,

    1 / \alpha^2,   \alpha = sup { a : max_{|u_i| <= h_i(a)} err(w + u) - err(w) <= target }

with h_i(a) = a, or a |w_i| + e (magnitude); err is the fraction of the given images that are misclassified, so with
coupling frozen it is a robust error. Errors have no gradient: u climbs the mean loss by Auto-PGD (steps of
sign \nabla L in the box), from 0 and then from random points, and every iterate's errors count. The search goes up
from largest / 4^10 by factors of 4 until the target is exceeded, and bisects the last of them on a logarithmic scale:
never down from the largest box, where the ascent ends among networks that guess and may find less than in a small
one. Reported is the end of the bracket that stayed within the target. `saturated` is 1 where even the largest stays
within (always, where no more than `target` of the images are right), and -1 where the smallest does not; then that
one is reported.

Which weights move: those of `WeightSpace`, without normalisation layers (the authors fold these into convolutions).
Invariances: magnitude with e = 0, to every rescaling of single weights that leaves the function as it is. Otherwise
none: if all weights scaled by c gave the same function, c^-2 as much. Scaling the logits leaves errors, and moves
the ascent's loss only. Couplings: clean, frozen.
Cost: up to 11 + bisections trials, each at most starts (iterations + 1) times 2 forward and 1 backward passes; a
trial ends when it has exceeded the target. Jiang et al.: ICLR 2020; Dziugaite et al.: NeurIPS 2020.
"""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import FixedImagesParams

with lazy_imports():
    import numpy as np
    import torch
    from torch import nn

    from robflat_bench.measures.ascent import BALLS, Landscape, auto_pgd, given_images


class PacBayesSharpnessParams(FixedImagesParams):
    """target: tolerated rise of the error rate. magnitude: half-widths alpha |w_i| + e rather than alpha.

    iterations, starts: of each trial's ascent. largest: alpha tried last; the first is a millionth of it.
    bisections: of a factor of 4, on a logarithmic scale.
    """

    target: Number = Field(default=0.1, gt=0, lt=1)
    magnitude: bool = False
    e: Number = Field(default=1e-3, ge=0)
    iterations: PositiveInt = 20
    starts: PositiveInt = 1
    largest: Number = Field(default=2.0, gt=0)
    bisections: PositiveInt = 8


INFO = MeasureInfo(
    name="pac-bayes-sharpness",
    summary="1/alpha^2, alpha the half-width of the box of weights whose worst case adds `target` errors",
    factory=f"{__name__}:PacBayesSharpness",
    params=PacBayesSharpnessParams,
    citation="Jiang, Neyshabur, Mobahi, Krishnan, Bengio: Fantastic generalization measures. ICLR 2020",
    title="PAC-Bayes sharpness ({coupling}), target={target:g}",
    example={"steps": 2, "iterations": 2, "bisections": 2},
    couplings=("clean", "frozen"),
    powers={"layers": -2},
)


class PacBayesSharpness(Measure):
    """Arrays: `alphas` [trials] and `rises` [trials] of the error rate: the highest, or the first beyond the target.

    No standard error: nothing is drawn, and \\alpha is a root of a step function of all examples together.
    details: `alpha`; `residual`, the width of its bracket; `saturated`; `error`, the error rate at w.
    """

    params: PacBayesSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        landscape = Landscape(model, *given_images(model, self.threat, params, examples, workspace))

        def origin() -> dict[str, np.ndarray]:
            return {"wrong": landscape.wrong(torch.zeros_like(landscape.weights)).cpu().numpy()}

        errors = int(workspace.journal.unit("reference", origin)["wrong"].sum())
        alphas: list[float] = []
        rises: list[float] = []

        def within(alpha: float) -> bool:
            def unit() -> dict[str, np.ndarray]:
                return {"rise": np.array(self.rise(landscape, alpha, errors, workspace.seed))}

            rise = float(workspace.journal.unit(f"trial-{len(alphas)}", unit)["rise"])
            alphas.append(alpha)
            rises.append(rise)
            return rise <= params.target

        ladder = [params.largest * 4.0**rung for rung in range(-10, 1)]
        beyond = next((rung for rung, alpha in enumerate(ladder) if not within(alpha)), len(ladder))
        low, high = ladder[max(beyond - 1, 0)], ladder[min(beyond, len(ladder) - 1)]
        saturated = {0: -1.0, len(ladder): 1.0}.get(beyond, 0.0)
        for _ in range(params.bisections if not saturated else 0):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if within(middle) else (low, middle)
        return Measurement(
            value=low**-2,
            standard_error=None,
            n=len(examples),
            details={"alpha": low, "residual": high - low, "saturated": saturated, "error": errors / len(examples)},
            arrays={"alphas": np.array(alphas), "rises": np.array(rises)},
        )

    def rise(self, landscape: Landscape, alpha: float, errors: int, seed: int) -> float:
        """The highest rise of the error rate that the ascent meets in the box of alpha, or the first one too high."""
        params, weights = self.params, landscape.weights
        h = alpha * weights.abs() + params.e if params.magnitude else torch.full_like(weights, alpha)
        highest = 0.0
        for start in range(params.starts):
            key = (seed, "pac-bayes-sharpness", start)
            z = BALLS["linf"].start(landscape.gaussian(*key), *key) if start > 0 else torch.zeros_like(weights)
            for point in auto_pgd(landscape, h, BALLS["linf"], params.iterations, z):
                highest = max(highest, (int(landscape.wrong(point.nu).sum()) - errors) / len(landscape.images))
                if highest > params.target:
                    return highest
        return highest
