r"""The density of a symmetric operator's eigenvalues, without a matrix: stochastic Lanczos quadrature.

    \frac1P tr f(H) \approx \frac1n \sum_{i \le n} \sum_{j \le m} \omega_{ij} f(\theta_{ij}),
    \theta_i: eigenvalues of the m x m Lanczos matrix T_i of H and u_i;  \omega_{ij}: their eigenvectors' first entry^2

u_i: random unit vectors with E u u' = 1/P, here with entries +-1/\sqrt P. Each probe integrates u' f(H) u exactly for
polynomials f of degree 2m - 1, and for every f once its Krylov space is invariant, at the latest at m = P.

Vectors are fully reorthogonalised, twice. Without that (`fast_lanczos` of curvlinops 3.0.1) an eigenvalue that has
converged appears again: for a dense Hessian of 109 weights, m = P finds lambda_max six times, and H = 0 is an error.
`lanczos_tridiag` of linear_operator stops at residuals below 1e-6 at any scale: after 2 steps where lambda_max is 1e-7.

Ubaru, Chen, Saad: Fast estimation of tr(f(A)) via stochastic Lanczos quadrature. SIAM J. Matrix Anal. Appl. 2017.
For networks: Ghorbani, Krishnan, Xiao: An investigation into neural net optimization via Hessian eigenvalue density.
ICML 2019; Papyan: Traces of class/cross-class structure pervade deep learning spectra. JMLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

INVARIANT = 1e-12
"""A residual this small, relative to the largest product, is rounding: the Krylov space is invariant."""


def quadrature(product: Callable[[Vector], Vector], start: Vector, nodes: int) -> tuple[Vector, Vector]:
    """Nodes theta, ascending, and weights omega, which sum to 1, of one probe along `start` [P]; min(nodes, P) of each.

    Where the Krylov space is invariant earlier, the largest node is repeated with weight 0. Memory: nodes times P.
    """
    count = min(nodes, len(start))
    if not count:
        return np.zeros(0), np.zeros(0)
    theta, vectors = np.linalg.eigh(lanczos_matrix(product, start, count))  # Reads the lower triangle.
    missing = (0, count - len(theta))
    return np.pad(theta, missing, "edge"), np.pad(vectors[0] ** 2, missing)


def lanczos_matrix(product: Callable[[Vector], Vector], start: Vector, count: int) -> Vector:
    """The lower triangle of T, [m,m], m <= count; m < count where the Krylov space of `start` is invariant earlier."""
    basis = np.zeros((count, len(start)))
    lanczos = np.zeros((count + 1, count))
    vector, largest = start / np.linalg.norm(start), 0.0
    for k in range(count):
        basis[k] = vector
        residual = product(vector)
        lanczos[k, k] = vector @ residual
        largest = max(largest, float(np.linalg.norm(residual)))
        for _ in range(2):
            residual = residual - (basis[: k + 1] @ residual) @ basis[: k + 1]
        lanczos[k + 1, k] = np.linalg.norm(residual)
        if lanczos[k + 1, k] <= INVARIANT * largest:
            break
        vector = residual / lanczos[k + 1, k]
    return lanczos[: k + 1, : k + 1]


def smoothed(nodes: Vector, weights: Vector, grid: Vector, width: float) -> Vector:
    """The density at each point of `grid` [G]: Gaussians of standard deviation `width` at the nodes of all probes.

    nodes, weights: [probes, m]. It integrates to 1 over a grid that leaves some widths beyond both ends.
    """
    z = (grid[:, None] - nodes.ravel()) / width
    return np.exp(-(z**2) / 2) @ weights.ravel() / (len(nodes) * width * math.sqrt(2 * math.pi))
