"""Curvature measures: dense matrices, closed forms, invariances and powers, standard errors, restore and resume."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import Remembering
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from robflat_bench.core import Examples, Journal, Measurement, NoValue, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.curvature import hessian as hessian_module
from robflat_bench.measures.curvature.fisher_rao import FisherRao
from robflat_bench.measures.curvature.hessian import Hessian, hutchinson, rademacher
from robflat_bench.measures.curvature.hessian_lambda_max import HessianLambdaMax, HessianLambdaMaxParams
from robflat_bench.measures.curvature.hessian_trace import HessianTrace, HessianTraceParams
from robflat_bench.measures.curvature.lanczos import extremes
from robflat_bench.measures.curvature.relative_flatness import RelativeFlatness
from robflat_bench.measures.curvature.spectral_density import quadrature, smoothed
from robflat_bench.measures.curvature.weighted_curvature import WeightedCurvature, WeightedCurvatureParams
from robflat_bench.measures.oracle import Oracle, normalised
from robflat_bench.measures.shared import BLOCK, SlopesParams
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weight_space import WeightSpace

THREAT = Threat(0.1)
pytestmark = pytest.mark.usefixtures("one_thread")

MEASURES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "lambda-max": (HessianLambdaMax, HessianLambdaMaxParams, {}),
    "density": (HessianLambdaMax, HessianLambdaMaxParams, {"density": 2, "nodes": 6}),
    "trace": (HessianTrace, HessianTraceParams, {"probes": 2}),
    "weighted": (WeightedCurvature, WeightedCurvatureParams, {"probes": 2}),
    "relative": (RelativeFlatness, SlopesParams, {}),
    "fisher-rao": (FisherRao, SlopesParams, {}),
}
LOOSE = {name: {"tolerance": 0.3, "vectors": 4} for name in ("lambda-max", "density", "weighted")}


def read(name: str, model: nn.Module, examples: Examples, place: Workspace | None = None, **params: Any) -> Measurement:
    measure, described, defaults = MEASURES[name]
    described_params = described(**{"coupling": "clean", "steps": 3, **defaults, **params})
    return measure(described_params, THREAT).measure(model, examples, place or Workspace(batch=100, seed=5))


# ---------------------------------------------------------------------------------------------------------
# Models, examples and dense truth
# ---------------------------------------------------------------------------------------------------------


def seeded(build: Any, dtype: torch.dtype = torch.float64) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build().to(dtype).eval()


def small_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Images [B,2,4,4] -> 4 logits; 107 weights that move."""

    def build() -> nn.Sequential:
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 4))
        net[1].running_mean.normal_(0, 0.3)
        net[1].running_var.uniform_(0.2, 0.6)
        nn.init.uniform_(net[1].weight, 0.5, 1.5)
        return net

    return seeded(build, dtype)


def relu_net() -> nn.Sequential:
    """Homogeneous of degree 2: neither biases nor normalisation."""
    return seeded(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False))
    )


def small_examples(count: int = 9, dtype: torch.dtype = torch.float64) -> Examples:
    x = torch.rand(count, 2, 4, 4, generator=generator("x"), dtype=torch.float64).to(dtype)
    return Examples(x, torch.randint(0, 4, (count,), generator=generator("y")), torch.arange(100, 100 + count))


class Diagonal(nn.Module):
    """Logits (w'x, 0): over examples that are unit vectors, the Hessian is diag(p_j (1 - p_j)) / N."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight
        return torch.stack([z, torch.zeros_like(z)], 1)


def diagonal(count: int = 24) -> tuple[Diagonal, Examples, np.ndarray]:
    """A model, its examples and its Hessian's diagonal."""
    weights = torch.linspace(-3, 2, count, dtype=torch.float64)
    y = torch.arange(count) % 2
    p = weights.sigmoid()
    examples = Examples(torch.eye(count, dtype=torch.float64).view(count, 1, 1, count), y, torch.arange(count))
    return Diagonal(weights), examples, (p * (1 - p) / count).numpy()


def flat_loss(model: nn.Module, examples: Examples, transform: Any = nn.Identity()) -> tuple[Any, Tensor]:  # noqa: B008
    """The mean loss as a function of the flattened weights, and these."""
    layers = WeightSpace(model).layers
    sizes = [layer.numel() for layer in layers.values()]

    def logits(w: Tensor) -> Tensor:
        parts = {k: v.view_as(layers[k]) for k, v in zip(layers, w.split(sizes), strict=True)}
        return transform(functional_call(model, parts, (examples.x,)))

    return logits, torch.cat([layer.detach().flatten() for layer in layers.values()])


def dense_hessian(model: nn.Module, examples: Examples, transform: Any = nn.Identity()) -> Tensor:  # noqa: B008
    logits, w = flat_loss(model, examples, transform)
    return torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), examples.y), w)


def known(values: np.ndarray) -> np.ndarray:
    """A dense symmetric matrix of these eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(len(values), len(values))))[0]
    return basis * values @ basis.T


def layer_sums(model: nn.Module, diagonal: Tensor) -> dict[str, float]:
    layers = WeightSpace(model).layers
    parts = diagonal.split([layer.numel() for layer in layers.values()])
    return {name: float(part.sum()) for name, part in zip(layers, parts, strict=True)}


def parts_of(found: Measurement) -> dict[str, float]:
    return {name.split("/")[1]: value for name, value in found.details.items() if "/" in name}


# ---------------------------------------------------------------------------------------------------------
# Ground truth: the Hessian
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_products_are_those_of_the_dense_hessian_of_a_mean_over_all_examples(logits):
    # 130 = 128 + 2: a sum or a plain mean of batch means (paper, Q11) would be off.
    model, examples = small_net(), small_examples(130)
    oracle = Oracle(THREAT, HessianTraceParams(coupling="clean", logits=logits))
    hessian = Hessian(model, oracle, examples)
    truth = dense_hessian(model, examples, oracle.logits).numpy()
    v = np.random.default_rng(0).normal(size=(hessian.size))
    with hessian.products() as product:
        assert product(v) == pytest.approx(truth @ v, rel=1e-9, abs=1e-12)
    assert hessian.weights() == pytest.approx(flat_loss(model, examples)[1].numpy(), abs=0)


@pytest.mark.parametrize("kept", [0, 2**28])
def test_products_share_the_gradient_and_nothing_else(monkeypatch, kept):
    """A second product, and one after another vector, are those of the dense Hessian; graphs are kept or not."""
    monkeypatch.setattr(hessian_module, "KEPT", kept)
    model, examples = small_net(), small_examples(260)
    truth = dense_hessian(model, examples).numpy()
    hessian = Hessian(model, Oracle(THREAT, HessianTraceParams(coupling="clean")), examples)
    vectors = np.random.default_rng(0).normal(size=(3, hessian.size))
    counter = PassCounter(model)
    with hessian.products() as product:
        for v in (*vectors, vectors[0]):
            assert product(v) == pytest.approx(truth @ v, rel=1e-9, abs=1e-12)
    shared = kept > 0
    assert counter.forward == 261 * (1 if shared else 4), "three chunks of 87"
    assert counter.backward == 261 * (5 if shared else 8), "one for each first gradient, and one for each product"
    parts = []
    for chunk in range(len(hessian.chunks)):
        with hessian.products(chunk) as product:
            parts.append(product(vectors[0]))
    assert len(parts) == 3
    assert sum(parts) == pytest.approx(truth @ vectors[0], rel=1e-9, abs=1e-12)


class Marked(torch.autograd.Function):
    """The identity; `alive` refers to what each of its graphs holds."""

    alive: list[Any] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark = set()
        Marked.alive.append(weakref.ref(ctx.mark))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Marking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Marked.apply(x)


@pytest.mark.parametrize("fails", [False, True])
def test_graphs_are_released_and_the_model_is_restored_after_the_products(fails):
    model, examples = nn.Sequential(*small_net(), Marking()).train(), small_examples(130)
    hessian = Hessian(model, Oracle(THREAT, HessianTraceParams(coupling="clean")), examples)
    Marked.alive.clear()
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext(), hessian.products() as product:
        for _ in range(2):
            product(np.ones(hessian.size))
        assert not model.training
        assert [mark() for mark in Marked.alive] == [set(), set()], "two chunks, each with one graph"
        if fails:
            raise RuntimeError("an error of the caller")
    assert [mark() for mark in Marked.alive] == [None, None]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_blocks_of_probes_do_not_depend_on_each_other():
    """The unit of the journal is a block of probes: the first probes are the same, however many there are."""
    model, examples = small_net(), small_examples(130)
    hessian = Hessian(model, Oracle(THREAT, HessianTraceParams(coupling="clean")), examples)
    journal = Remembering()
    found = hutchinson(hessian, np.ones(hessian.size), BLOCK + 3, journal, 5, "test")
    assert sorted(key[-1] for key in journal.kept) == sorted(
        f"probes-{first}-chunk-{chunk}" for first in (0, BLOCK) for chunk in (0, 1)
    )
    few = hutchinson(hessian, np.ones(hessian.size), 2, Journal(), 5, "test")
    assert np.array_equal(found[:2], few)
    moved = [hessian.draw(rademacher, 5, "test", number) for number in (0, BLOCK + 2)]
    with hessian.products() as product:
        by_hand = [hessian.by_layer(v * product(v)) for v in moved]
    assert found[[0, BLOCK + 2]] == pytest.approx(np.array(by_hand), rel=1e-9, abs=1e-12)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(len(x), 8, 4)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].flatten(1))


@pytest.mark.parametrize("kind", [nn.Mish, nn.GELU, nn.SiLU, "max", "attention"])
def test_products_are_differences_of_gradients_whatever_the_layers(kind):
    """torch has no forward derivative of the backward pass of SiLU, and no second one of fused attention."""

    def build() -> nn.Module:
        if kind == "attention":
            return Attending()
        middle = nn.MaxPool2d(2, 1, 1) if kind == "max" else kind()
        return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), middle, nn.Flatten(), nn.LazyLinear(4))

    model, examples = seeded(build), small_examples()
    with torch.no_grad():
        model(examples.x)
    oracle = Oracle(THREAT, HessianTraceParams(coupling="clean"))
    hessian = Hessian(model, oracle, examples)
    v = np.random.default_rng(0).normal(size=hessian.size)
    w, t = torch.from_numpy(hessian.weights()), 1e-5
    gradients = []
    for side in (t, -t):
        moved = copy.deepcopy(model)
        layers = WeightSpace(moved).layers
        with torch.no_grad():
            parts = (w + side * torch.from_numpy(v)).split([layer.numel() for layer in layers.values()])
            for layer, part in zip(layers.values(), parts, strict=True):
                layer.copy_(part.view_as(layer))
        gradients.append(torch.cat([g.flatten() for g in oracle.gradient(moved, examples, layers)[1].values()]))
    difference = (gradients[0] - gradients[1]) / (2 * t)
    with hessian.products() as product:
        assert product(v) == pytest.approx(difference.numpy(), rel=1e-4, abs=1e-6)
    assert math.isfinite(read("fisher-rao", model, examples).value)


def test_curvature_of_a_diagonal_hessian_is_exact():
    model, examples, truth = diagonal()
    w2 = model.weight.detach().numpy() ** 2
    top = read("lambda-max", model, examples, tolerance=1e-6)
    assert top.value == pytest.approx(truth.max(), rel=1e-6)
    assert top.standard_error is None
    assert top.details["lambda_min"] == pytest.approx(truth.min(), abs=1e-6 * truth.max())
    trace = read("trace", model, examples)
    assert trace.value == pytest.approx(truth.sum(), rel=1e-12)
    assert trace.standard_error == pytest.approx(0, abs=1e-12), "probes of +-1 see a diagonal without error"
    weighted = read("weighted", model, examples, tolerance=1e-6)
    assert weighted.value == pytest.approx((w2 * truth).sum(), rel=1e-12)
    assert weighted.details["lambda_max"] == pytest.approx((w2 * truth).max(), rel=1e-6)


def test_largest_and_smallest_eigenvalue_of_a_network():
    model, examples = small_net(), small_examples()
    values = torch.linalg.eigvalsh(dense_hessian(model, examples)).numpy()
    found = read("lambda-max", model, examples, tolerance=1e-4)
    assert found.value == pytest.approx(values[-1], rel=1e-3)
    assert found.details["lambda_min"] == pytest.approx(values[0], rel=1e-3)
    assert found.details["convexity_ratio"] == pytest.approx(-values[0] / values[-1], rel=2e-3)
    assert found.details["residual"] < 1e-3 * values[-1]
    w = flat_loss(model, examples)[1]
    moved = dense_hessian(model, examples) * w * w[:, None]
    weighted = read("weighted", model, examples, tolerance=1e-4)
    assert weighted.details["lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(moved)[-1]), rel=1e-3)


SPECTRA = {
    "positive and a null space": np.r_[np.zeros(60), np.linspace(0.1, 3, 30)],
    "the largest is not the largest in modulus": np.r_[-5.0, np.linspace(-1, 2, 50)],
    "negative": np.linspace(-4, -1, 50),
    "both ends equally far": np.linspace(-2, 2, 51),
    "small matrix": np.array([-1.0, 0.5]),
    "one weight": np.array([-0.25]),
    "zero": np.zeros(40),
    "no weight": np.zeros(0),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_known_spectra(name):
    values = SPECTRA[name]
    matrix = known(values)
    start = np.random.default_rng(2).normal(size=len(values))
    found = extremes(lambda v: matrix @ v, start, tolerance=1e-5, vectors=20, iterations=300)
    width = np.ptp(values) if len(values) else 0.0
    assert found["lambda_max"] == pytest.approx(max(values, default=0), abs=1e-5 * width + 1e-12)
    assert found["lambda_min"] == pytest.approx(min(values, default=0), abs=1e-5 * width + 1e-12)
    assert max(found["residual"], found["residual_min"]) <= 1e-5 * width + 1e-12


def test_the_residual_belongs_to_the_reported_eigenpair():
    values = np.linspace(0, 1, 200)
    start = np.random.default_rng(0).normal(size=200)
    found = extremes(lambda v: values * v, start, tolerance=0.05, vectors=6, iterations=300)
    assert 1e-6 < found["residual"] <= 0.05
    assert np.abs(values - found["lambda_max"]).min() <= found["residual"]
    assert found["lambda_max"] <= 1 + 1e-12


@pytest.mark.parametrize("vectors", [3, 4, 20, 200])
def test_both_ends_are_reached_whatever_the_memory_with_the_residuals_that_are_said(vectors):
    """vectors=3 restarts after every product."""
    values = np.r_[-1.0, np.linspace(-0.8, 1.7, 198), 2.0]
    matrix, start = known(values), np.random.default_rng(2).normal(size=200)
    products = []

    def product(v: np.ndarray) -> np.ndarray:
        products.append(v.copy())
        return matrix @ v

    found = extremes(product, start, tolerance=1e-4, vectors=vectors, iterations=3000)
    assert found["lambda_max"] == pytest.approx(2, abs=3e-4)
    assert found["lambda_min"] == pytest.approx(-1, abs=3e-4)
    assert max(found["residual"], found["residual_min"]) <= 1e-4 * 3
    assert all(np.linalg.norm(v) == pytest.approx(1, abs=1e-12) for v in products)
    if vectors == 200:
        space = np.array(products[:-2])  # without those of the residuals
        assert space @ space.T == pytest.approx(np.eye(len(space)), abs=1e-12)
        ritz, inner = np.linalg.eigh(space @ matrix @ space.T)
        for end, at, residual in (("lambda_max", -1, "residual"), ("lambda_min", 0, "residual_min")):
            v = inner[:, at] @ space
            assert found[end] == pytest.approx(ritz[at], rel=1e-9)
            assert found[residual] == pytest.approx(np.linalg.norm(matrix @ v - ritz[at] * v), rel=1e-6)


def test_both_ends_agree_with_arpack_and_take_no_more_products():
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, examples = small_net(), small_examples()
    matrix = dense_hessian(model, examples).numpy()
    counts = {"ours": 0, "arpack": 0}

    def product(v: np.ndarray, who: str) -> np.ndarray:
        counts[who] += 1
        return matrix @ v

    start = np.random.default_rng(0).normal(size=len(matrix))
    ours = extremes(lambda v: product(v, "ours"), start, tolerance=1e-3, vectors=20, iterations=300)
    operator = LinearOperator(matrix.shape, lambda v: product(v, "arpack"), dtype=np.float64)
    theirs = eigsh(operator, k=2, which="BE", v0=start, ncv=20, tol=1e-3)[0]
    width = theirs[-1] - theirs[0]
    assert [ours["lambda_min"], ours["lambda_max"]] == pytest.approx(theirs, abs=1e-3 * width)
    assert counts["ours"] <= counts["arpack"] + 2, "its two residuals are measured"


def test_lanczos_that_does_not_converge_says_which_parameter_to_raise():
    values = np.linspace(0, 1, 4000)
    with pytest.raises(NoValue, match="iterations=1"):
        extremes(lambda v: values * v, np.ones(4000), tolerance=1e-12, vectors=4, iterations=1)


# ---------------------------------------------------------------------------------------------------------
# The spectral density
# ---------------------------------------------------------------------------------------------------------


def signs(size: int, probe: int = 0) -> np.ndarray:
    return np.random.default_rng(probe).choice([-1.0, 1.0], size)


REPEATED = {"one eigenvalue": np.full(30, 2.0), "two eigenvalues": np.repeat([-1.0, 3.0], 15)}


@pytest.mark.parametrize("scale", [1.0, 1e-9])
@pytest.mark.parametrize("name", [*SPECTRA, *REPEATED])
def test_quadrature_of_all_dimensions_is_exact_whatever_the_spectrum_and_its_scale(name, scale):
    values = {**SPECTRA, **REPEATED}[name]
    matrix, start = known(values), signs(len(values))
    unit = start / math.sqrt(max(len(values), 1))
    nodes, weights = quadrature(lambda v: scale * (matrix @ v), start, 1000)
    assert len(nodes) == len(weights) == len(values)
    nodes = nodes / scale
    assert sum(weights) == pytest.approx(float(len(values) > 0), abs=1e-12)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    for f in (np.exp, np.abs, lambda x: x**5, lambda x: x > 0.05):
        assert weights @ f(nodes) == pytest.approx((vectors.T @ unit) ** 2 @ f(eigenvalues), rel=1e-9, abs=1e-9)
    near = np.abs(nodes[:, None] - values) < 1e-9
    assert all(row.any() for row in near), "no node is off the spectrum"
    assert all(column.any() for column in near.T), "no eigenvalue is without a node"


def test_m_nodes_integrate_polynomials_of_degree_2m_minus_1_and_no_higher():
    """Exact over all basis vectors: their mean is the trace."""
    matrix = dense_hessian(small_net(), small_examples()).numpy()
    found = [quadrature(lambda v: matrix @ v, start, 2) for start in np.eye(len(matrix))]
    for power in range(1, 5):
        mean = np.mean([weights @ nodes**power for nodes, weights in found])
        truth = np.trace(np.linalg.matrix_power(matrix, power)) / len(matrix)
        assert (mean == pytest.approx(truth, rel=1e-10)) == (power <= 3), power


def test_moments_of_random_probes_are_the_traces_within_their_error():
    matrix = dense_hessian(small_net(), small_examples()).numpy()
    probes = [quadrature(lambda v: matrix @ v, signs(len(matrix), n), 5) for n in range(600)]
    for power in (1, 2, 3):
        moved = np.linalg.matrix_power(matrix, power)
        values = np.array([weights @ nodes**power for nodes, weights in probes])
        variance = 2 * ((moved**2).sum() - (moved.diagonal() ** 2).sum()) / len(matrix) ** 2
        assert values.std(ddof=1) == pytest.approx(math.sqrt(variance), rel=0.15)
        assert abs(values.mean() - moved.trace() / len(matrix)) < 3 * math.sqrt(variance / 600)


def test_few_nodes_are_those_of_curvlinops_which_lose_orthogonality_later(monkeypatch):
    with warnings.catch_warnings():  # curvlinops imports linear_operator, whose import warns
        warnings.filterwarnings("ignore", "`torch.jit.script` is", FutureWarning)
        from curvlinops.examples import TensorLinearOperator
        from curvlinops.papyan2020traces import spectrum

    matrix = dense_hessian(small_net(), small_examples()).numpy()
    start, top = signs(len(matrix)), np.linalg.eigvalsh(matrix)[-1]
    monkeypatch.setattr(spectrum, "randn", lambda *_, **__: torch.from_numpy(start.copy()))
    operator = TensorLinearOperator(torch.from_numpy(matrix))
    nodes, vectors = (part.numpy() for part in spectrum.fast_lanczos(operator, 8))
    ours = quadrature(lambda v: matrix @ v, start, 8)
    assert ours[0] == pytest.approx(nodes, rel=1e-9)
    assert ours[1] == pytest.approx(vectors[0] ** 2, rel=1e-8)
    later = spectrum.fast_lanczos(operator, len(matrix))[0].numpy()
    assert (later > top - 1e-9).sum() > 1, "the reason why the Lanczos is ours; if it fails, take theirs"
    nodes, weights = quadrature(lambda v: matrix @ v, start, len(matrix))
    assert (nodes[weights > 0] > top - 1e-9).sum() == 1


def test_measured_density_reaches_both_ends_and_is_that_of_the_dense_hessian():
    model, examples = small_net(), small_examples()
    assert not read("lambda-max", model, examples).arrays
    found = read("density", model, examples, density=2, nodes=40, tolerance=1e-5)
    nodes, weights = found.arrays["density_nodes"], found.arrays["density_weights"]
    assert nodes.shape == weights.shape == (2, 40)
    assert weights.sum(1) == pytest.approx(np.ones(2), abs=1e-12)
    assert (weights > 0).all()
    assert nodes.max(1) == pytest.approx(np.full(2, found.value), rel=1e-6)
    assert nodes.min(1) == pytest.approx(np.full(2, found.details["lambda_min"]), rel=1e-6)
    assert not np.allclose(nodes[0], nodes[1])
    # The probes are keyed by seed, number and tensor, and their second moment is |H v|^2 / P.
    truth = dense_hessian(model, examples).numpy()
    hessian = Dense(model, truth)
    for number in range(2):
        v = hessian.draw(rademacher, 5, "hessian-lambda-max", "density", number)
        assert weights[number] @ nodes[number] ** 2 == pytest.approx(((truth @ v) ** 2).mean(), rel=1e-9)
    assert read("density", model, examples, nodes=500).arrays["density_nodes"].shape == (2, len(truth))


@pytest.mark.parametrize("described", [HessianTraceParams, WeightedCurvatureParams])
def test_only_the_plain_spectrum_has_a_density(described):
    with pytest.raises(ValueError, match="density"):
        described(density=1)


def test_smoothed_density_is_a_mixture_of_gaussians_that_integrates_to_1():
    grid = np.linspace(-4, 6, 4001)
    one = smoothed(np.array([[1.5]]), np.array([[1.0]]), grid, 0.3)
    assert one == pytest.approx(stats.norm.pdf(grid, 1.5, 0.3), abs=1e-12)
    nodes, weights = np.array([[-1.0, 0.0, 3.0], [-2.0, 1.0, 3.5]]), np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0]])
    for width in (0.05, 0.4):
        density = smoothed(nodes, weights, grid, width)
        assert density.shape == grid.shape
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
        assert np.trapezoid(density * grid, grid) == pytest.approx((nodes * weights).sum() / 2, abs=1e-6)
        variance = width**2 + (nodes**2 * weights).sum() / 2
        assert np.trapezoid(density * grid**2, grid) == pytest.approx(variance, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Traces: per layer, errors
# ---------------------------------------------------------------------------------------------------------


class Dense(Hessian):
    """A Hessian with a given matrix over the weights of a model."""

    def __init__(self, model: nn.Module, matrix: np.ndarray) -> None:
        oracle = Oracle(THREAT, HessianTraceParams(coupling="clean"))
        super().__init__(model, oracle, small_examples())
        self.matrix = matrix

    @contextlib.contextmanager
    def products(self, chunk: int | None = None) -> Iterator[Any]:
        yield lambda v: self.matrix @ v


@pytest.mark.parametrize("weighted", [False, True])
def test_traces_match_whole_and_per_layer_within_their_error_which_shrinks(weighted):
    """PyHessian has no trace per layer (issues 9, 10)."""
    model, examples = small_net(), small_examples()
    matrix = dense_hessian(model, examples)
    w = flat_loss(model, examples)[1]
    scale = w if weighted else torch.ones_like(w)
    moved = (scale * matrix * scale[:, None]).numpy()
    truth = layer_sums(model, torch.from_numpy(moved.diagonal().copy()))
    hessian = Dense(model, matrix.numpy())
    variance = 2 * ((moved**2).sum() - (moved.diagonal() ** 2).sum())
    for probes in (100, 1600):
        layers = hutchinson(hessian, scale.numpy(), probes, Journal(), "test")
        assert layers.shape == (probes, 4)
        error = layers.sum(1).std(ddof=1) / math.sqrt(probes)
        assert error == pytest.approx(math.sqrt(variance / probes), rel=0.35 if probes == 100 else 0.12)
        assert abs(layers.sum() / probes - sum(truth.values())) < 3 * error
        for column, name in enumerate(truth):
            error = layers[:, column].std(ddof=1) / math.sqrt(probes)
            assert abs(layers[:, column].mean() - truth[name]) < 3.5 * error, name


@pytest.mark.parametrize("name", ["trace", "weighted"])
def test_measured_traces_are_means_of_their_evidence(name):
    model, examples = small_net(), small_examples()
    found = read(name, model, examples, probes=6, **LOOSE.get(name, {}))
    assert found.arrays["layers"].shape == (6, 4)
    assert found.arrays["layers"].sum(1) == pytest.approx(found.arrays["probes"])
    assert found.value == pytest.approx(found.arrays["probes"].mean())
    assert found.standard_error == pytest.approx(found.arrays["probes"].std(ddof=1) / math.sqrt(6))
    assert parts_of(found) == pytest.approx(
        dict(zip(WeightSpace(model).layers, found.arrays["layers"].mean(0), strict=True))
    )
    # One probe of the real operator, by hand.
    matrix, w = dense_hessian(model, examples), flat_loss(model, examples)[1]
    oracle = Oracle(THREAT, HessianTraceParams(coupling="clean"))
    label = {"trace": "hessian-trace", "weighted": "weighted-curvature"}[name]
    scale = np.ones(len(w)) if name == "trace" else w.numpy()
    by_hand = hutchinson(Dense(model, matrix.numpy()), scale, 6, Journal(), 5, label)
    assert Hessian(model, oracle, examples).size == len(w)
    assert found.arrays["layers"] == pytest.approx(by_hand, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Relative flatness and the Fisher-Rao norm
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_relative_flatness_is_the_sum_over_blocks_of_the_dense_hessian(logits):
    model, examples = small_net(), small_examples(30)
    transform = normalised if logits == "normalised" else nn.Identity()
    head = model[-1].weight.detach()
    with torch.no_grad():
        features = model[:-1](examples.x)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(transform(features @ weight.T + model[-1].bias.detach()), examples.y)

    blocks = torch.autograd.functional.hessian(loss, head)  # [K,d,K,d]
    trace = largest = 0.0
    for s, t in itertools.product(range(4), repeat=2):
        block = blocks[s, :, t]
        trace += float(head[s] @ head[t] * block.trace())
        largest += float(head[s] @ head[t] * torch.linalg.eigvalsh(block)[-1])
    found = read("relative", model, examples, logits=logits)
    assert found.value == pytest.approx(trace, rel=1e-9)
    assert found.details["kappa_max"] == pytest.approx(largest, rel=1e-9)
    assert found.arrays["per_example"].mean() == pytest.approx(found.value)
    assert found.standard_error == pytest.approx(found.arrays["per_example"].std(ddof=1) / math.sqrt(30))


def test_relative_flatness_is_the_variance_of_the_rows_times_the_squared_features():
    model, examples = small_net(), small_examples()
    with torch.no_grad():
        features, p = model[:-1](examples.x), model(examples.x).softmax(1)
    rows = model[-1].weight.detach()
    variance = p @ rows.square().sum(1) - (p @ rows).square().sum(1)
    found = read("relative", model, examples)
    assert found.arrays["per_example"] == pytest.approx((features.square().sum(1) * variance).numpy(), rel=1e-9)


def test_relative_flatness_refuses_logits_that_are_not_a_linear_layers():
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for model in (Doubled(*small_net()), nn.Sequential(nn.Conv2d(2, 4, 4), nn.Flatten()).double()):
        with pytest.raises(NoValue, match="needs a linear layer"):
            read("relative", model, small_examples())


@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_fisher_rao_is_the_quadratic_form_of_the_dense_fisher_matrix(logits):
    model, examples = small_net(), small_examples()
    of_weights, w = flat_loss(model, examples, normalised if logits == "normalised" else nn.Identity())
    jacobian = torch.autograd.functional.jacobian(of_weights, w)  # [N,K,P]
    p = of_weights(w).softmax(1).detach()
    own, empirical = torch.zeros(len(w), len(w)).double(), torch.zeros(len(w), len(w)).double()
    for i in range(len(examples)):
        for k in range(4):
            score = jacobian[i, k] - p[i] @ jacobian[i]  # gradient of log p_k
            own += p[i, k] * torch.outer(score, score) / len(examples)
            if k == examples.y[i]:
                empirical += torch.outer(score, score) / len(examples)
    found = read("fisher-rao", model, examples, logits=logits)
    assert found.value == pytest.approx(float(w @ own @ w), rel=1e-9)
    assert found.details["empirical"] == pytest.approx(float(w @ empirical @ w), rel=1e-9)
    assert found.arrays["per_example"].mean() == pytest.approx(found.value)
    assert found.standard_error == pytest.approx(found.arrays["per_example"].std(ddof=1) / math.sqrt(9))


def closed_forms(model: nn.Module, examples: Examples, depth: int) -> tuple[float, float]:
    """depth^2 times the variance of the logits, and with true labels: peers' shortcut."""
    with torch.no_grad():
        z = model(examples.x)
    p = z.softmax(1)
    mean = (p * z).sum(1)
    own = (p * z.square()).sum(1) - mean.square()
    empirical = (mean - z.gather(1, examples.y[:, None])[:, 0]).square()
    return depth**2 * float(own.mean()), depth**2 * float(empirical.mean())


def test_fisher_rao_of_a_homogeneous_network_has_the_closed_form_and_others_do_not():
    model, examples = relu_net(), small_examples()
    found = read("fisher-rao", model, examples)
    assert (found.value, found.details["empirical"]) == pytest.approx(closed_forms(model, examples, 2), rel=1e-10)
    assert read("fisher-rao", model, examples, logits="normalised").value == pytest.approx(0, abs=1e-20)
    other = small_net()
    shortcut = closed_forms(other, examples, 2)
    assert read("fisher-rao", other, examples).value != pytest.approx(shortcut[0], rel=0.05), (
        "peers' form has no biases"
    )


# ---------------------------------------------------------------------------------------------------------
# Invariances, and the powers of what moves
# ---------------------------------------------------------------------------------------------------------


def test_scaling_single_weights_that_others_undo_moves_the_hessian_only():
    model, examples = relu_net(), small_examples()
    scaled = copy.deepcopy(model)
    factors = torch.tensor([0.25, 4.0, 1.0, 2.0, 0.1], dtype=torch.float64)
    with torch.no_grad():
        scaled[1].weight *= factors[:, None]
        scaled[3].weight /= factors
        assert torch.allclose(scaled(examples.x), model(examples.x), rtol=1e-12)
    for name in ("weighted", "fisher-rao"):
        before, after = (read(name, net, examples, **LOOSE.get(name, {})) for net in (model, scaled))
        assert after.value == pytest.approx(before.value, rel=1e-9)
        assert parts_of(after) == pytest.approx(parts_of(before), rel=1e-8, abs=1e-12)
    for name in ("trace", "lambda-max", "relative"):
        before, after = (read(name, net, examples) for net in (model, scaled))
        assert after.value != pytest.approx(before.value, rel=0.05)


def test_scaling_a_layer_that_the_next_undoes_moves_the_hessian_only():
    model, examples, c = relu_net(), small_examples(), 3.0
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[1].weight *= c
        scaled[3].weight /= c
    for name in ("weighted", "fisher-rao", "relative"):
        before, after = (read(name, net, examples, **LOOSE.get(name, {})) for net in (model, scaled))
        assert after.value == pytest.approx(before.value, rel=1e-9)
        if name == "relative":
            assert after.details["kappa_max"] == pytest.approx(before.details["kappa_max"], rel=1e-9)
    before, after = (layer_sums(net, dense_hessian(net, examples).diagonal()) for net in (model, scaled))
    assert after["1.weight"] == pytest.approx(before["1.weight"] / c**2, rel=1e-9)
    assert after["3.weight"] == pytest.approx(before["3.weight"] * c**2, rel=1e-9)


def behind_normalisation(model: nn.Sequential, c: float) -> nn.Sequential:
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight *= c
        scaled[0].bias *= c
        scaled[1].running_mean *= c
        scaled[1].running_var *= c**2
        scaled[1].eps *= c**2
    return scaled


def test_a_convolution_scaled_before_its_normalisation_moves_its_own_trace_by_the_inverse_square():
    model, examples, c = small_net(), small_examples(), 2.0
    head = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 4), nn.BatchNorm2d(4), nn.Flatten()))
    scaled = behind_normalisation(model, c)
    for name in ("weighted", "relative", "fisher-rao"):
        before, after = (read(name, net, examples, **LOOSE.get(name, {})).value for net in (model, scaled))
        assert after == pytest.approx(before, rel=1e-9)
    before, after = (layer_sums(net, dense_hessian(net, examples).diagonal()) for net in (model, scaled))
    found = read("trace", scaled, examples, probes=40)
    errors = found.arrays["layers"].std(0, ddof=1) / math.sqrt(40)
    for (name, part), error in zip(parts_of(found).items(), errors, strict=True):
        power = -2 if name.startswith("0.") else 0
        assert after[name] == pytest.approx(before[name] * c**power, rel=1e-9)
        assert abs(part - before[name] * c**power) < 3.5 * error
    # All of its weights lie before the normalisation.
    tops = [read("lambda-max", net, examples, tolerance=1e-5).value for net in (head, behind_normalisation(head, c))]
    assert tops[1] == pytest.approx(tops[0] / c**2, rel=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_normalised_logits_take_the_scale_of_the_logits_away_from_weighted_measures(name):
    model, examples = small_net(), small_examples()
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        doubled[-1].weight *= 2
        doubled[-1].bias *= 2
    exact = {"tolerance": 1e-6} if name == "lambda-max" else LOOSE.get(name, {})
    plain, moved = (read(name, net, examples, **exact).value for net in (model, doubled))
    assert moved != pytest.approx(plain, rel=0.02)
    plain, moved = (read(name, net, examples, logits="normalised", **exact).value for net in (model, doubled))
    assert (moved == pytest.approx(plain, rel=1e-8)) == (name in ("weighted", "relative", "fisher-rao"))


# ---------------------------------------------------------------------------------------------------------
# What every measure promises
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_couplings_differ_and_memory_changes_nothing(name):
    model, examples = small_net(torch.float32), small_examples(40, torch.float32)
    loose = LOOSE.get(name, {})
    clean = read(name, model, examples, **loose)
    frozen = read(name, model, examples, coupling="frozen", **loose)
    assert frozen.value != pytest.approx(clean.value, rel=1e-3)
    smaller = read(name, model, examples, Workspace(batch=32, seed=5), coupling="frozen", **loose)
    assert smaller.value == pytest.approx(frozen.value, rel=1e-6)
    assert smaller.details == pytest.approx(frozen.details, rel=1e-5, abs=1e-7)
    images = Oracle(THREAT, SlopesParams(coupling="frozen", steps=3))
    images.freeze(model, examples, Workspace(batch=100, seed=5))
    at_them = read(name, model, images.points(examples), **loose)
    assert at_them.value == pytest.approx(frozen.value, rel=1e-6), "frozen is clean at the frozen images"


@pytest.mark.parametrize("name", MEASURES)
def test_the_model_leaves_as_it_came(name):
    model, examples = small_net(torch.float32).train(), small_examples(6, torch.float32)
    model[0].bias.requires_grad_(False)
    model(examples.x).sum().backward()
    gradients = {key: None if p.grad is None else p.grad.clone() for key, p in model.named_parameters()}
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = read(name, model, examples, coupling="frozen", **LOOSE.get(name, {}))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]
    for key, p in model.named_parameters():
        assert p.grad is gradients[key] is None or torch.equal(p.grad, gradients[key])
    assert all(module.training for module in model.modules())
    assert found.value == read(name, model.eval(), examples, coupling="frozen", **LOOSE.get(name, {})).value


@pytest.mark.parametrize("name", MEASURES)
def test_measures_resume_bit_for_bit(name):
    model, examples = small_net(torch.float32), small_examples(9, torch.float32)
    params = {"coupling": "frozen", **LOOSE.get(name, {})}
    plain = read(name, model, examples, Workspace(4, 0), **params)
    whole = Remembering()
    assert read(name, model, examples, Workspace(4, 0, whole), **params).value == plain.value, "units never collide"
    assert len(whole.kept) > 3
    dying = Remembering(len(whole.kept) - 1)
    with pytest.raises(InterruptedError):
        read(name, model, examples, Workspace(4, 0, dying), **params)
    dying.lives[0] = 1
    found = read(name, model, examples, Workspace(4, 0, dying), **params)
    assert found.value == plain.value
    assert found.details == plain.details
    assert all(np.array_equal(found.arrays[key], array) for key, array in plain.arrays.items())


@pytest.mark.parametrize("name", MEASURES)
def test_one_example_and_weights_without_curvature_have_finite_values(name):
    model = small_net()
    with torch.no_grad():
        for parameter in list(model.parameters())[1:]:
            parameter.zero_()
    found = read(name, model, small_examples(1))
    assert found.value == 0
    assert all(math.isfinite(value) for value in found.details.values())
