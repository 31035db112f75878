r"""The mean norm of the gradient of the loss with respect to the pixels:

    mean_i || \nabla_x \ell(f(x), y_i) ||_p   at x = x_i (clean) or at its adversarial image x_i' (frozen)

eps times the dual norm is the first-order rise of the loss within the ball. p=1 is the dual of the l-inf threat, p=2 of
l2. p=dual takes the dual of the protocol's threat.
Kim et al., NeurIPS 2023 (as a predictor); Simon-Gabriel et al., ICML 2019 (p as the threat's dual).

Invariant to every change of weights that keeps the function, folding included. Scaling the logits changes it, by no
fixed power, unless they are normalised.
Standard error: over examples. Cost: one forward and one backward pass of the images, after the frozen attack.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, passes_at_fixed_images

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.norms import NORMS
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import image_gradient, mean_of


class InputGradientNormParams(FixedImagesParams):
    p: Literal[1, 2, "dual"] = Field(
        default=1,
        description="Norm of the gradient; l1 is the dual of the l-inf threat, l2 of l2, and `dual` of the protocol's.",
    )


INFO = MeasureInfo(
    name="input-gradient-norm",
    summary="mean length of the loss's gradient in the pixels",
    factory=f"{__name__}:InputGradientNorm",
    params=InputGradientNormParams,
    citation=cite("kim2023fantastic"),
    title="input-gradient l{p} norm ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("1", "1"),
    powers=FUNCTION,
    estimate="examples",
)


class InputGradientNorm(Measure):
    """Arrays: `per_example` [N]."""

    params: InputGradientNormParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)
        p = NORMS[self.threat.norm].dual_p if self.params.p == "dual" else self.params.p

        def norm(part: Examples) -> Tensor:
            slope = image_gradient(model, part.x, lambda x: oracle.cross_entropy(model, replace(part, x=x)))
            norms: Tensor = torch.linalg.vector_norm(slope, p, dim=1)
            return norms

        return mean_of(in_batches(images, workspace, norm, "gradient_norm").cpu().numpy())
