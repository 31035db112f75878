r"""The largest eigenvalue of the Hessian of the mean loss over the weights:

    \lambda_max(H),   H = d^2 L / dw^2

The highest curvature in any direction. Details: `lambda_min`, `convexity_ratio` = |lambda_min| / |lambda_max|. With
density=n the arrays also hold the density of all eigenvalues, from n probes (see `spectral_density`).
Yao, Gholami, Keutzer, Mahoney: PyHessian. IEEE BigData 2020.

Invariances: none. Scaling all layers by c, in front of normalisations that undo it, multiplies the value by c^-2.
Scaling the logits changes it.
Error: Lanczos has no standard error but a residual ||Hv - lambda v||. Some eigenvalue lies within the residual of the
value, and the value exceeds the true maximum by no more than rounding.
Cost: a product with H is a backward pass of each image through its gradient. The gradient, one forward and one backward
pass, is computed once, and again for each product where its graph does not fit into memory. Both ends of the spectrum
together take 15 to 100 products, the density `density` times `nodes`. Memory: `vectors` (`nodes`) times the weights, in
float64.
"""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import LanczosParams

with lazy_imports():
    import numpy as np
    from torch import nn

    from robflat_bench.measures.curvature.hessian import Hessian, rademacher
    from robflat_bench.measures.curvature.lanczos import spectrum
    from robflat_bench.measures.curvature.spectral_density import quadrature
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.units import units


class HessianLambdaMaxParams(LanczosParams):
    density: NonNegativeInt = Field(default=0, description="Probes of the spectral density; 0: no density.")
    nodes: PositiveInt = Field(default=80, description="Nodes of each probe: products with H, and vectors in memory.")


INFO = MeasureInfo(
    name="hessian-lambda-max",
    summary="largest eigenvalue of the Hessian of the loss over the weights, by Lanczos",
    factory=f"{__name__}:HessianLambdaMax",
    params=HessianLambdaMaxParams,
    citation=cite("yao2020pyhessian"),
    title="largest Hessian eigenvalue ({coupling})",
    example={"steps": 2, "tolerance": 0.5, "vectors": 3},
    couplings=("clean", "frozen"),
    powers={"layers": -2},
)


class HessianLambdaMax(Measure):
    """Details: `lambda_min`, `convexity_ratio` (0 where H is 0), `residual`, `residual_min`.

    Arrays with density=n: `density_nodes`, `density_weights` [n, min(nodes, P)]; the weights of a probe sum to 1.
    """

    params: HessianLambdaMaxParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        params = self.params
        hessian = Hessian(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)
        ends = spectrum(hessian, params, workspace, INFO.name)
        value = ends.pop("lambda_max")
        details = {**ends, "convexity_ratio": abs(ends["lambda_min"] / value) if value else 0.0}

        def probe(number: int) -> dict[str, np.ndarray]:
            start = hessian.draw(rademacher, workspace.seed, INFO.name, "density", number)
            with hessian.products() as product:
                nodes, weights = quadrature(product, start, params.nodes)
            return {"density_nodes": nodes, "density_weights": weights}

        density = units(workspace.journal, "density", params.density, probe)
        return Measurement(value, None, len(examples), details, density)
