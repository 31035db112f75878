"""The reference that a flatness value subtracts: the loss at w under the same attack, or the paper's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Measure, Workspace
from robflat_bench.core.batching import in_batches
from robflat_bench.measures.units import section
from robflat_bench.numerics.folding import folded


def paper_reference(pgd: PGD, model: nn.Module, examples: Examples, workspace: Workspace, restarts: int) -> Tensor:
    """The paper's reference loss, float64 [N] (paper section 1.7).

    For each example it is the cross-entropy of the restart with the highest wrong-class confidence max_{k != y} p_k.
    """
    confidence = torch.full_like(examples.y, -torch.inf, dtype=torch.float64)
    chosen = torch.zeros_like(confidence)

    def attacked_once(restart: int) -> Tensor:
        """Logits of an attack with one restart and a seed of its own, float64 [N,K]."""

        def logits(part: Examples) -> Tensor:
            x_adv = pgd.perturb(model, part, workspace.seed + restart)
            with attacked(model), folded(model, x_adv), torch.no_grad():
                found: Tensor = model(x_adv)
                return found

        return in_batches(examples, section(workspace, f"paper-{restart}"), logits, "logits").double()

    for z in workspace.journal.each(restarts, attacked_once):
        wrong = z.softmax(1).scatter(1, examples.y[:, None], -torch.inf).amax(1)
        loss = F.cross_entropy(z, examples.y, reduction="none")
        better = wrong > confidence
        confidence = torch.where(better, wrong, confidence)
        chosen = torch.where(better, loss, chosen)
    return chosen


def subtracted(
    measure: Measure, matched: np.ndarray, model: nn.Module, examples: Examples, workspace: Workspace
) -> tuple[np.ndarray, dict[str, float]]:
    """The reference of `average-case` or `worst-case`, float64 [N], as its parameter `reference` says.

    With reference=paper, the detail `offset_at_zero` is the value that a radius of 0 would have.
    """
    params = measure.params
    if params.reference == "matched":
        return matched, {}
    pgd = PGD(PGDParams(steps=params.steps, step=params.step), measure.threat)
    paper = paper_reference(pgd, model, examples, section(workspace, "paper"), params.reference_restarts)
    reference = paper.cpu().numpy()
    return reference, {"offset_at_zero": float((matched - reference).mean())}
