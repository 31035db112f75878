r"""The local Lipschitz constant: the largest change of the output per change of the input, around each example,

    mean_i max_{||x' - x_i||_inf <= eps} || f(x_i) - f(x') ||_1 / || x' - x_i ||_inf      target=logits, probabilities
    mean_i max_{||x' - x_i||_inf <= eps} KL( p(x_i) || p(x') )                            target=divergence, in nats

by projected sign ascent from U(-eps, eps). Under an l2 threat, distances are l2, the ascent follows the gradient, and
the start is uniform in the l2 ball. The iterate with the highest quotient counts: a lower bound. The ascent follows the
gradient of the numerator alone; the gradient of the distance, which all pixels at the border of the ball share, would
only pull them inwards. A distance below a hundredth of eps is replaced by it, so that x' = x counts 0 and rounding is
not magnified. Yang, Rashtchian, Zhang, Salakhutdinov, Chaudhuri: NeurIPS 2020.

Invariant to every change of weights that keeps the function. Scaling the logits by c scales target=logits by c.
Standard error: over examples.
Cost: 1 + restarts (steps + 1) forward and restarts x steps backward passes of the images.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
from robflat_bench.measures.shared import FUNCTION, Restarts, Step, Steps

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import attacked, divergence_from
    from robflat_bench.attacks.norms import climbed
    from robflat_bench.core.batching import in_batches
    from robflat_bench.measures.per_example import mean_of
    from robflat_bench.numerics.gradients import gradients_of


class LocalLipschitzParams(Params):
    norms = ENGINE_NORMS

    target: Literal["logits", "probabilities", "divergence"] = Field(default="logits", description="Output that moves.")
    steps: Steps = 10
    step: Step = None
    restarts: Restarts = 1


INFO = MeasureInfo(
    name="local-lipschitz",
    summary="largest change of the output per change of the input within the ball",
    factory=f"{__name__}:LocalLipschitz",
    params=LocalLipschitzParams,
    citation=cite("yang2020closer"),
    title="local Lipschitz constant of {target}",
    example={"steps": 2},
    couplings=("clean",),
    passes={"clean": Passes("1 + restarts * (steps + 1)", "restarts * steps")},
    powers={**FUNCTION, "logits": 1},
    estimate="examples",
)

NEAREST = 0.01
"""Smallest distance that divides, relative to epsilon."""


class LocalLipschitz(Measure):
    """Arrays: `per_example` [N]."""

    params: LocalLipschitzParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        highest = in_batches(examples, workspace, lambda part: self._highest(model, part, workspace.seed), "quotient")
        return mean_of(highest.cpu().numpy())

    def _highest(self, model: nn.Module, part: Examples, seed: int) -> Tensor:
        params, epsilon, norm, x = self.params, self.threat.epsilon, climbed(self.threat.norm), part.x
        step = norm.step(epsilon, params.steps) if params.step is None else params.step
        best = torch.zeros(len(part), dtype=torch.float64, device=x.device)
        with attacked(model):
            with torch.no_grad():
                centre = model(x)
            for restart in range(params.restarts):
                start = x + epsilon * norm.noise(x, part.index, seed, "local-lipschitz", restart)
                current = norm.project(start, x, epsilon)
                for number in range(params.steps + 1):
                    image = current.detach().requires_grad_()
                    wanted = [image] if number < params.steps else []
                    moved, gradients = gradients_of(lambda: self._moved(centre, model(image)), wanted)  # noqa: B023
                    best = torch.maximum(best, moved.double() / self._distance(x, current))
                    for gradient in gradients:
                        current = norm.project(current + step * norm.steepest(gradient), x, epsilon)
        return best

    def _moved(self, centre: Tensor, logits: Tensor) -> Tensor:
        """The numerator: the change of the output, [B]."""
        if self.params.target == "divergence":
            return divergence_from(centre)(logits)
        if self.params.target == "probabilities":
            centre, logits = centre.softmax(1), logits.softmax(1)
        return (centre - logits).abs().sum(1)

    def _distance(self, x: Tensor, moved: Tensor) -> Tensor:
        """The denominator, [B]."""
        distance = climbed(self.threat.norm).size(moved - x)
        if self.params.target == "divergence":
            return torch.ones_like(distance)
        return distance.clamp(min=max(NEAREST * self.threat.epsilon, torch.finfo(x.dtype).tiny))
