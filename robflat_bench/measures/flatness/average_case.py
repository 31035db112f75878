r"""Average-case flatness of the robust loss:

    F_avg(w) = E_{\nu ~ U(\partial B_xi(w))} [ mean_i max_{||d|| <= eps} \ell(f(x_i + d; w + \nu), y_i) ] - L(w)

with one fresh attack per draw (coupling `reattack`) and L(w) the loss at w itself; under `frozen` and `clean` the
images stay while the weights move. Lower is flatter; nothing is clipped at 0. Invariant to scaling a convolution
whose batch normalisation undoes it. The ball is the paper's (layer by layer, l2) or another of `weight_space`.
Cost: draws + 1 times the attack, or forward passes.   Stutz et al., ICCV 2021.
"""

from __future__ import annotations

from torch import nn

from robflat_bench.core.examples import Examples, Workspace
from robflat_bench.core.interfaces import Measure, Measurement
from robflat_bench.measures import AverageCaseParams
from robflat_bench.measures.oracle import Oracle, subtracted
from robflat_bench.measures.random_moves import losses_after, mean_rise
from robflat_bench.numerics.weight_space import Ball, WeightSpace


class AverageCase(Measure):
    """Arrays: `losses` [draws, N], `reference` [N], `per_example` [N] (their mean difference)."""

    params: AverageCaseParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        space = WeightSpace(model, ball=Ball(params.ball, params.norm))
        oracle = Oracle(self.threat, params)
        moves = (space.on_sphere(params.xi, workspace.seed, "average-case", draw) for draw in range(params.draws))
        matched, losses = losses_after(oracle, space, model, examples, workspace, moves)
        reference, details = subtracted(params, matched, model, examples, self.threat, workspace)
        return mean_rise(reference, losses, details)
