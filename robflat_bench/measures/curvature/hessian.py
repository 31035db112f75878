r"""The Hessian of the mean loss over the weights: its products with vectors, and its trace. The Gauss-Newton matrix.

    H = d^2/dw^2 (1/N) \sum_i \ell(f(x_i; w), y_i)
    G = (1/N) \sum_i J_i' (diag p_i - p_i p_i') J_i,   J_i = dz_i/dw,  p_i = softmax z_i

w: the layers of `WeightSpace` (no normalisation layers, no tensors of zero norm), at fixed images. A product with
a vector is the gradient of a gradient, summed over chunks of `oracle.CHUNK`: a mean over all examples. Vectors outside
the model are float64, so that only the products themselves have the model's precision. G is H without the second
derivatives of the logits z, and the Fisher information of the predictions: it has no negative eigenvalues.

The first gradient and its graph are the same for every vector. So all probes of a trace share them, chunk after chunk,
and the products of a Lanczos iteration share those of the chunks that fit into `KEPT`.

Two parts of curvlinops 3.0.1 are not used. Its Hessian is forward over reverse, which torch refuses for SiLU and Mish.
Its `hutchinson_trace` returns one number, without probes or layers, from random numbers without a key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from robflat_bench.attacks.engine import attacked
from robflat_bench.core import Examples, Journal, Measurement, NoValue, Workspace
from robflat_bench.core.batching import padded_batches
from robflat_bench.core.estimates import error_of_mean
from robflat_bench.core.randomness import generator
from robflat_bench.measures.oracle import CHUNK, Oracle, differentiable
from robflat_bench.measures.shared import BLOCK
from robflat_bench.measures.units import unit
from robflat_bench.numerics.weight_space import WeightSpace

Vector: TypeAlias = NDArray[np.float64]
Product: TypeAlias = Callable[[Vector], Vector]
"""v -> H v, both [P]."""
Gradient: TypeAlias = tuple[Tensor, ...]
"""One tensor per layer, with the graph that leads to it."""

KEPT = 2**28
"""Bytes of the graphs that stay between products. A graph that is alone stays whatever its size, since a single product
needs as much."""


@contextmanager
def twice_differentiable(model: nn.Module, layers: list[nn.Parameter]) -> Iterator[None]:
    """Eval mode, gradients of these layers alone, and attention that is not fused, for a second derivative."""
    with attacked(model), differentiable(layers), sdpa_kernel(SDPBackend.MATH):
        yield


class Hessian:
    """H over all layers, flattened one after another, at the fixed images of the oracle.

    Parameters
    ----------
    model : nn.Module
        Its present weights are w.
    oracle : Oracle
        The loss, at fixed images.
    examples : Examples
        The N examples of the mean.
    exclude : tuple of str or None
        Patterns of parameters that do not move (`WeightSpace`).

    Attributes
    ----------
    layers : dict of str to nn.Parameter
        The tensors that move.
    size : int
        Their number of weights, P.
    chunks : list of (Examples, int)
        The images that pass through the network together, and how many of them count.
    """

    def __init__(
        self, model: nn.Module, oracle: Oracle, examples: Examples, exclude: tuple[str, ...] | None = None
    ) -> None:
        self.model, self.oracle = model, oracle
        self.layers = WeightSpace(model, exclude=exclude).layers
        self.sizes = [layer.numel() for layer in self.layers.values()]
        self.size = sum(self.sizes)
        self.points = oracle.points(examples)
        self.chunks = list(padded_batches(self.points, CHUNK))

    @contextmanager
    def products(self, chunk: int | None = None) -> Iterator[Product]:
        """v -> H v, or the part of it that one chunk contributes to the sum; NoValue where it is not finite.

        Inside, the model stays in eval mode, and graphs of its gradient stay in memory: its weights must not move.
        """
        numbers = range(len(self.chunks)) if chunk is None else [chunk]
        with twice_differentiable(self.model, list(self.layers.values())):
            gradients = _Gradients(self._gradient, numbers)

            def product(v: Vector) -> Vector:
                total = torch.zeros(self.size, dtype=torch.float64)
                for gradient, kept in gradients:
                    for whole, part in zip(total.split(self.sizes), self._second(gradient, v, kept), strict=True):
                        whole += part.flatten().cpu()
                if not total.isfinite().all():
                    raise NoValue("the loss has no finite second derivative by the weights here")
                return total.numpy()

            try:
                yield product
            finally:
                gradients.kept.clear()

    def _gradient(self, number: int) -> Gradient:
        """What a chunk contributes to dL/dw, with its graph."""
        part, count = self.chunks[number]
        loss = self.oracle.cross_entropy(self.model, part)[:count].sum() / len(self.points)
        return torch.autograd.grad(loss, list(self.layers.values()), create_graph=True, materialize_grads=True)

    def _second(self, gradient: Gradient, v: Vector, retain: bool) -> Gradient:
        """The gradient of <gradient, v>."""
        layers = list(self.layers.values())
        along = torch.from_numpy(v).to(layers[0]).split(self.sizes)
        slope = torch.stack([(g * u.view_as(g)).sum() for g, u in zip(gradient, along, strict=True)]).sum()
        return torch.autograd.grad(slope, layers, retain_graph=retain, materialize_grads=True)

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


class GaussNewton(Hessian):
    """G in place of H; z are the logits of the oracle, so normalised ones where it normalises them.

    J v is the derivative of u -> <J'u, v>, which J'u, a backward pass with its graph, makes the same for every v. So a
    product takes two backward passes of each image.
    """

    def _gradient(self, number: int) -> Gradient:
        """z, u = 0 and J'u of a chunk, with the graphs that lead from w to z and from u to J'u."""
        part, count = self.chunks[number]
        z = self.oracle.logits(self.model(part.x))[:count]
        u = torch.zeros_like(z, requires_grad=True)
        # The product instead of grad's third argument, for which torch imports a compiler's symbols.
        layers = list(self.layers.values())
        return z, u, *torch.autograd.grad((z * u).sum(), layers, create_graph=True, materialize_grads=True)

    def _second(self, gradient: Gradient, v: Vector, retain: bool) -> Gradient:
        """J' (diag p - p p') J v / N."""
        z, u, *pulled = gradient
        layers = list(self.layers.values())
        along = torch.from_numpy(v).to(z).split(self.sizes)
        slope = torch.stack([(g * part.view_as(g)).sum() for g, part in zip(pulled, along, strict=True)]).sum()
        (moved,) = torch.autograd.grad(slope, u, retain_graph=True)  # the graph ends in z's
        p = z.detach().softmax(1)
        turned = p * (moved - (p * moved).sum(1, keepdim=True)) / len(self.points)
        return torch.autograd.grad((z * turned).sum(), layers, retain_graph=retain, materialize_grads=True)


class _Gradients:
    """The gradients of chunks, each with whether its graph stays in memory: the first ones do, `KEPT` bytes in all."""

    def __init__(self, compute: Callable[[int], Gradient], numbers: Sequence[int]) -> None:
        self.compute, self.numbers = compute, numbers
        self.kept: dict[int, Gradient] = {}
        self.room = 1 if len(numbers) == 1 else None

    def __iter__(self) -> Iterator[tuple[Gradient, bool]]:
        for place, number in enumerate(self.numbers):
            gradient = self.kept.get(number) or self._computed(number)
            if stays := place < (self.room or 0):
                self.kept[number] = gradient
            yield gradient, stays

    def _computed(self, number: int) -> Gradient:
        """All chunks have the size of the first, which says how many there is room for."""
        if self.room is not None:
            return self.compute(number)
        with _saved_bytes() as saved:
            gradient = self.compute(number)
        self.room = KEPT // max(saved(), 1)
        return gradient


@contextmanager
def _saved_bytes() -> Iterator[Callable[[], int]]:
    """The bytes of all tensors that are saved for a backward pass inside, each memory once."""
    memory: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        memory[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # with its own graph, the graph would hold itself

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield lambda: sum(memory.values())


def _joined(parts: list[Tensor]) -> Vector:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()


def rademacher(x: Tensor, source: torch.Generator) -> Tensor:
    """+1 or -1, shaped as x."""
    return torch.randint(2, x.shape, generator=source, dtype=torch.int64).mul_(2).sub_(1).to(x)


def hutchinson(hessian: Hessian, scale: Vector, probes: int, journal: Journal, *key: int | str) -> Vector:
    r"""[probes, L] with mean \sum_{j in layer} s_j^2 H_jj: (s v)_l' (H (s v))_l for Rademacher probes v.

    One probe covers all layers, because E v_j v_k = 0 between layers as well. A unit of the journal is `BLOCK` probes
    at one chunk of images.
    """

    def block(chunk: int, numbers: range) -> Vector:
        with hessian.products(chunk) as product:
            moved = (scale * hessian.draw(rademacher, *key, number) for number in numbers)
            return np.stack([hessian.by_layer(v * product(v)) for v in moved])

    blocks = [range(first, min(first + BLOCK, probes)) for first in range(0, probes, BLOCK)]
    parts = [(chunk, numbers) for chunk in range(len(hessian.chunks)) for numbers in blocks]

    def part(place: int) -> Vector:
        chunk, numbers = parts[place]
        name = f"probes-{numbers.start}-chunk-{chunk}"
        return unit(journal, name, lambda: {"layers": block(chunk, numbers)})["layers"]

    total = np.zeros((probes, len(hessian.layers)))
    for (_, numbers), found in zip(parts, journal.each(len(parts), part), strict=True):
        total[numbers.start : numbers.stop] += found
    return total


def trace(hessian: Hessian, scale: Vector, probes: int, workspace: Workspace, name: str, label: str) -> Measurement:
    r"""\sum_j s_j^2 H_jj with its standard error over probes; details LABEL/LAYER are the parts of each layer.

    Arrays: `probes` [probes] and `layers` [probes, L], their parts in the order of the details.
    """
    layers = hutchinson(hessian, scale, probes, workspace.journal, workspace.seed, name)
    sums = layers.sum(1)
    parts = {f"{label}/{layer}": float(part) for layer, part in zip(hessian.layers, layers.mean(0), strict=True)}
    arrays = {"probes": sums, "layers": layers}
    return Measurement(float(sums.mean()), error_of_mean(sums), len(hessian.points), parts, arrays)
