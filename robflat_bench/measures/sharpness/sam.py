r"""Sharpness of one ascent step, and of an ascent per batch.

    sam-sharpness   L(w + \rho g / ||g||_2) - L(w),   g = \nabla L(w), one norm over all layers
    m-sharpness     mean over disjoint batches B of m examples:  max_{||\nu||_2 <= \rho} L_B(w + \nu) - L_B(w)

m is part of the definition, not a memory batch: a \nu of its own for each m examples climbs higher than one for all,
so values of different m do not compare. Examples beyond the last full batch play no part (`n` says how many did);
fewer than m in all are one batch. The maximum is the highest iterate of a projected ascent by steps of length
2.5 \rho / iterations along the normalised gradient, w itself included, so it is never negative; the single step of
`sam-sharpness` may lead downhill. One iteration over one batch of all n examples is `sam-sharpness`, where positive.

Which weights move: those of `WeightSpace`, without normalisation layers (SAM's own code moves these too).
Invariances: none. Scaling a convolution that batch normalisation undoes by c acts on its weights as \rho / c.
Scaling the logits changes it, unless they are normalised. Couplings: clean, frozen.
Cost: 2 forward and 2 backward passes; per batch, iterations + 1 of each; frozen adds its attack.
Foret et al.: ICLR 2021; Andriushchenko & Flammarion: ICML 2022.
"""

from __future__ import annotations

import functools
import itertools

from pydantic import Field, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.measures.shared import FixedImagesParams, differentiate

with lazy_imports():
    import numpy as np
    import torch
    from torch import nn

    from robflat_bench.measures.ascent import BALLS, Landscape, gap, given_images, highest, normalised_ascent
    from robflat_bench.measures.per_example import error_of_mean


class SamSharpnessParams(FixedImagesParams):
    """rho: length of the one step, over all layers."""

    rho: Number = Field(default=0.05, ge=0)


class MSharpnessParams(FixedImagesParams):
    """rho: radius, over all layers. m: examples that share a perturbation; part of the definition. iterations: of
    the ascent in each batch of m."""

    rho: Number = Field(default=0.05, ge=0)
    m: PositiveInt = 128
    iterations: PositiveInt = 20


INFO = (
    MeasureInfo(
        name="sam-sharpness",
        summary="rise of the loss after one step of length rho along its gradient in weight space",
        factory=f"{__name__}:SamSharpness",
        params=SamSharpnessParams,
        citation="Foret, Kleiner, Mobahi, Neyshabur: Sharpness-aware minimization. ICLR 2021",
        title="SAM sharpness ({coupling}), rho={rho:g}",
        example={"steps": 2},
        couplings=("clean", "frozen"),
        passes=differentiate("2", "2"),
    ),
    MeasureInfo(
        name="m-sharpness",
        summary="highest rise of the loss of m examples over weights within rho, mean over batches",
        factory=f"{__name__}:MSharpness",
        params=MSharpnessParams,
        citation="Andriushchenko, Flammarion: Towards understanding sharpness-aware minimization. ICML 2022",
        title="m-sharpness ({coupling}), m={m}, rho={rho:g}",
        example={"steps": 2, "m": 6, "iterations": 2},
        couplings=("clean", "frozen"),
        passes=differentiate("iterations + 1", "iterations + 1"),
    ),
)


class SamSharpness(Measure):
    """Arrays: `losses` [N], `reference` [N], `per_example` [N]; standard error over examples, at this step."""

    params: SamSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(model, self.threat, self.params, examples, workspace)

        def unit() -> dict[str, np.ndarray]:
            landscape = Landscape(model, oracle, images)
            here = landscape.origin()
            there = landscape.at(self.params.rho * BALLS["l2"].direction(here.gradient))
            return {
                "losses": there.losses.cpu().numpy(),
                "reference": here.losses.cpu().numpy(),
                "slope": here.gradient.norm().cpu().numpy(),
            }

        found = workspace.journal.unit("step", unit)
        difference = found["losses"] - found["reference"]
        return Measurement(
            value=float(difference.mean()),
            standard_error=error_of_mean(difference),
            n=len(examples),
            details={"gradient_norm": float(found["slope"])},
            arrays={"losses": found["losses"], "reference": found["reference"], "per_example": difference},
        )


class MSharpness(Measure):
    """Arrays: `per_batch` [batches], `per_example` [n]; standard error over batches, None where there is one.

    details: `m` examples in each of the `batches`; `residual`, the mean gap of their ends (see `ascent`).
    """

    params: MSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(model, self.threat, self.params, examples, workspace)
        m = min(self.params.m, len(examples))

        def unit(at: int) -> dict[str, np.ndarray]:
            landscape = Landscape(model, oracle, images[at : at + m])
            h = torch.full_like(landscape.weights, self.params.rho)
            climb = normalised_ascent(landscape, h, BALLS["l2"], self.params.iterations)
            here = next(climb)
            end = highest(itertools.chain([here], climb))
            rise = end.losses - here.losses
            return {"rise": rise.cpu().numpy(), "residual": np.array(gap(h, BALLS["l2"], end))}

        count = len(examples) // m
        found = [workspace.journal.unit(f"batch-{b}", functools.partial(unit, b * m)) for b in range(count)]
        rises = np.stack([arrays["rise"] for arrays in found])
        return Measurement(
            value=float(rises.mean()),
            standard_error=error_of_mean(rises.mean(1)),
            n=rises.size,
            details={
                "m": float(m),
                "batches": float(count),
                "residual": float(np.mean([arrays["residual"] for arrays in found])),
            },
            arrays={"per_batch": rises.mean(1), "per_example": rises.ravel()},
        )
