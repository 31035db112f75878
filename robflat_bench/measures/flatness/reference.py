"""What a flatness value subtracts: the loss at w under the same attack, or the paper's reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import attacked
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Threat, Workspace
from robflat_bench.core.batching import in_batches
from robflat_bench.numerics.folding import folded

if TYPE_CHECKING:
    from robflat_bench.measures.flatness.average_case import AverageCaseParams
    from robflat_bench.measures.flatness.worst_case import WorstCaseParams


def paper_reference(
    model: nn.Module,
    examples: Examples,
    threat: Threat,
    workspace: Workspace,
    *,
    steps: int,
    step: float | None,
    restarts: int,
) -> Tensor:
    """The paper's reference loss, float64 [N]: of the restarts, per example, the one with the highest
    wrong-class confidence max_{k != y} p_k, and then its cross-entropy (paper section 1.7)."""
    confidence = torch.full_like(examples.y, -torch.inf, dtype=torch.float64)
    chosen = torch.zeros_like(confidence)
    for restart in range(restarts):
        # One restart at a time is one restart keyed by its own seed.
        here = replace(workspace, journal=workspace.journal.section(f"paper-{restart}"))
        pgd = PGD(PGDParams(steps=steps, step=step), threat)

        def logits(part: Examples, pgd: PGD = pgd, seed: int = workspace.seed + restart) -> Tensor:
            x_adv = pgd.perturb(model, part, seed)
            with attacked(model), folded(model, x_adv), torch.no_grad():
                found: Tensor = model(x_adv)
                return found

        z = in_batches(examples, here, logits, "logits").double()
        p = z.softmax(1)
        wrong = p.scatter(1, examples.y[:, None], -torch.inf).amax(1)
        loss = torch.nn.functional.cross_entropy(z, examples.y, reduction="none")
        better = wrong > confidence
        confidence = torch.where(better, wrong, confidence)
        chosen = torch.where(better, loss, chosen)
    return chosen


def subtracted(
    params: AverageCaseParams | WorstCaseParams,
    matched: np.ndarray,
    model: nn.Module,
    examples: Examples,
    threat: Threat,
    workspace: Workspace,
) -> tuple[np.ndarray, dict[str, float]]:
    """What a flatness value subtracts, float64 [N]: the matched reference, or the paper's with its offset at xi=0."""
    if params.reference == "matched":
        return matched, {}
    paper = paper_reference(
        model,
        examples,
        threat,
        replace(workspace, journal=workspace.journal.section("paper")),
        steps=params.steps,
        step=params.step,
        restarts=params.reference_restarts,
    )
    reference = paper.cpu().numpy()
    return reference, {"offset_at_zero": float((matched - reference).mean())}
