r"""Boundary thickness: the length over which the network is undecided between an image and its adversarial image x_a,

    ||x - x_a||_2 \int_0^1 1{ a < g(t) < b } dt,   g(t) = p_i(x(t)) - p_j(x(t)),  x(t) = x + t (x_a - x)

with i, j the classes predicted at x and x_a. The integral is the fraction of `points` midpoints of equal parts of the
segment. x_a climbs the cross-entropy of i (untargeted) or descends the cross-entropy of a random other class
(targeted); labels are not read.

The value is the mean over the pairs that cross a boundary. Where the prediction stays, i = j and g = 0: the formula
would call the hardest examples infinitely thin. They are left out, and the detail `unchanged` counts them; a radius
beyond the threat's leaves fewer. Where no prediction changes, the value is 0, without a standard error.
Yang et al.: NeurIPS 2020.

Invariant to every change of weights that keeps the function. Scaling the logits changes it, by no fixed power.
Standard error: over examples. Cost: steps + 3 + points forward and steps backward passes of the images.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

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
from robflat_bench.measures.shared import FUNCTION, Steps

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.climbers import Objective
    from robflat_bench.attacks.engine import ascend, attacked, cross_entropy
    from robflat_bench.attacks.norms import climbed
    from robflat_bench.core.batching import in_batches
    from robflat_bench.core.estimates import estimated
    from robflat_bench.core.randomness import per_example_uniform


class BoundaryThicknessParams(Params):
    norms = ENGINE_NORMS

    a: Number = Field(
        default=0.0, ge=-1, le=1, description="Lower level of the difference of probabilities. Default: the paper's."
    )
    b: Number = Field(
        default=0.75, ge=-1, le=1, description="Upper level of the difference of probabilities. Default: the paper's."
    )
    points: PositiveInt = Field(default=128, description="Points of the segment that are read.")
    attack: Literal["untargeted", "targeted"] = Field(
        default="untargeted", description="The attack leaves the predicted class, or seeks a random other class."
    )
    radius: Number | None = Field(
        default=None, gt=0, description="Radius of the attack, in the threat's norm; by default epsilon."
    )
    steps: Steps = 20
    step: Number | None = Field(
        default=None, gt=0, description="Step size of the attack; by default radius/4, under l2 2.5 radius/steps."
    )


INFO = MeasureInfo(
    name="boundary-thickness",
    summary="length over which the network is undecided on the way to an adversarial image",
    factory=f"{__name__}:BoundaryThickness",
    params=BoundaryThicknessParams,
    citation=cite("yang2020boundary"),
    title="boundary thickness, {a:g} to {b:g}, {attack}",
    example={"steps": 2, "points": 8},
    couplings=("clean",),
    passes={"clean": Passes("steps + 3 + points", "steps")},
    powers=FUNCTION,
    estimate="changed examples",
)


class BoundaryThickness(Measure):
    """Arrays: `thickness` [N], NaN where the prediction stays. Details: `unchanged`."""

    params: BoundaryThicknessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        found = in_batches(examples, workspace, lambda part: self._thickness(model, part, workspace.seed), "thickness")
        return estimated(INFO.estimate, {"thickness": found.cpu().numpy()})

    def _thickness(self, model: nn.Module, part: Examples, seed: int) -> Tensor:
        params, x, key = self.params, part.x, (seed, "boundary-thickness")
        radius = self.threat.epsilon if params.radius is None else params.radius
        with attacked(model):
            with torch.no_grad():
                logits = model(x)
            i = logits.argmax(1)
            other = per_example_uniform(torch.zeros(len(part), dtype=torch.float64), part.index, *key, "target")
            objective = cross_entropy(i)
            if params.attack == "targeted":
                objective = _towards((i + 1 + _whole(other, logits.shape[1] - 1).to(i)) % logits.shape[1])
            norm = climbed(self.threat.norm)
            start = x + radius * norm.noise(x, part.index, *key, "start")
            step = norm.step(radius, params.steps) if params.step is None else params.step
            sizes: Any = {"epsilon": radius, "step": step, "steps": params.steps, "norm": self.threat.norm}
            x_a = ascend(model, x, start, objective, **sizes).x
            with torch.no_grad():
                j = model(x_a).argmax(1)
                between = torch.zeros(len(part), dtype=torch.float64, device=x.device)
                for point in range(params.points):
                    p = model(torch.lerp(x, x_a, (point + 0.5) / params.points)).softmax(1)
                    g = (p.gather(1, i[:, None]) - p.gather(1, j[:, None]))[:, 0]
                    between += (g > params.a) & (g < params.b)
        length = (x_a - x).double().flatten(1).norm(dim=1)
        return torch.where(i != j, length * between / params.points, torch.nan)


def _towards(target: Tensor) -> Objective:
    """Objective of an attack that seeks the target class, [B]."""
    loss = cross_entropy(target)
    return lambda logits: -loss(logits)


def _whole(uniform: Tensor, count: int) -> Tensor:
    """Numbers from U(-1,1) as integers 0 ... count - 1, equally likely."""
    return ((uniform + 1) / 2 * count).long().clamp(max=count - 1)
