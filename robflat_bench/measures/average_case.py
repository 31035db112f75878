r"""Average-case flatness of the robust loss:

    F_avg(w) = E_{\nu ~ U(\partial B_xi(w))} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

with one fresh attack per draw (coupling `reattack`) and L(w) the loss at w itself. Lower is flatter; nothing is
clipped at 0. Invariant to scaling a convolution whose batch normalisation undoes it.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from robflat_bench.base import Examples, Measure, Measurement, Workspace
from robflat_bench.measures import AverageCaseParams
from robflat_bench.measures.oracle import RobustLoss, paper_reference
from robflat_bench.measures.weight_space import WeightSpace


class AverageCase(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: AverageCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        space = WeightSpace(model)
        oracle = RobustLoss(self.threat, steps=params.steps, step=params.step, restarts=params.restarts)

        def section(name: str) -> Workspace:
            return replace(workspace, journal=workspace.journal.section(name))

        matched = oracle.losses(model, examples, section("reference"))
        reference, details = matched, {}
        if params.reference == "paper":
            reference = paper_reference(
                model,
                examples,
                self.threat,
                section("paper"),
                steps=params.steps,
                step=params.step,
                restarts=params.reference_restarts,
            )
            details["offset_at_zero"] = float((matched - reference).mean())

        draws = []
        for draw in range(params.draws):
            with space.moved(space.on_sphere(params.xi, workspace.seed, "average-case", draw)):
                draws.append(oracle.losses(model, examples, section(f"draw-{draw}")))
        losses = torch.stack(draws).cpu().numpy()
        difference = losses - reference.cpu().numpy()
        errors = crossed_errors(difference)
        return Measurement(
            value=float(difference.mean()),
            standard_error=errors.pop("standard_error"),
            n=len(examples),
            details={**errors, **details},
            arrays={
                "losses": losses,
                "reference": reference.cpu().numpy(),
                "per_example": difference.mean(0),
            },
        )


def crossed_errors(difference: np.ndarray) -> dict[str, float]:
    """Standard errors of the grand mean of [draws, N] values, draws and examples both random and crossed.

    The variance over draws and the variance over examples each contain the interaction once; the combined
    standard error counts it once.
    """
    draws, n = difference.shape
    over_draws = difference.mean(1).var(ddof=1) / draws
    over_examples = difference.mean(0).var(ddof=1) / n if n > 1 else 0.0
    residual = difference - difference.mean(1, keepdims=True) - difference.mean(0) + difference.mean()
    interaction = (residual**2).sum() / max((draws - 1) * (n - 1), 1) / (draws * n)
    combined = max(over_draws + over_examples - interaction, over_draws, over_examples)
    return {
        "standard_error": math.sqrt(combined),
        "standard_error_draws": math.sqrt(over_draws),
        "standard_error_examples": math.sqrt(over_examples),
    }
