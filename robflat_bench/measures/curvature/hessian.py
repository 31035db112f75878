r"""The Hessian of the mean loss over the weights, without a matrix; what the curvature measures read of it.

    H = d^2/dw^2 (1/N) \sum_i \ell(f(x_i; w), y_i)

w: the layers of `WeightSpace` (no normalisation layers, no tensors of zero norm), at fixed images. Products with
vectors are gradients of gradients, summed over chunks of `oracle.CHUNK`: a mean over all examples, not a sum of batch
means. Vectors are float64 outside the model, so what surrounds the products adds no rounding; the products have the
model's precision.

H is an operator of curvlinops: its algebra makes D H D and H - mu, and its export to SciPy gives both to ARPACK. What
of curvlinops 3.0.1 does not carry: its own Hessian is forward over reverse, which torch refuses for SiLU and Mish; its
`hutchinson_trace` returns one number, neither probes nor layers, of random numbers that no key decides;
its Lanczos keeps no orthogonality, so ours is in `spectral_density`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robflat_bench.attacks.engine import attacked
from robflat_bench.core import Examples, Journal, NoValue
from robflat_bench.core.batching import padded_batches
from robflat_bench.core.randomness import generator
from robflat_bench.measures.oracle import CHUNK, Oracle, differentiable
from robflat_bench.numerics.weight_space import WeightSpace

with warnings.catch_warnings():
    # Of linear_operator, which curvlinops imports for its inverses.
    warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
    from curvlinops._torch_base import PyTorchLinearOperator
    from curvlinops.examples import IdentityLinearOperator

Operator: TypeAlias = PyTorchLinearOperator
Vector = NDArray[np.float64]

DENSE = 20
"""Up to this many weights the matrix itself is smaller than a Krylov space."""


@contextmanager
def twice_differentiable(model: nn.Module, layers: list[nn.Parameter]) -> Iterator[None]:
    """The model as an attack sees it, but for these layers; fused attention has no second derivative."""
    with attacked(model), differentiable(layers), sdpa_kernel(SDPBackend.MATH):
        yield


class Symmetric(Operator):  # type: ignore[misc]
    """A symmetric operator on vectors [P], float64 and on the CPU wherever the model is. `to_scipy` takes numpy's."""

    SELF_ADJOINT = True
    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, size: int) -> None:
        super().__init__([(size,)], [(size,)])
        self.size = size


class DiagonalOperator(Symmetric):
    """The diagonal matrix of these entries [P]."""

    def __init__(self, entries: Vector) -> None:
        super().__init__(len(entries))
        self.entries = torch.from_numpy(entries)

    def _matmat(self, x: list[Tensor]) -> list[Tensor]:
        return [self.entries[:, None] * x[0]]


class Hessian(Symmetric):
    """H over all layers, flattened one after another. `oracle` holds fixed images."""

    def __init__(self, model: nn.Module, oracle: Oracle, examples: Examples) -> None:
        self.model = model
        self.layers = WeightSpace(model).layers
        self.sizes = [layer.numel() for layer in self.layers.values()]
        self.points = oracle.points(examples)
        self.oracle = oracle
        super().__init__(sum(self.sizes))

    def _matmat(self, x: list[Tensor]) -> list[Tensor]:
        """[H X] of [X], X [P,K]: the columns share the first gradient."""
        layers = list(self.layers.values())
        total = torch.zeros_like(x[0])
        if not layers:
            return [total]
        columns = x[0].T.to(layers[0])
        with twice_differentiable(self.model, layers):
            for part, count in padded_batches(self.points, CHUNK):
                loss = self.oracle.cross_entropy(self.model, part)[:count].sum() / len(self.points)
                gradients = torch.autograd.grad(loss, layers, create_graph=True, materialize_grads=True)
                for column, v in enumerate(columns):
                    along = [u.view_as(g) for u, g in zip(v.split(self.sizes), gradients, strict=True)]
                    slope = torch.stack([(g * u).sum() for g, u in zip(gradients, along, strict=True)]).sum()
                    more = column + 1 < len(columns)
                    products = torch.autograd.grad(slope, layers, retain_graph=more, materialize_grads=True)
                    total[:, column] += torch.cat([product.flatten() for product in products]).double().cpu()
        return [total]

    def weights(self) -> Vector:
        """w, as one vector."""
        return _joined([layer.detach().double().cpu().flatten() for layer in self.layers.values()])

    def draw(self, kind: Callable[[Tensor, torch.Generator], Tensor], *key: int | str) -> Vector:
        """A random vector whose every layer is keyed by its name and shape."""
        parts = []
        for name, layer in self.layers.items():
            empty = torch.empty(layer.shape, dtype=torch.float64)
            parts.append(kind(empty, generator(*key, name, *layer.shape)).flatten())
        return _joined(parts)

    def by_layer(self, v: Vector) -> Vector:
        """The sum of the entries of each layer, [L]."""
        return np.array([part.sum() for part in np.split(v, np.cumsum(self.sizes)) if len(part)])


def _joined(parts: list[Tensor]) -> Vector:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()


def rademacher(x: Tensor, source: torch.Generator) -> Tensor:
    """+1 or -1, shaped as x."""
    return torch.randint(2, x.shape, generator=source, dtype=torch.int64).mul_(2).sub_(1).to(x)


def hutchinson(hessian: Hessian, scale: Vector, probes: int, journal: Journal, *key: int | str) -> Vector:
    r"""[probes, L] with mean \sum_{j in layer} s_j^2 H_jj: (s v)_l' (H (s v))_l of Rademacher probes v.

    A probe covers all layers at once, since E v_j v_k = 0 between them as well. Each probe is a unit of the journal.
    """
    product = hessian.to_scipy()

    def probe(number: int) -> dict[str, np.ndarray]:
        moved = scale * hessian.draw(rademacher, *key, number)
        return {"layers": hessian.by_layer(moved * (product @ moved))}

    return np.stack([journal.unit(f"probe-{n}", lambda n=n: probe(n))["layers"] for n in range(probes)])  # type: ignore[misc]


def extremes(operator: Operator, start: Vector, **lanczos: Any) -> dict[str, float]:
    r"""The largest and smallest eigenvalue of a symmetric operator, with ||Hv - lambda v||_2 of each.

    Lanczos twice: first for the eigenvalue mu largest in modulus, then for that of H - mu, which is the other end.
    So `tolerance` is always relative to the width of the spectrum, also where an end is zero: where a convex
    problem has a null space, no tolerance relative to the smallest eigenvalue itself could be met.
    `vectors` of the Krylov space are kept and restarted from, at most `iterations` times.
    """
    product = operator.to_scipy()
    if not (product @ start).any():  # Almost surely H = 0.
        return {"lambda_max": 0.0, "lambda_min": 0.0, "residual": 0.0, "residual_min": 0.0}
    first, vector = _dominant(operator, start, **lanczos)
    identity = IdentityLinearOperator([(len(start),)], operator.device, operator.dtype)
    gap, other = _dominant(operator - first * identity, start, **lanczos)
    ends = sorted([(first, vector), (first + gap, other)], key=lambda end: end[0])
    residuals = [float(np.linalg.norm(product @ v - value * v)) for value, v in ends]
    return {
        "lambda_max": ends[1][0],
        "lambda_min": ends[0][0],
        "residual": residuals[1],
        "residual_min": residuals[0],
    }


def _dominant(
    operator: Operator, start: Vector, *, tolerance: float, vectors: int, iterations: int
) -> tuple[float, Vector]:
    """The eigenvalue largest in modulus, and its unit eigenvector."""
    size, product = len(start), operator.to_scipy()
    if size <= DENSE:
        matrix = product @ np.eye(size)
        values, found = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        try:
            values, found = eigsh(
                product, k=1, which="LM", v0=start, ncv=min(vectors, size), tol=tolerance, maxiter=iterations
            )
        except ArpackNoConvergence as error:
            raise NoValue(
                f"Lanczos did not reach tolerance={tolerance:g} within iterations={iterations}; raise either"
            ) from error
    best = int(np.abs(values).argmax())
    return float(values[best]), found[:, best]
