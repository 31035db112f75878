"""The largest radius that a condition allows, by bisection."""

from __future__ import annotations

from collections.abc import Callable

SMALLEST = 2.0**-30
"""Of the largest radius: where a search ends that no radius satisfies."""


def bracket(within: Callable[[float], bool], largest: float, tolerance: float) -> tuple[float, float]:
    """(low, high), high - low <= tolerance high: `low` is within (or 0), `high` is not.

    (largest, largest) if that is within. Where the condition holds again further out, this is one of its ends, the
    same for the same condition.
    """
    if within(largest):
        return largest, largest
    low, high = 0.0, largest
    while high - low > tolerance * high and high > SMALLEST * largest:
        middle = (low + high) / 2
        if within(middle):
            low = middle
        else:
            high = middle
    return low, high
