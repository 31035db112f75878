r"""SAM sharpness: the rise of the loss after one step of length rho along its gradient,

    L(w + \rho g / ||g||_2) - L(w),   g = \nabla L(w), one norm over all layers

To first order in rho it is the highest rise within the ball. The step may lead downhill, so the value can be negative.
`m-sharpness` with one iteration and one batch of all examples is the same, where positive. Normalisation layers do not
move (in the code of SAM they do).
Foret et al.: ICLR 2021.

Invariances: none. Scaling a convolution by c, where batch normalisation undoes it, acts on its weights as \rho / c.
Scaling the logits changes the value, unless they are normalised.
Standard error: over examples, at this step. Cost: 2 forward and 2 backward passes; frozen adds its attack.
"""

from __future__ import annotations

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import Rho, SlopesParams, passes_at_fixed_images

with lazy_imports():
    from torch import Tensor, nn

    from robflat_bench.measures.ascent import BALLS, LossOverWeights
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import mean_of
    from robflat_bench.measures.units import unit


class SamSharpnessParams(SlopesParams):
    rho: Rho = 0.05


INFO = MeasureInfo(
    name="sam-sharpness",
    summary="rise of the loss after one step of length rho along its gradient in weight space",
    factory=f"{__name__}:SamSharpness",
    params=SamSharpnessParams,
    citation=cite("foret2021sharpness"),
    title="SAM sharpness ({coupling}), rho={rho:g}",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("2", "2"),
    estimate="examples",
)


class SamSharpness(Measure):
    """Arrays: `losses` [N] after the step, `reference` [N] at w, `per_example` [N]. Details: `gradient_norm`."""

    params: SamSharpnessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)

        def step() -> dict[str, Tensor]:
            surface = LossOverWeights(model, oracle, images, exclude=self.params.exclude)
            here = surface.origin()
            there = surface.at(self.params.rho * BALLS["l2"].direction(here.gradient))
            return {"losses": there.losses, "reference": here.losses, "slope": here.gradient.norm()}

        found = dict(unit(workspace.journal, "step", step))
        details = {"gradient_norm": float(found.pop("slope"))}
        return mean_of(found["losses"] - found["reference"], details, found)
