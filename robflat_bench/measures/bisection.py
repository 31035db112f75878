"""The largest radius at which a condition holds, by bisection."""

from __future__ import annotations

from collections.abc import Callable

SMALLEST = 2.0**-30
"""The search ends at this fraction of the largest radius, where no radius satisfies the condition."""


def bracket(within: Callable[[float], bool], largest: float, tolerance: float) -> tuple[float, float]:
    """Radii (low, high) around the point where the condition begins to fail, high - low <= tolerance * high.

    `within(low)` holds (or low is 0) and `within(high)` does not; (largest, largest) where `within(largest)` holds.
    A condition that holds again further out has several such points; the search always finds the same one.
    """
    if within(largest):
        return largest, largest
    low, high = 0.0, largest
    while high - low > tolerance * high and high > SMALLEST * largest:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low, high
