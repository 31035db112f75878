r"""Gradient alignment: how linear the loss is around an example,

    mean_i E_\eta cos( \nabla_x \ell(f(x_i), y_i), \nabla_x \ell(f(x_i + \eta), y_i) ),   \eta ~ U([-eps, eps]^D)

or uniform in the l2 ball under an l2 threat. The value is 1 where the loss is linear in the ball, and collapses with
catastrophic overfitting. The moved image may leave [0,1], as published. The cosine is 1 where both gradients vanish (a
constant is linear), and 0 where one alone does; the detail `vanishing` is the fraction of pairs in which either
vanishes. Andriushchenko & Flammarion: NeurIPS 2020.

Invariant to every change of weights that keeps the function. Scaling the logits changes it, by no fixed power.
Standard error: over examples. Each example has its own draws, so it covers them; the detail `standard_error_draws` is
the part that more draws would remove. Cost: 1 + draws forward and backward passes of the images.
"""

from __future__ import annotations

import math

from pydantic import Field, PositiveInt

from robflat_bench.core import (
    ENGINE_NORMS,
    Examples,
    Measure,
    MeasureInfo,
    Measurement,
    Params,
    Passes,
    Workspace,
    lazy_imports,
)
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION

with lazy_imports():
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from robflat_bench.attacks.norms import climbed
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.per_example import cosines, image_gradient, mean_of


class GradientAlignmentParams(Params):
    norms = ENGINE_NORMS

    draws: PositiveInt = Field(
        default=1, description="Random draws of the noise for each example. Default: the paper's."
    )


INFO = MeasureInfo(
    name="gradient-alignment",
    summary="cosine of the loss's gradients at an image and at a random one in its ball",
    factory=f"{__name__}:GradientAlignment",
    params=GradientAlignmentParams,
    citation=cite("andriushchenko2020understanding"),
    title="gradient alignment, {draws} draws",
    couplings=("clean",),
    passes={"clean": Passes("1 + draws", "1 + draws")},
    powers=FUNCTION,
    estimate="examples",
)


class GradientAlignment(Measure):
    """Arrays: `per_example` [N], the mean over draws."""

    params: GradientAlignmentParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        draws = self.params.draws
        both = in_batches(examples, workspace, lambda part: self._cosines(model, part, workspace.seed), "cosines")
        cosines, vanishing = (part.cpu().numpy() for part in both.unbind(1))
        details = {"vanishing": float(vanishing.mean())}
        if draws > 1:
            details["standard_error_draws"] = math.sqrt(cosines.var(1, ddof=1).sum() / draws) / len(examples)
        return mean_of(cosines.mean(1), details)

    def _cosines(self, model: nn.Module, part: Examples, seed: int) -> Tensor:
        """The cosines, and whether a gradient vanished, [B,2,draws]."""

        def gradient(x: Tensor) -> Tensor:
            return image_gradient(model, x, lambda x: F.cross_entropy(model(x), part.y, reduction="none"))

        here, pairs = gradient(part.x), []
        for draw in range(self.params.draws):
            noise = climbed(self.threat.norm).noise(part.x, part.index, seed, "gradient-alignment", draw)
            pairs.append(cosines(here, gradient(part.x + self.threat.epsilon * noise)))
        return torch.stack(pairs, 2)
