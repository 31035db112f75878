r"""The radius at which a condition begins to fail, between two radii that were both tried.

A condition holds at r where its excess f(r) is at most 0. The search keeps a radius where it holds and one where it
fails, and tries the next where a model of f predicts the root. Close to one end it tries the radius at which the other
end may lie, high = low / (1 - tolerance), so that two verdicts end the search where the model is right. After three
equal verdicts in a row it leans to the other side of the prediction, twice as far each time. Where the
bracket has not halved in three steps, and at every eighth step, it goes to the middle: no model makes a search long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

SMALLEST = 2.0**-30
"""The search ends at this fraction of the largest radius, where no radius satisfies the condition."""
INSIDE = 0.999
"""Part of the tolerance that a last step takes, so that rounding cannot make the bracket too wide."""
POWERS = (0.8, 3.0)
"""Least and greatest power of a rise between two points."""
NEAR = 1.1
"""Factor between two ends within which a curve counts as a line."""
PATIENCE = 3
"""Steps in which the bracket has to halve, else the next one goes to its middle."""
LONG = 8
"""Every step of this number goes to the middle, whatever the model says."""


class End(NamedTuple):
    """A radius and its excess; the excess is infinite where only its sign is known."""

    radius: float
    excess: float


Model: TypeAlias = Callable[[End, End], float]
"""(low, high) -> the predicted root; where it is NaN, the middle is tried."""


def interpolated(low: End, high: End) -> float:
    """The root of the line through both ends in the logarithm of the radius; NaN where they are far apart."""
    if not (high.radius < NEAR * low.radius and math.isfinite(low.excess) and math.isfinite(high.excess)):
        return math.nan
    share = low.excess / (low.excess - high.excess)
    return low.radius * math.exp(share * math.log(high.radius / low.radius))


def power_law(rises: Mapping[float, float], power: float) -> float:
    """The radius at which a rise is 1, by a power law through the two points next to it.

    Parameters
    ----------
    rises : mapping of float to float
        Radius -> rise, in units of the target; only positive rises count.
    power : float
        The power where one point is known; NaN is returned where none is.
    """
    points = sorted((abs(math.log(rise)), radius, rise) for radius, rise in rises.items() if 0 < rise < math.inf)
    if not points:
        return math.nan
    _, radius, rise = points[0]
    if len(points) > 1:
        _, further, other = points[1]
        power = min(max(math.log(other / rise) / math.log(further / radius), POWERS[0]), POWERS[1])
    return radius * math.exp(-math.log(rise) / power)


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
    low, high, same = End(0.0, -math.inf), End(largest, excess(largest)), 0
    widths: list[float] = []
    if high.excess <= 0:
        return largest, largest
    while high.radius - low.radius > tolerance * high.radius and high.radius > SMALLEST * largest:
        widths.append(math.log(high.radius / low.radius) if low.radius > 0 else math.inf)
        slow = len(widths) > PATIENCE and widths[-1] > widths[-1 - PATIENCE] / 2
        lean = math.copysign(tolerance / 2 * (2 ** min(max(abs(same) - 2, 0), 9) - 1), same)
        root = model(low, high) * math.exp(lean)
        radius = _middle(low, high) if slow or len(widths) % LONG == 0 else _next(root, low, high, tolerance)
        end = End(radius, float(excess(radius)))
        within = end.excess <= 0
        low, high = (end, high) if within else (low, end)
        same = max(same, 0) + 1 if within else min(same, 0) - 1
    return low.radius, high.radius


def _middle(low: End, high: End) -> float:
    """The geometric middle, or a quarter of `high` while no radius but 0 satisfies the condition."""
    return math.sqrt(low.radius * high.radius) if low.radius > 0 else high.radius / 4


def _next(root: float, low: End, high: End, tolerance: float) -> float:
    """The radius to try, strictly between the ends, where the model predicts this root; beyond an end: beside it."""
    if not root > 0 or low.radius >= (1 - 2 * tolerance) * high.radius > 0:
        return _middle(low, high)  # also where both halves hardly exceed the tolerance
    after, before = low.radius / (1 - INSIDE * tolerance), high.radius * (1 - INSIDE * tolerance)
    return min(max(root, after), before)
