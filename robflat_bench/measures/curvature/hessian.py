r"""The Hessian of the mean loss over the weights, as an operator: its products, its trace, its extreme eigenvalues.

    H = d^2/dw^2 (1/N) \sum_i \ell(f(x_i; w), y_i)

w: the layers of `WeightSpace` (no normalisation layers, no tensors of zero norm), at fixed images. A product with
a vector is the gradient of a gradient, summed over chunks of `oracle.CHUNK`: a mean over all examples. Vectors outside
the model are float64, so that only the products themselves have the model's precision.

H is an operator of curvlinops: its algebra makes D H D and H - mu, and its export to SciPy gives both to ARPACK. Three
parts of curvlinops 3.0.1 are not used. Its Hessian is forward over reverse, which torch refuses for SiLU and Mish. Its
`hutchinson_trace` returns one number, without probes or layers, from random numbers without a key. Its Lanczos loses
orthogonality (see `spectral_density`).
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
from robflat_bench.core import Examples, Journal, Measurement, NoValue, Workspace
from robflat_bench.core.batching import padded_batches
from robflat_bench.core.estimates import error_of_mean
from robflat_bench.core.randomness import generator, normal_like
from robflat_bench.measures.oracle import CHUNK, Oracle, differentiable
from robflat_bench.measures.shared import LanczosParams
from robflat_bench.measures.units import unit, units
from robflat_bench.numerics.weight_space import WeightSpace

with warnings.catch_warnings():
    # curvlinops imports linear_operator, whose import warns.
    warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
    from curvlinops._torch_base import PyTorchLinearOperator
    from curvlinops.examples import IdentityLinearOperator

Operator: TypeAlias = PyTorchLinearOperator
Vector = NDArray[np.float64]

DENSE = 20
"""Up to this many weights the dense matrix is smaller than a Krylov space, and is used instead."""


@contextmanager
def twice_differentiable(model: nn.Module, layers: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode, gradients of these layers alone, and attention that is not fused, for a second derivative."""
    with attacked(model), differentiable(layers), sdpa_kernel(SDPBackend.MATH):
        yield


class Symmetric(Operator):  # type: ignore[misc]
    """A symmetric operator on vectors [P], float64 on the CPU, on whichever device the model is."""

    SELF_ADJOINT = True
    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, size: int) -> None:
        super().__init__([(size,)], [(size,)])
        self.size = size


class DiagonalOperator(Symmetric):
    """The diagonal matrix with these entries [P]."""

    def __init__(self, entries: Vector) -> None:
        super().__init__(len(entries))
        self.entries = torch.from_numpy(entries)

    def _matmat(self, x: list[Tensor]) -> list[Tensor]:
        return [self.entries[:, None] * x[0]]


class Hessian(Symmetric):
    """H over all layers, flattened one after another, at the fixed images of the oracle."""

    def __init__(
        self, model: nn.Module, oracle: Oracle, examples: Examples, exclude: tuple[str, ...] | None = None
    ) -> None:
        self.model = model
        self.layers = WeightSpace(model, exclude=exclude).layers
        self.sizes = [layer.numel() for layer in self.layers.values()]
        self.points = oracle.points(examples)
        self.oracle = oracle
        super().__init__(sum(self.sizes))

    def _matmat(self, x: list[Tensor]) -> list[Tensor]:
        """[H X] for [X], X [P,K]; the columns share the first gradient."""
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
        if not total.isfinite().all():
            raise NoValue("the loss has no finite second derivative by the weights here")
        return [total]

    def weights(self) -> Vector:
        """w as one vector [P]."""
        return _joined([layer.detach().double().cpu().flatten() for layer in self.layers.values()])

    def draw(self, kind: Callable[[Tensor, torch.Generator], Tensor], *key: int | str) -> Vector:
        """A random vector [P]; the numbers of each layer are keyed by its name and shape."""
        shapes = {name: torch.empty(layer.shape, dtype=torch.float64) for name, layer in self.layers.items()}
        return _joined([kind(like, generator(*key, name, *like.shape)).flatten() for name, like in shapes.items()])

    def by_layer(self, v: Vector) -> Vector:
        """The sum of the entries of v [P] in each layer, [L]."""
        return np.array([part.sum() for part in np.split(v, np.cumsum(self.sizes)) if len(part)])


def _joined(parts: list[Tensor]) -> Vector:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()


def rademacher(x: Tensor, source: torch.Generator) -> Tensor:
    """+1 or -1, shaped as x."""
    return torch.randint(2, x.shape, generator=source, dtype=torch.int64).mul_(2).sub_(1).to(x)


def hutchinson(hessian: Hessian, scale: Vector, probes: int, journal: Journal, *key: int | str) -> Vector:
    r"""[probes, L] with mean \sum_{j in layer} s_j^2 H_jj: (s v)_l' (H (s v))_l for Rademacher probes v.

    One probe covers all layers, because E v_j v_k = 0 between layers as well. Each probe is a unit of the journal.
    """
    product = hessian.to_scipy()

    def probe(number: int) -> dict[str, np.ndarray]:
        moved = scale * hessian.draw(rademacher, *key, number)
        return {"layers": hessian.by_layer(moved * (product @ moved))}

    return units(journal, "probe", probes, probe)["layers"]


def trace(hessian: Hessian, scale: Vector, probes: int, workspace: Workspace, name: str, label: str) -> Measurement:
    r"""\sum_j s_j^2 H_jj with its standard error over probes; details LABEL/LAYER are the parts of each layer.

    Arrays: `probes` [probes] and `layers` [probes, L], their parts in the order of the details.
    """
    layers = hutchinson(hessian, scale, probes, workspace.journal, workspace.seed, name)
    sums = layers.sum(1)
    parts = {f"{label}/{layer}": float(part) for layer, part in zip(hessian.layers, layers.mean(0), strict=True)}
    arrays = {"probes": sums, "layers": layers}
    return Measurement(float(sums.mean()), error_of_mean(sums), len(hessian.points), parts, arrays)


def spectrum(
    hessian: Hessian, operator: Operator, params: LanczosParams, workspace: Workspace, name: str
) -> dict[str, float]:
    """`extremes` of the operator, a function of the Hessian; one unit of the journal."""

    def compute() -> dict[str, float]:
        start = hessian.draw(normal_like, workspace.seed, name, "start")
        return extremes(operator, start, **params.model_dump(include={"tolerance", "vectors", "iterations"}))

    return {end: float(value) for end, value in unit(workspace.journal, "spectrum", compute).items()}


def extremes(operator: Operator, start: Vector, **lanczos: Any) -> dict[str, float]:
    r"""The largest and smallest eigenvalue of a symmetric operator, each with its residual ||Hv - lambda v||_2.

    Lanczos runs twice: for the eigenvalue mu that is largest in modulus, then for the same of H - mu, the other end of
    the spectrum. So `tolerance` is relative to the width of the spectrum. Relative to the smallest eigenvalue it
    could not be met where that is 0, as in a convex problem with a null space. `vectors` of the Krylov space are kept;
    the iteration restarts from them at most `iterations` times. NoValue where that is not enough.
    """
    product = operator.to_scipy()
    names = ("lambda_max", "lambda_min", "residual", "residual_min")
    if not (product @ start).any():  # Almost surely H = 0.
        return dict.fromkeys(names, 0.0)
    first, vector = _dominant(operator, start, **lanczos)
    identity = IdentityLinearOperator([(len(start),)], operator.device, operator.dtype)
    gap, other = _dominant(operator - first * identity, start, **lanczos)
    (low, v_low), (high, v_high) = sorted([(first, vector), (first + gap, other)], key=lambda end: end[0])
    residuals = [float(np.linalg.norm(product @ v - value * v)) for value, v in ((high, v_high), (low, v_low))]
    return dict(zip(names, (high, low, *residuals), strict=True))


def _dominant(
    operator: Operator, start: Vector, *, tolerance: float, vectors: int, iterations: int
) -> tuple[float, Vector]:
    """The eigenvalue that is largest in modulus, and its unit eigenvector."""
    size, product = len(start), operator.to_scipy()
    if size <= DENSE:
        matrix = product @ np.eye(size)
        values, found = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        krylov = min(vectors, size)
        try:
            values, found = eigsh(product, k=1, which="LM", v0=start, ncv=krylov, tol=tolerance, maxiter=iterations)
        except ArpackNoConvergence as error:
            raise NoValue(
                f"Lanczos did not reach tolerance={tolerance:g} within iterations={iterations}; raise one of them"
            ) from error
    best = int(np.abs(values).argmax())
    return float(values[best]), found[:, best]
