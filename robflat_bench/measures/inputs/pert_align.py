r"""Perturbation alignment (PertAlign): how far a single-step attack meets the gradient on which it acted,

    mean_i cos( g_i, h_i ),   g_i = \nabla_x \ell(f(s_i), y_i),   h_i = \nabla_x \ell(f(x_i'), y_i),
    s_i = clip_{[0,1]}( x_i + \eta ),  \eta uniform in the ball,   x_i' = \Pi( s_i + step sign g_i )

g is the gradient of the attack at its start, h the one that the update's own backward pass gives at its end; \Pi
projects on the ball and [0,1]. In training it takes no further pass, and its fall warns of catastrophic overfitting:
the loss bends so much within one step that single-step attacks no longer find its maximum. Here the network at hand is
attacked as FGSM-RS attacks in training: step = 1.25 epsilon, in an l2 ball along g_i / ||g_i||_2 instead of sign g_i.
`gradient-alignment` compares the image with a random one instead, so no attack. Vanishing gradients as there; the
detail `vanishing` is the fraction of images with one.
SORA: ICML 2026, arXiv 2606.00738; FGSM-RS: Wong, Rice, Kolter: ICLR 2020.

Invariant to every change of weights that keeps the function. Scaling the logits changes it, by no fixed power.
Standard error: over examples. Each example has its own start, so it covers them.
Cost: two forward and two backward passes of the images.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import (
    ENGINE_NORMS,
    Examples,
    Measure,
    MeasureInfo,
    Measurement,
    Number,
    Params,
    Passes,
    Workspace,
    lazy_imports,
)
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION

with lazy_imports():
    from torch import Tensor, nn
    from torch.nn import functional as F

    from robflat_bench.attacks.norms import climbed
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.per_example import cosines, image_gradient, mean_of, random_images


class PertAlignParams(Params):
    norms = ENGINE_NORMS

    step: Number | None = Field(
        default=None, gt=0, le=1, description="Step of the attack, in pixels of [0,1]; by default 1.25 epsilon."
    )


INFO = MeasureInfo(
    name="pert-align",
    summary="cosine of the loss's gradients at the start and at the end of a single-step attack",
    factory=f"{__name__}:PertAlign",
    params=PertAlignParams,
    citation=cite("teymourian2026sora"),
    title="perturbation alignment",
    couplings=("clean",),
    passes={"clean": Passes("2", "2")},
    powers=FUNCTION,
    estimate="examples",
)


class PertAlign(Measure):
    """Arrays: `per_example` [N]. Details: `vanishing`."""

    params: PertAlignParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        both = in_batches(examples, workspace, lambda part: self._cosines(model, part, workspace.seed), "cosines")
        found, vanishing = both.cpu().numpy().T
        return mean_of(found, {"vanishing": float(vanishing.mean())})

    def _cosines(self, model: nn.Module, part: Examples, seed: int) -> Tensor:
        """The cosines, and whether a gradient vanished, [B,2]."""
        epsilon, norm = self.threat.epsilon, climbed(self.threat.norm)
        step = 1.25 * epsilon if self.params.step is None else self.params.step

        def gradient(x: Tensor) -> Tensor:
            return image_gradient(model, x, lambda x: F.cross_entropy(model(x), part.y, reduction="none"))

        start = random_images(part, self.threat, seed, INFO.name)
        first = gradient(start)
        end = norm.project(start + step * norm.steepest(first.view_as(start)).to(start), part.x, epsilon)
        return cosines(first, gradient(end))
