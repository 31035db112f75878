r"""Curvature of the mean loss L over the weights w, H = d^2 L / dw^2 (`hessian`).

    hessian-lambda-max    \lambda_max(H);  details: lambda_min, convexity_ratio = |lambda_min| / |lambda_max|;
                          density=n: the density of all eigenvalues, by n probes (`spectral_density`)
    hessian-trace         tr H = \sum_j H_jj;  details: trace/NAME of each layer's diagonal block
    weighted-curvature    tr(D H D) = \sum_j w_j^2 H_jj with D = diag(w);
                          details: lambda_max and lambda_min of D H D, weighted_trace/NAME

The weighted ones are the limits of adaptive sharpness of radius rho -> 0: rho^2/2 tr(D H D) on average and, where
the gradient vanishes, rho^2/2 \lambda_max(D H D) at worst. diag|w| instead of D has the same eigenvalues.

Yao, Gholami, Keutzer, Mahoney: PyHessian. IEEE BigData 2020. Weighted: Andriushchenko et al., ICML 2023.

Invariances. D H D: any element-wise rescaling of the weights that leaves the function as it is. H: none; a layer
scaled by c in front of a normalisation that undoes it has its trace multiplied by c^-2, and so does lambda_max where
all layers are. None is invariant to the scale of the logits; with logits="normalised" D H D is.

Errors. Lanczos has no standard error but a residual ||Hv - lambda v||: some eigenvalue lies within it, and
the estimate never exceeds the true maximum by more than rounding. Traces have the standard error over their
probes, given these examples.

Cost: a product with H is one forward and one backward pass of each image and the backward pass of both; a trace takes
`probes` of them, the two ends of a spectrum typically 40 to 200, its density `density` times `nodes`. Memory:
`vectors` (`nodes`) times the weights, in float64.

Traces per layer come with every trace (PyHessian issues 9 and 10 ask for them), and the loss is a mean over
examples, whatever the chunks.
"""

from __future__ import annotations

import math

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.measures.shared import FUNCTION, FixedImagesParams, LanczosParams, differentiate

with lazy_imports():
    import numpy as np
    from torch import nn

    from robflat_bench.core.randomness import normal_like
    from robflat_bench.measures.curvature.hessian import (
        DiagonalOperator,
        Hessian,
        Operator,
        extremes,
        hutchinson,
        rademacher,
    )
    from robflat_bench.measures.curvature.spectral_density import quadrature
    from robflat_bench.measures.oracle import Oracle


class HessianLambdaMaxParams(LanczosParams):
    """tolerance: of Lanczos, relative to the width of the spectrum. vectors: it keeps. iterations: restarts at most.

    density: probes of the spectral density (0: none). nodes: of each; it takes as many products and, in memory, as
    many times the weights.
    """

    density: NonNegativeInt = 0
    nodes: PositiveInt = 80


class HessianTraceParams(FixedImagesParams):
    """probes: random vectors of Hutchinson's estimator."""

    probes: int = Field(default=50, ge=2)


class WeightedCurvatureParams(LanczosParams):
    """probes: random vectors of Hutchinson's estimator. tolerance, vectors, iterations: of Lanczos."""

    probes: int = Field(default=50, ge=2)


INFO = (
    MeasureInfo(
        name="hessian-lambda-max",
        summary="largest eigenvalue of the Hessian of the loss over the weights, by Lanczos",
        factory=f"{__name__}:HessianLambdaMax",
        params=HessianLambdaMaxParams,
        citation=(
            "Yao, Gholami, Keutzer, Mahoney: PyHessian: neural networks through the lens of the Hessian. IEEE"
            " BigData 2020"
        ),
        title="largest Hessian eigenvalue ({coupling})",
        example={"steps": 2, "tolerance": 0.5, "vectors": 3},
        couplings=("clean", "frozen"),
        powers={"layers": -2},
    ),
    MeasureInfo(
        name="hessian-trace",
        summary="trace of the Hessian of the loss over the weights, whole and per layer, by Hutchinson's estimator",
        factory=f"{__name__}:HessianTrace",
        params=HessianTraceParams,
        citation=(
            "Yao, Gholami, Keutzer, Mahoney: PyHessian: neural networks through the lens of the Hessian. IEEE"
            " BigData 2020"
        ),
        title="Hessian trace ({coupling}), {probes} probes",
        example={"steps": 2, "probes": 2},
        couplings=("clean", "frozen"),
        passes=differentiate("probes", "2 * probes"),
        powers={"layers": -2},
    ),
    MeasureInfo(
        name="weighted-curvature",
        summary="curvature along each weight times its square, summed: the small-radius limit of adaptive sharpness",
        factory=f"{__name__}:WeightedCurvature",
        params=WeightedCurvatureParams,
        citation=(
            "Andriushchenko et al.: A modern look at the relationship between sharpness and generalization. ICML 2023"
        ),
        title="weighted curvature ({coupling}), {probes} probes",
        example={"steps": 2, "probes": 2, "tolerance": 0.5, "vectors": 3},
        couplings=("clean", "frozen"),
        powers=FUNCTION,
    ),
)


class HessianLambdaMax(Measure):
    """Details: `lambda_min`, `convexity_ratio` (0 where H is), `residual`, `residual_min`.

    Arrays, with density=n: `density_nodes` and `density_weights` [n, min(nodes, P)]; the weights of a probe sum to 1.
    """

    params: HessianLambdaMaxParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        hessian = _hessian(self, model, examples, workspace)
        ends = _spectrum(hessian, hessian, self.params, workspace, "hessian-lambda-max")
        value = ends.pop("lambda_max")
        ratio = abs(ends["lambda_min"] / value) if value else 0.0
        density = _density(hessian, self.params, workspace)
        return Measurement(value, None, len(examples), {**ends, "convexity_ratio": ratio}, density)


class HessianTrace(Measure):
    """Arrays: `probes` [probes], `layers` [probes, L] (their parts, in the order of the details)."""

    params: HessianTraceParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        hessian = _hessian(self, model, examples, workspace)
        ones = np.ones(hessian.size)
        key = (workspace.seed, "hessian-trace")
        layers = hutchinson(hessian, ones, self.params.probes, workspace.journal, *key)
        return _trace(hessian, layers, "trace", len(examples), {})


class WeightedCurvature(Measure):
    """Arrays: `probes` [probes], `layers` [probes, L]. Details: `lambda_max` of D H D with its `residual`, ..."""

    params: WeightedCurvatureParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        hessian = _hessian(self, model, examples, workspace)
        w = hessian.weights()
        key = (workspace.seed, "weighted-curvature")
        layers = hutchinson(hessian, w, self.params.probes, workspace.journal, *key)
        moved = DiagonalOperator(w) @ hessian @ DiagonalOperator(w)
        ends = _spectrum(hessian, moved, self.params, workspace, "weighted-curvature")
        return _trace(hessian, layers, "weighted_trace", len(examples), ends)


def _hessian(measure: Measure, model: nn.Module, examples: Examples, workspace: Workspace) -> Hessian:
    """Of the loss at the images of the measure's coupling."""
    oracle = Oracle(measure.threat, measure.params)
    oracle.freeze(model, examples, workspace)
    return Hessian(model, oracle, examples)


def _trace(hessian: Hessian, layers: np.ndarray, label: str, n: int, details: dict[str, float]) -> Measurement:
    probes = layers.sum(1)
    parts = {f"{label}/{name}": float(part) for name, part in zip(hessian.layers, layers.mean(0), strict=True)}
    return Measurement(
        value=float(probes.mean()),
        standard_error=float(probes.std(ddof=1)) / math.sqrt(len(probes)),
        n=n,
        details={**details, **parts},
        arrays={"probes": probes, "layers": layers},
    )


def _spectrum(
    hessian: Hessian,
    operator: Operator,
    params: LanczosParams,
    workspace: Workspace,
    name: str,
) -> dict[str, float]:
    """Both ends of the spectrum, one unit of the journal."""

    def compute() -> dict[str, np.ndarray]:
        start = hessian.draw(normal_like, workspace.seed, name, "start")
        found = extremes(
            operator, start, tolerance=params.tolerance, vectors=params.vectors, iterations=params.iterations
        )
        return {end: np.array(value) for end, value in found.items()}

    return {end: float(value) for end, value in workspace.journal.unit("spectrum", compute).items()}


def _density(hessian: Hessian, params: HessianLambdaMaxParams, workspace: Workspace) -> dict[str, np.ndarray]:
    """Nodes and weights of each probe, a unit of the journal; nothing without probes."""
    product = hessian.to_scipy().matvec

    def probe(number: int) -> dict[str, np.ndarray]:
        start = hessian.draw(rademacher, workspace.seed, "hessian-lambda-max", "density", number)
        nodes, weights = quadrature(product, start, params.nodes)
        return {"density_nodes": nodes, "density_weights": weights}

    units = [workspace.journal.unit(f"density-{n}", lambda n=n: probe(n)) for n in range(params.density)]  # type: ignore[misc]
    return {name: np.stack([unit[name] for unit in units]) for name in (units[0] if units else ())}
