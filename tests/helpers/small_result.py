"""A result on four test and two training examples, small enough to compute every number by hand."""

import numpy as np

from robflat_bench.records.record import Flags, MeasureResult, Result, totals

OUTCOMES = {
    "best/test/clean/error": np.array([True, False, False, False]),
    "best/test/clean/loss": np.array([2.0, 0.1, 0.1, 0.1]),
    "best/test/pgd/error": np.array([False, True, False, False]),
    "best/test/pgd/loss": np.array([1.0, 2.0, 0.5, 0.5]),
    "best/test/fgsm/error": np.array([False, False, True]),
    "best/train/clean/error": np.array([False, True]),
    "best/train/pgd/error": np.array([False, False]),
    "best/train/pgd/loss": np.array([0.25, 0.5]),
    "best/measure/flat/per_example": np.array([0.5, 1.5]),
}


def small_result(**changes):
    """The result of checkpoint "best" of `OUTCOMES`, with these fields changed."""
    return Result(
        epoch=0,
        weights="0" * 64,
        measures={
            "flat": MeasureResult(value=1.0, standard_error=0.5, n=2, seconds=0.0),
            "sharp": MeasureResult(value=9.0, standard_error=None, n=2, seconds=0.0),
        },
        flags=Flags(zero_gradients=0.0, random_forward=False),
        seconds={},
        **(totals(OUTCOMES, "best", ["pgd", "fgsm"]) | changes),
    )
