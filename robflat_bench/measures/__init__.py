"""Measures: one number about a trained model, one file each.

A file holds the equation, the parameters, the catalogue row `INFO` and the class. A new measure is one new file in a
family, and its test.

flatness/   rise of the robust loss over random and worst-case weights, as in the paper
sharpness/  rise of the loss around the weights, in other balls and windows
curvature/  second derivatives with respect to the weights
inputs/     the network around its images: gradients, margins, Lipschitz constants
norms/      norms of weights and of their gradients

Shared: `shared` (parameters, image passes), `oracle` (losses at moved weights; start here), `random_moves` and `ascent`
(average and worst case over the weights), `per_example` (means with standard errors), `units` (what an interrupted
measurement reads back), `recording` (inputs of layers), `bisection`, `racing` (an error rate read no further than a
verdict needs), `rescaling` (copies of a model that test invariances).
"""

from __future__ import annotations

from robflat_bench.core import MeasureInfo, catalogue_rows, hookimpl


@hookimpl
def robflat_bench_measures() -> list[MeasureInfo]:
    """The built-in measures."""
    return catalogue_rows(__name__)
