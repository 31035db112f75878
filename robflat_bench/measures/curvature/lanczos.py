r"""Both ends of the spectrum of a symmetric matrix that is known by its products: Lanczos with thick restarts.

    H V = V T + r e_m',   T = V' H V,   T s = \theta s,   ||H (V s) - \theta V s||_2 = ||r||_2 |s_m|

V [m orthonormal vectors] spans the Krylov space of H and a random start; its Ritz values \theta approach both ends from
inside. The iteration ends once V has been full and the residuals of the largest and of the smallest are at most
`tolerance` times the width of the spectrum. Relative to the smallest eigenvalue the tolerance could not be met where
that is 0, as in a convex problem with a null space. When V is full, it restarts from the Ritz vectors nearest to both
ends, and from r.

One space serves both ends. `scipy.sparse.linalg.eigsh` can do the same (which="BE"), but its tolerance is relative to
each eigenvalue. The residuals that are returned are measured, by one product each, so that they hold the rounding of
the products.
Wu, Simon: Thick-restart Lanczos method for large symmetric eigenvalue problems. SIAM J. Matrix Anal. Appl. 2000.
"""

from __future__ import annotations

import numpy as np

from robflat_bench.core import NoValue, Workspace
from robflat_bench.core.randomness import normal_like
from robflat_bench.measures.curvature.hessian import Hessian, Product, Vector
from robflat_bench.measures.shared import LanczosParams
from robflat_bench.measures.units import unit

INVARIANT = 1e-12
"""A residual this small, relative to the largest product, is rounding: the Krylov space is invariant."""
COLUMNS = 2**16
"""Columns of V that a restart rotates at a time, so that it needs no second V."""


def spectrum(
    hessian: Hessian, params: LanczosParams, workspace: Workspace, name: str, scale: Vector | None = None
) -> dict[str, float]:
    """`extremes` of H, or of S H S with S = diag(scale); one unit of the journal."""

    def compute() -> dict[str, float]:
        start = hessian.draw(normal_like, workspace.seed, name, "start")
        lanczos = params.model_dump(include={"tolerance", "vectors", "iterations"})
        with hessian.products() as product:
            moved = product if scale is None else lambda v: scale * product(scale * v)
            return extremes(moved, start, **lanczos)

    return {end: float(value) for end, value in unit(workspace.journal, "spectrum", compute).items()}


def extremes(product: Product, start: Vector, *, tolerance: float, vectors: int, iterations: int) -> dict[str, float]:
    """The largest and the smallest eigenvalue of a symmetric matrix, each with its residual.

    Parameters
    ----------
    product : callable
        v -> H v, for vectors float64 [P].
    start : ndarray
        The first vector of the Krylov space [P], not 0.
    tolerance : float
        Bound on both residuals, relative to the width of the spectrum.
    vectors : int
        Vectors of V, at least 3: P float64 numbers each.
    iterations : int
        How often V may be filled.

    Returns
    -------
    dict
        `lambda_max`, `lambda_min`, and their residuals `residual`, `residual_min`.

    Raises
    ------
    NoValue
        V was filled `iterations` times and a residual is still above its bound.
    """
    size = min(vectors, len(start))
    if not size:
        return dict.fromkeys(("lambda_max", "lambda_min", "residual", "residual_min"), 0.0)
    basis, projected = np.zeros((size, len(start))), np.zeros((size, size))
    residual, known, largest = start, 0, 0.0
    for fill in range(iterations):
        for k in range(known, size):
            np.divide(residual, np.linalg.norm(residual), out=basis[k])
            residual = product(basis[k])
            largest = max(largest, float(np.linalg.norm(residual)))
            for _ in range(2):  # the second time removes what rounding left
                along = basis[: k + 1] @ residual
                residual = residual - along @ basis[: k + 1]
                projected[: k + 1, k] += along
            projected[k] = projected[:, k]
            values, inner = np.linalg.eigh(projected[: k + 1, : k + 1])
            length = float(np.linalg.norm(residual))
            errors = length * np.abs(inner[-1])
            told = fill or k + 1 == size  # a smaller space may know an inner eigenvalue better than the end
            met = told and max(errors[0], errors[-1]) <= tolerance * (values[-1] - values[0])
            if met or length <= INVARIANT * largest:
                return _ends(product, values[[0, -1]], inner[:, [0, -1]].T @ basis[: k + 1])
        known = _restart(basis, projected, values, inner)
    raise NoValue(f"Lanczos did not reach tolerance={tolerance:g} within iterations={iterations}; raise one of them")


def _restart(basis: Vector, projected: Vector, values: Vector, inner: Vector) -> int:
    """Put the Ritz vectors nearest to both ends in front, in place of V and T; how many they are."""
    side = max(1, len(values) // 4)
    chosen = np.r_[0:side, len(values) - side : len(values)]
    for first in range(0, basis.shape[1], COLUMNS):
        part = basis[:, first : first + COLUMNS]
        part[: 2 * side] = inner[:, chosen].T @ part
    projected[:] = 0
    projected[range(2 * side), range(2 * side)] = values[chosen]
    return 2 * side


def _ends(product: Product, values: Vector, vectors: Vector) -> dict[str, float]:
    """Both ends of these eigenvalues, with the residuals of their eigenvectors, one a row."""
    high, low = (float(np.linalg.norm(product(vectors[at]) - values[at] * vectors[at])) for at in (-1, 0))
    return {"lambda_max": float(values[-1]), "lambda_min": float(values[0]), "residual": high, "residual_min": low}
