r"""Probabilistic error: how often random changes within the threat's ball make the network err,

    1 - mean_i PR(x_i),   PR(x) = P_d[ argmax f( clip_{[0,1]}(x + d) ) = y ],   d uniform in the ball

PR is the share of `draws` random images that are classified correctly (a tie is an error). Detail `below`: the share of
images whose PR is below 1 - rho, which the network does not hold with probability 1 - rho. With 100 draws and rho 0.01,
these are the images with two errors or more. The difference between test and training images is PR's generalization
gap: `evaluate --train N` reads the measure on both.
Zhang et al.: PRBench, KDD 2026; Robey et al., ICML 2022. rho and draws: ours.

Invariant to every change of weights that keeps the function. Scaling the logits keeps it too.
Standard error: over examples. Each example has its own draws, so it covers them; the detail `standard_error_draws` is
the part that more draws would remove. Cost: draws forward passes of the images.
"""

from __future__ import annotations

import math

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
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked, margin
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.per_example import mean_of, random_images
    from robflat_bench.numerics.folding import folded


class ProbabilisticErrorParams(Params):
    norms = ENGINE_NORMS

    draws: int = Field(default=100, ge=2, description="Random images in the ball of each example.")
    rho: Number = Field(
        default=0.01, ge=0, lt=1, description="Share of errors that an example may have without counting in `below`."
    )


INFO = MeasureInfo(
    name="probabilistic-error",
    summary="how often random images in the threat's ball are misclassified",
    factory=f"{__name__}:ProbabilisticError",
    params=ProbabilisticErrorParams,
    citation=cite("zhang2026probabilistic"),
    title="probabilistic error, {draws} draws",
    example={"draws": 5},
    couplings=("clean",),
    passes={"clean": Passes("draws")},
    powers={**FUNCTION, "logits": 0},
    estimate="examples",
)


class ProbabilisticError(Measure):
    """Arrays: `per_example` [N], 1 - PR of each example. Details: `below`, `standard_error_draws`."""

    params: ProbabilisticErrorParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        draws, rho = self.params.draws, self.params.rho
        wrong = in_batches(examples, workspace, lambda part: self._wrong(model, part, workspace.seed), "wrong")
        errors = (wrong / draws).cpu().numpy()
        variance = (errors * (1 - errors)).sum() / (draws - 1)
        details = {
            "below": float((errors > rho).mean()),
            "standard_error_draws": math.sqrt(variance) / len(examples),
        }
        return mean_of(errors, details)

    def _wrong(self, model: nn.Module, part: Examples, seed: int) -> Tensor:
        """How many random images of each example are misclassified, [B]."""
        counts = torch.zeros(len(part), dtype=torch.float64, device=part.x.device)
        with attacked(model), folded(model, part.x), torch.no_grad():
            for draw in range(self.params.draws):
                images = random_images(part, self.threat, seed, INFO.name, draw)
                counts += ~(margin(part.y)(model(images)) < 0)
        return counts
