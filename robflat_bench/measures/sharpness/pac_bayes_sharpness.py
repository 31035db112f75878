r"""PAC-Bayesian sharpness: how far all weights may move before the worst case makes `target` more errors,

    1 / \alpha^2,   \alpha = sup { a : max_{|u_i| <= h_i(a)} err(w + u) - err(w) <= target }

with h_i(a) = a, or a |w_i| + e (magnitude). err is the fraction of the given images that are misclassified; under
`frozen` it is a robust error. Lower is flatter. Errors have no gradient: u climbs the mean loss by Auto-PGD (steps of
sign \nabla L in the box), from 0 and then from random points, and the errors of every iterate count.

The search goes up from largest / 4^10 by factors of 4 until the target is exceeded, then bisects the last factor on a
logarithmic scale. It never goes down from the largest box: there the ascent ends among networks that guess, and may
find less than in a small box. The value is the end of the bracket that stays within the target. `saturated` is 1 where
even the largest box stays within it (without a trial where no more than `target` of the images are right), and -1 where
the smallest does not; alpha is then the largest or the smallest.
Jiang et al.: ICLR 2020; Dziugaite et al.: NeurIPS 2020, who fold normalisation into convolutions; here normalisation
layers do not move.

Invariances: with `magnitude` and e = 0, to every rescaling of single weights that leaves the function as it is.
Otherwise none: scaling all weights by c, at the same function, multiplies the value by c^-2. Scaling the logits leaves
the errors and changes only the loss that the ascent climbs.
Standard error: None. Nothing is drawn, and \alpha is a root of a step function of all examples together.
Cost: up to 11 + bisections trials, each of at most starts (iterations + 1) times 1 forward and 1 backward pass; a trial
ends when it exceeds the target. Errors are read from the pass that makes the gradient, and a point where the climb
stays, or starts again, costs nothing.
"""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import E, Iterations, Magnitude, SlopesParams, Starts, Target

with lazy_imports():
    import numpy as np
    import torch
    from torch import nn

    from robflat_bench.core.randomness import generator, global_state
    from robflat_bench.measures.ascent import BALLS, LossOverWeights, Point, Remembering, auto_pgd
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.units import unit
    from robflat_bench.numerics.passes import uncounted


class PacBayesSharpnessParams(SlopesParams):
    target: Target = 0.1
    magnitude: Magnitude = False
    e: E = 1e-3
    iterations: Iterations = 20
    starts: Starts = 1
    largest: Number = Field(default=2.0, gt=0, description="alpha tried last; the first is a millionth of it.")
    bisections: PositiveInt = Field(default=8, description="Bisections of the last factor of 4, on the log scale.")


INFO = MeasureInfo(
    name="pac-bayes-sharpness",
    summary="1/alpha^2, alpha the half-width of the box of weights whose worst case adds `target` errors",
    factory=f"{__name__}:PacBayesSharpness",
    params=PacBayesSharpnessParams,
    citation=cite("jiang2020fantastic"),
    title="PAC-Bayes sharpness ({coupling}), target={target:g}",
    example={"steps": 2, "iterations": 2, "bisections": 2},
    couplings=("clean", "frozen"),
    powers={"layers": -2},
)


class PacBayesSharpness(Measure):
    """Arrays: `alphas` [trials]; `rises` [trials] of the error rate, the highest or the first beyond the target.

    Details: `alpha`; `residual`, the width of its bracket; `saturated`; `error`, the error rate at w.
    """

    params: PacBayesSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params, journal = self.params, workspace.journal
        surface = Remembering(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)

        def at_w() -> Point:
            with global_state(generator(workspace.seed, INFO.name, "at w")):  # equal when computed again
                return surface.origin()

        errors = int(unit(journal, "reference", lambda: {"wrong": at_w().wrong})["wrong"].sum())
        trials: list[tuple[float, float]] = []
        settled = 1 - errors / len(examples) <= params.target

        def within(alpha: float) -> bool:
            if settled:
                return True

            def trial() -> dict[str, float]:
                if not surface.points:  # an interrupted measurement reads its errors at w back, but no gradient
                    with uncounted():
                        at_w()
                return {"rise": self._rise(surface, alpha, errors, workspace.seed)}

            rise = float(unit(journal, f"trial-{len(trials)}", trial)["rise"])
            trials.append((alpha, rise))
            return rise <= params.target

        ladder = [params.largest * 4.0**rung for rung in range(-10, 1)]
        beyond = next((rung for rung, alpha in enumerate(ladder) if not within(alpha)), len(ladder))
        low, high = ladder[max(beyond - 1, 0)], ladder[min(beyond, len(ladder) - 1)]
        saturated = {0: -1.0, len(ladder): 1.0}.get(beyond, 0.0)
        for _ in range(params.bisections if not saturated else 0):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if within(middle) else (low, middle)
        alphas, rises = np.array(trials).reshape(-1, 2).T
        details = {"alpha": low, "residual": high - low, "saturated": saturated, "error": errors / len(examples)}
        return Measurement(low**-2, None, len(examples), details, {"alphas": alphas, "rises": rises})

    def _rise(self, surface: LossOverWeights, alpha: float, errors: int, seed: int) -> float:
        """The highest rise of the error rate on the way of the ascents in the box of alpha, or the first too high."""
        params, weights, ball = self.params, surface.weights, BALLS["linf"]
        h = alpha * weights.abs() + params.e if params.magnitude else torch.full_like(weights, alpha)
        highest = 0.0
        for number in range(params.starts):
            start = surface.start(number, ball, seed, INFO.name)
            for point in auto_pgd(surface, h, ball, params.iterations, start):
                highest = max(highest, (int(point.wrong.sum()) - errors) / len(surface.images))
                if highest > params.target:
                    return highest
        return highest
