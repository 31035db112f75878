r"""The loss oracle: what loss is read at moved weights.

    coupling `reattack`:  L(w') = mean_i max_{||d|| <= eps} \ell_CE(f(x_i + d; w'), y_i), attacked afresh at w'

Losses are per example, so means, errors and differences are derived and never run again. The coupling `joint`,
where the adversarial examples climb together with the weights, is `worst_case`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from robflat_bench.attacks import PGDParams
from robflat_bench.attacks.engine import attacked
from robflat_bench.attacks.pgd import PGD
from robflat_bench.base import Examples, Threat, Workspace
from robflat_bench.batching import in_batches


class RobustLoss:
    """Cross-entropy under PGD, whose starts are keyed by (seed, restart, example): the same at every weights."""

    def __init__(self, threat: Threat, *, steps: int, step: float | None, restarts: int) -> None:
        self.pgd = PGD(PGDParams(steps=steps, step=step, restarts=restarts), threat)

    def losses(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Tensor:
        """Highest cross-entropy per example over restarts and iterates, float64 [N], in nats."""
        return in_batches(
            examples, workspace, lambda part: self.pgd.maximise(model, part, workspace.seed).loss, "loss"
        ).double()


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
            with attacked(model), torch.no_grad():
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
