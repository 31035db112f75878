r"""The radius at which a condition begins to fail, between two radii that were both tried.

A condition holds at r where its excess f(r) is at most 0. The search keeps a radius where it holds and one where it
fails, and tries the next where a model of f predicts the root. Close to one end it tries the radius at which the other
end may lie, high = low / (1 - tolerance), so that two verdicts end the search where the model is right. Every eighth
step goes to the middle, so that no model makes the search longer than eight bisections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

SMALLEST = 2.0**-30
"""The search ends at this fraction of the largest radius, where no radius satisfies the condition."""
INSIDE = 0.999
"""Part of the tolerance that a last step takes, so that rounding cannot make the bracket too wide."""
PATIENCE = 8
"""Every step of this number goes to the middle, whatever the model says."""


class End(NamedTuple):
    """A radius and its excess; the excess is infinite where only its sign is known."""

    radius: float
    excess: float


Model: TypeAlias = Callable[[End, End], float]
"""(low, high) -> the predicted root; where it is not strictly between them, the middle is tried."""


def interpolated(low: End, high: End) -> float:
    """The root of the line through both ends in the logarithm of the radius; NaN where an end has no finite excess."""
    if not (low.radius > 0 and math.isfinite(low.excess) and math.isfinite(high.excess)):
        return math.nan
    share = low.excess / (low.excess - high.excess)
    return low.radius * (high.radius / low.radius) ** share


def bracket(
    excess: Callable[[float], float], largest: float, tolerance: float, model: Model = interpolated
) -> tuple[float, float]:
    """Radii (low, high) around a point where the condition begins to fail, high - low <= tolerance * high.

    Parameters
    ----------
    excess : callable
        Radius -> a number that is at most 0 where the condition holds. NaN fails it.
    largest : float
        Radius tried first, and the largest.
    tolerance : float
        Relative width at which the search ends.
    model : callable
        Predicts the root from both ends; it decides how many radii are tried, not what the bracket says of them.

    Returns
    -------
    tuple of float
        The condition holds at low (or low is 0) and fails at high; (largest, largest) where it holds at `largest`.
        A condition that holds again further out has several such brackets; the search always finds the same one.
    """
    low, high, step = End(0.0, -math.inf), End(largest, excess(largest)), 0
    if high.excess <= 0:
        return largest, largest
    while high.radius - low.radius > tolerance * high.radius and high.radius > SMALLEST * largest:
        step += 1
        radius = _middle(low, high) if step % PATIENCE == 0 else _next(model(low, high), low, high, tolerance)
        end = End(radius, excess(radius))
        low, high = (end, high) if end.excess <= 0 else (low, end)
    return low.radius, high.radius


def _middle(low: End, high: End) -> float:
    """The geometric middle, or a quarter of `high` while no radius but 0 satisfies the condition."""
    return math.sqrt(low.radius * high.radius) if low.radius > 0 else high.radius / 4


def _next(root: float, low: End, high: End, tolerance: float) -> float:
    """The radius to try, strictly between the ends, where the model predicts this root."""
    if not low.radius < root < high.radius or low.radius >= (1 - 2 * tolerance) * high.radius > 0:
        return _middle(low, high)  # also where both halves end the search
    after, before = low.radius / (1 - INSIDE * tolerance), high.radius * (1 - INSIDE * tolerance)
    return min(max(root, after), before)
