r"""Curvature along each weight, weighted by the square of the weight:

    tr(D H D) = \sum_j w_j^2 H_jj,   H = d^2 L / dw^2,   D = diag(w)

The limit of adaptive sharpness for a radius rho -> 0: on average rho^2/2 tr(D H D), and at worst, where the gradient
vanishes, rho^2/2 \lambda_max(D H D). diag|w| instead of D has the same eigenvalues. Details: lambda_max and lambda_min
of D H D with their residuals, weighted_trace/NAME of each layer.
Andriushchenko et al., ICML 2023.

Invariant to every element-wise rescaling of the weights that leaves the function as it is. Scaling the logits changes
it, unless they are normalised.
Standard error: over the probes of Hutchinson's estimator, given these examples.
Cost: `probes` products with H and those of Lanczos, typically 15 to 100; each is a backward pass of each image through
its gradient, which they share (see `hessian-trace`, `hessian-lambda-max`). Memory: `vectors` times the weights, in
float64.
"""

from __future__ import annotations

from dataclasses import replace

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import FUNCTION, LanczosParams, Probes

with lazy_imports():
    from torch import nn

    from robflat_bench.measures.curvature.hessian import Hessian, trace
    from robflat_bench.measures.curvature.lanczos import spectrum
    from robflat_bench.measures.oracle import given_images


class WeightedCurvatureParams(LanczosParams):
    probes: Probes = 50


INFO = MeasureInfo(
    name="weighted-curvature",
    summary="curvature along each weight times its square, summed: the small-radius limit of adaptive sharpness",
    factory=f"{__name__}:WeightedCurvature",
    params=WeightedCurvatureParams,
    citation=cite("andriushchenko2023modern"),
    title="weighted curvature ({coupling}), {probes} probes",
    example={"steps": 2, "probes": 2, "tolerance": 0.5, "vectors": 3},
    couplings=("clean", "frozen"),
    powers=FUNCTION,
    estimate="probes",
)


class WeightedCurvature(Measure):
    """Arrays: `probes` [probes], `layers` [probes, L]. Details: `lambda_max` of D H D with its `residual`, ..."""

    params: WeightedCurvatureParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        hessian = Hessian(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)
        w = hessian.weights()
        found = trace(hessian, w, self.params.probes, workspace, INFO.name, "weighted_trace")
        ends = spectrum(hessian, self.params, workspace, INFO.name, w)
        return replace(found, details={**ends, **found.details})
