r"""The margin by which the label wins over the next class:

    mean_i [ p_{y_i} - max_{k != y_i} p_k ]   of probabilities (in [-1, 1]), or of logits (kind=logit)

at the clean image or at its adversarial image (frozen). Negative where misclassified. Details: `percentile_10`, the
margin that a tenth of the examples do not reach; `negative`, the fraction misclassified (a tie is not).
Jiang et al., ICLR 2019 and ICLR 2020 (10th percentile); of adversarial examples: Kim et al., NeurIPS 2023.

Invariant to every change of weights that keeps the function. Scaling the logits by c scales the logit margin by c and
changes the probability margin by no fixed power; with normalised logits it changes neither.
Standard error: over examples. Cost: one forward pass after the attack.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, passes_at_fixed_images

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.attacks.engine import margin as excess
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import mean_of


class MarginParams(FixedImagesParams):
    kind: Literal["probability", "logit"] = Field(default="probability", description="Scores whose margin is reported.")


INFO = MeasureInfo(
    name="margin",
    summary="by how much the label wins over the next class",
    factory=f"{__name__}:Margin",
    params=MarginParams,
    citation=cite("jiang2020fantastic"),
    title="{kind} margin ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("1", "0"),
    powers=FUNCTION,
    estimate="examples",
)


class Margin(Measure):
    """Arrays: `per_example` [N]."""

    params: MarginParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)

        def margin(part: Examples) -> Tensor:
            with attacked(model), torch.no_grad():
                scores = oracle.logits(model(part.x)).double()
            return -excess(part.y)(scores.softmax(1) if self.params.kind == "probability" else scores)

        margins = in_batches(images, workspace, margin, "margin").cpu().numpy()
        details = {"percentile_10": float(np.percentile(margins, 10)), "negative": float((margins < 0).mean())}
        return mean_of(margins, details)
