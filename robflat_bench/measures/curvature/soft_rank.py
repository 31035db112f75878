r"""The soft rank of the Gauss-Newton matrix G of the mean loss: how many directions in weight space curve the loss more
than weight decay does,

    Tr( G (G + \lambda I)^-1 ) = \sum_j \theta_j / (\theta_j + \lambda),   \theta_j: eigenvalues of G

A direction with \theta = \lambda counts one half. G is the Hessian without second derivatives of the logits
(`hessian.py`): the Hessian itself has negative eigenvalues, at which the sum is not monotone and at -lambda not finite.
\lambda is the weight decay in the gradient of the mean loss, L(w) + \lambda/2 ||w||^2, as the recipe's `weight_decay`,
whose default it has; so it is compared with curvatures of a mean over examples. Detail `trace`: Tr G.
Shoham, Mor-Yosef, Avron: arXiv 2506.17809.

By stochastic Lanczos quadrature (`spectral_density.py`), with +-1 probes. Derivatives of \theta / (\theta + \lambda)
alternate in sign, so the Gauss-Radau rule of a probe with a node at 0, below which G has no eigenvalue, is below the
probe's true value, and its Gauss rule is above. Most eigenvalues of G are 0, so Radau is nearer, and is the value; the
detail `residual` is the distance to Gauss, by which more nodes can raise it at most.
Golub, Meurant: Matrices, moments and quadrature with applications. 2010.

Invariances: none. Scaling all layers by c in front of normalisations acts as scaling \lambda by c^2. Scaling the logits
changes it.
Standard error: over the probes, given these examples.
Cost: `probes` times `nodes` products with G, two backward passes of each image each, and one forward and one backward
pass for each probe, or for each product where the graph does not fit into memory. Memory: `nodes` times the weights, in
float64.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Examples, Measure, MeasureInfo, Measurement, Number, Workspace, lazy_imports
from robflat_bench.core.works import cite
from robflat_bench.measures.shared import Probes, SlopesParams

with lazy_imports():
    import numpy as np
    from torch import nn

    from robflat_bench.core.estimates import error_of_mean
    from robflat_bench.measures.curvature.hessian import GaussNewton, Product, Vector, rademacher
    from robflat_bench.measures.curvature.spectral_density import lanczos_matrix
    from robflat_bench.measures.oracle import given_images
    from robflat_bench.measures.units import units


class SoftRankParams(SlopesParams):
    decay: Number = Field(
        default=5e-4, gt=0, description="Lambda: curvature that counts one half. Default: the recipe's weight decay."
    )
    probes: Probes = 5
    nodes: int = Field(default=80, ge=2, description="Nodes of each probe: products with G, and vectors in memory.")


INFO = MeasureInfo(
    name="soft-rank",
    summary="soft rank of the Gauss-Newton matrix: directions that curve the loss more than weight decay does",
    factory=f"{__name__}:SoftRank",
    params=SoftRankParams,
    citation=cite("shoham2025flatness"),
    title="soft rank above {decay:g} ({coupling}), {probes} probes",
    example={"steps": 2, "probes": 2, "nodes": 3},
    couplings=("clean", "frozen"),
    estimate="probes",
)


class SoftRank(Measure):
    """Arrays: `probes` [probes]. Details: `residual`, `trace`."""

    params: SoftRankParams

    def measure(self, model: nn.Module, examples: Examples, workspace: Workspace) -> Measurement:
        matrix = GaussNewton(model, *given_images(self, model, examples, workspace), exclude=self.params.exclude)

        def probe(number: int) -> dict[str, float]:
            start = matrix.draw(rademacher, workspace.seed, INFO.name, number)
            with matrix.products() as product:
                return rules(product, start, self.params.nodes, self.params.decay)

        found = units(workspace.journal, "probe", self.params.probes, probe)
        probes = found["radau"]
        details = {"residual": float((found["gauss"] - probes).mean()), "trace": float(found["trace"].mean())}
        return Measurement(float(probes.mean()), error_of_mean(probes), len(examples), details, {"probes": probes})


def rules(product: Product, start: Vector, nodes: int, decay: float) -> dict[str, float]:
    """start' G (G + lambda)^-1 start by the rules `radau` and `gauss` of so many nodes, and `trace`, start' G start.

    Both rules are equal, and exact, where the Krylov space of `start` [P] is invariant.
    """
    size, lanczos = start @ start, lanczos_matrix(product, start, min(nodes, len(start)))
    radau = gauss = _quadratic(lanczos, decay)
    if len(lanczos) == nodes < len(start):
        values, vectors = np.linalg.eigh(lanczos[:-1, :-1])
        floor = np.finfo(np.float64).eps * max(float(values[-1]), np.finfo(np.float64).tiny)
        fixed = lanczos.copy()
        fixed[-1, -1] = lanczos[-1, -2] ** 2 * (vectors[-1] ** 2 / np.maximum(values, floor)).sum()
        radau = min(_quadratic(fixed, decay), gauss)
    return {"radau": size * radau, "gauss": size * gauss, "trace": size * lanczos[0, 0]}


def _quadratic(lanczos: Vector, decay: float) -> float:
    """The first entry of T (T + lambda)^-1; rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh(lanczos)
    values = np.maximum(values, 0.0)
    return float((vectors[0] ** 2 * values / (values + decay)).sum())
