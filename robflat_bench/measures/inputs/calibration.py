r"""Calibration and confidence: how the network's probabilities agree with its hits, at clean or adversarial images,

    ece         \sum_b |B_b| / N | mean_{i in B_b} c_i - mean_{i in B_b} a_i |,   c_i = max_k p_k(x_i),  a_i = 1{hit}
    nll         mean_i -log p_{y_i}, in nats
    brier       mean_i \sum_k (p_k - 1{k = y_i})^2, in [0, 2]
    confidence  mean_i c_i
    entropy     mean_i -\sum_k p_k log p_k, in nats

`kind` chooses the value; the details hold all five, and the accuracy mean_i a_i. The bins B_b have equal widths and
are closed on the right: ((b - 1) / bins, b / bins]. A confidence of exactly 1 is in the last bin, one on an edge in the
bin below it. A hit is a label with the highest probability, the first of equal ones.
ECE: Naeini, Cooper, Hauskrecht: AAAI 2015; Guo, Pleiss, Sun, Weinberger: ICML 2017. Brier: 1950.

Invariant to every change of weights that keeps the function. Scaling the logits changes it, by no fixed power, unless
they are normalised.
Standard error: over examples. That of ece is the infinitesimal jackknife: ece = mean_i s_i (c_i - a_i) with s_i the
sign of the mean of c - a in the bin of i, and the signs stay while the examples vary. No random numbers are drawn.
Where the true gap of every bin is 0, it is too large by 1.7, and so is the value: n examples of a bin show a gap of
about 0.8 sqrt(c (1 - c) / n) where there is none. So compare ece at one N.
Cost: one forward pass after the attack.
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
    from torch.nn import functional as F

    from robflat_bench.attacks.engine import attacked
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.per_example import mean_of


class CalibrationParams(FixedImagesParams):
    kind: Literal["ece", "nll", "brier", "confidence", "entropy"] = Field(
        default="ece",
        description="Reported number: expected calibration error, negative log-likelihood, Brier score, mean highest "
        "probability, or entropy of the probabilities.",
    )
    bins: int = Field(default=15, ge=1, le=1000, description="Bins of equal width of the calibration error.")


INFO = MeasureInfo(
    name="calibration",
    summary="how probabilities agree with hits: calibration error, likelihood, Brier score, confidence, entropy",
    factory=f"{__name__}:Calibration",
    params=CalibrationParams,
    citation=cite("guo2017calibration"),
    title="calibration: {kind} ({coupling})",
    example={"steps": 2},
    couplings=("clean", "frozen"),
    passes=passes_at_fixed_images("1", "0"),
    powers=FUNCTION,
    estimate="examples",
)


class Calibration(Measure):
    """Arrays: `per_example` [N], whose mean is the value. Details: all five kinds, `accuracy`."""

    params: CalibrationParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        oracle, images = given_images(self, model, examples, workspace)

        def scores(part: Examples) -> Tensor:
            with attacked(model), torch.no_grad():
                return _scores(oracle.logits(model(part.x)).double(), part.y)

        hit, confidence, nll, brier, entropy = in_batches(images, workspace, scores, "scores").cpu().numpy().T
        kinds = {
            "ece": signed_gaps(confidence, hit, self.params.bins),
            "nll": nll,
            "brier": brier,
            "confidence": confidence,
            "entropy": entropy,
        }
        details = {kind: float(each.mean()) for kind, each in kinds.items()}
        return mean_of(kinds[self.params.kind], {**details, "accuracy": float(hit.mean())})


def _scores(logits: Tensor, y: Tensor) -> Tensor:
    """Hit, confidence, negative log-likelihood, Brier score and entropy of each example, [B,5]."""
    log_p = logits.log_softmax(1)
    p, hit = log_p.exp(), logits.argmax(1) == y
    nll = -log_p.gather(1, y[:, None])[:, 0]
    brier = (p - F.one_hot(y, logits.shape[1])).square().sum(1)
    return torch.stack([hit, p.amax(1), nll, brier, torch.special.entr(p).sum(1)], 1)


def signed_gaps(confidence: np.ndarray, hit: np.ndarray, bins: int) -> np.ndarray:
    """s_i (c_i - a_i) of each example, [N], whose mean is the calibration error."""
    edges = np.arange(1, bins) / bins
    place, gap = np.searchsorted(edges, confidence, side="left"), confidence - hit
    signs: np.ndarray = np.sign(np.bincount(place, gap, minlength=bins))
    signed: np.ndarray = signs[place] * gap
    return signed
