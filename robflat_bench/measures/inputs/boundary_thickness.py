r"""How wide the network's doubt is between an example and its adversarial image x_a:

    ||x - x_a||_2 \int_0^1 1{ a < g(t) < b } dt,   g(t) = p_i(x(t)) - p_j(x(t)),  x(t) = x + t (x_a - x)

with i, j the classes predicted at x and x_a; the integral is the fraction of midpoints of equal parts of the segment.
x_a climbs the cross-entropy of i (untargeted) or descends that of a random other class (targeted), labels unread.

Mean over the pairs that cross a boundary. Where the prediction stays, i = j and g = 0: the formula would call the
hardest examples infinitely thin. They are left out, `unchanged` is their number, and a radius beyond the threat's
makes them fewer; where nothing changes the value is 0, without a standard error.   Yang et al.: NeurIPS 2020.

Invariant to every change of weights that keeps the function; moved by scaling logits, by no fixed power.
Cost: steps + 3 + points forward and steps backward passes of the inputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, PositiveInt

from robflat_bench.core import (
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
from robflat_bench.measures.shared import FUNCTION

with lazy_imports():
    import numpy as np
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import Objective, ascend, attacked, cross_entropy
    from robflat_bench.core.batching import in_batches
    from robflat_bench.core.randomness import per_example_uniform
    from robflat_bench.measures.per_example import mean_of


class BoundaryThicknessParams(Params):
    """a, b: the levels between which the difference of the two probabilities counts. points: on the segment.
    attack, radius (l-inf, default epsilon), steps, step (default radius/4): how the other end is found."""

    a: Number = Field(default=0.0, ge=-1, le=1)
    b: Number = Field(default=0.75, ge=-1, le=1)
    points: PositiveInt = 128
    attack: Literal["untargeted", "targeted"] = "untargeted"
    radius: Number | None = Field(default=None, gt=0)
    steps: PositiveInt = 20
    step: Number | None = Field(default=None, gt=0)


INFO = MeasureInfo(
    name="boundary-thickness",
    summary="length over which the network doubts on the way to an adversarial image",
    factory=f"{__name__}:BoundaryThickness",
    params=BoundaryThicknessParams,
    citation="Yang et al.: Boundary thickness and robustness in learning models. NeurIPS 2020",
    title="boundary thickness, {a:g} to {b:g}, {attack}",
    example={"steps": 2, "points": 8},
    couplings=("clean",),
    passes={"clean": Passes("steps + 3 + points", "steps")},
    powers=FUNCTION,
)


class BoundaryThickness(Measure):
    """Arrays: `thickness` [N], NaN where the prediction stays."""

    params: BoundaryThicknessParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        found = in_batches(examples, workspace, lambda part: self._thickness(model, part, workspace.seed), "thickness")
        thickness = found.cpu().numpy()
        changed = thickness[~np.isnan(thickness)]
        pairs = mean_of(changed) if len(changed) else Measurement(0.0, None, 0)
        details = {"unchanged": float(len(thickness) - len(changed))}
        return replace(pairs, details=details, arrays={"thickness": thickness})

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
            x_a = ascend(
                model,
                x,
                x + radius * per_example_uniform(x, part.index, *key, "start"),
                objective,
                epsilon=radius,
                step=radius / 4 if params.step is None else params.step,
                steps=params.steps,
            ).x
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
    loss = cross_entropy(target)
    return lambda logits: -loss(logits)


def _whole(uniform: Tensor, count: int) -> Tensor:
    """U(-1,1) -> 0 ... count - 1, equally likely."""
    return ((uniform + 1) / 2 * count).long().clamp(max=count - 1)
