r"""m-sharpness: the highest rise of the loss of m examples within a ball, averaged over batches,

    mean over disjoint batches B of m examples of   max_{||\nu||_2 <= \rho} L_B(w + \nu) - L_B(w)

m is part of the definition: a \nu of its own for each m examples climbs higher than one \nu for all examples, so values
at different m do not compare. Examples beyond the last full batch are left out (`n` counts those that remain); fewer
than m examples form one batch. The maximum is the highest iterate of a projected ascent by steps of length
2.5 \rho / iterations along the normalised gradient. w itself counts as an iterate, so the value is never negative.
Normalisation layers do not move.
Andriushchenko & Flammarion: ICML 2022; Foret et al.: ICLR 2021.

Invariances: none. Scaling a convolution by c, where batch normalisation undoes it, acts on its weights as \rho / c.
Scaling the logits changes the value, unless they are normalised.
Standard error: over batches. Cost: per batch iterations + 1 forward and backward passes; frozen adds its attack.
"""

from __future__ import annotations

import itertools

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import Iterations, Rho, SlopesParams, passes_at_fixed_images

with lazy_imports():
    import torch
    from torch import nn

    from robflat_bench.core.estimates import estimated
    from robflat_bench.measures.ascent import BALLS, LossOverWeights, gap, highest, normalised_ascent
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.units import Results, units


class MSharpnessParams(SlopesParams):
    rho: Rho = 0.05
    m: PositiveInt = Field(default=128, description="Examples that share a perturbation; part of the definition.")
    iterations: Iterations = 20


INFO = MeasureInfo(
    name="m-sharpness",
    summary="highest rise of the loss of m examples over weights within rho, mean over batches",
    factory=f"{__name__}:MSharpness",
    params=MSharpnessParams,
    citation=cite("andriushchenko2022towards"),
    title="m-sharpness ({coupling}), m={m}, rho={rho:g}",
    example={"steps": 2, "m": 6, "iterations": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("iterations + 1", "iterations + 1"),
    estimate="batches",
)


class MSharpness(Measure):
    """Arrays: `per_batch` [batches], `per_example` [n]. Details: `m`, `batches`, `residual` (mean gap of `ascent`)."""

    params: MSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)
        m, ball = min(self.params.m, len(examples)), BALLS["l2"]

        def batch(number: int) -> Results:
            surface = LossOverWeights(model, oracle, images[number * m : (number + 1) * m], exclude=self.params.exclude)
            h = torch.full_like(surface.weights, self.params.rho)
            climb = normalised_ascent(surface, h, ball, self.params.iterations)
            here = next(climb)
            end = highest(itertools.chain([here], climb))
            return {"rise": end.losses - here.losses, "residual": gap(h, ball, end)}

        found = units(workspace.journal, "batch", len(examples) // m, batch)
        rises = found["rise"]
        arrays = {"per_batch": rises.mean(1), "per_example": rises.ravel()}
        return estimated(INFO.estimate, arrays, {"residual": float(found["residual"].mean())})
