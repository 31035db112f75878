"""The soft rank of the Gauss-Newton matrix: dense eigenvalues, linear models, bounds of the quadrature, Fisher-Rao."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import THREAT, Remembering, small_examples, small_net
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from robflat_bench.core import Examples, Measurement, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.curvature import hessian
from robflat_bench.measures.curvature.fisher_rao import FisherRao
from robflat_bench.measures.curvature.hessian import GaussNewton
from robflat_bench.measures.curvature.soft_rank import SoftRank, SoftRankParams, rules
from robflat_bench.measures.oracle import Oracle, normalised
from robflat_bench.measures.shared import SlopesParams
from robflat_bench.numerics.weight_space import WeightSpace

pytestmark = pytest.mark.usefixtures("one_thread")


def read(model: nn.Module, examples: Examples, place: Workspace | None = None, **params: Any) -> Measurement:
    described = SoftRankParams(**{"coupling": "clean", "steps": 3, "probes": 4, **params})
    return SoftRank(described, THREAT).measure(model, examples, place or Workspace(seed=5))


def flat(model: nn.Module, examples: Examples) -> tuple[Any, Tensor]:
    """The logits as a function of the flattened weights, and these."""
    layers = WeightSpace(model).layers
    sizes = [layer.numel() for layer in layers.values()]

    def logits(w: Tensor) -> Tensor:
        parts = {k: v.view_as(layers[k]) for k, v in zip(layers, w.split(sizes), strict=True)}
        return functional_call(model, parts, (examples.x,))

    return logits, torch.cat([layer.detach().flatten() for layer in layers.values()])


def dense(model: nn.Module, examples: Examples, transform: Any = lambda z: z) -> np.ndarray:
    """G from the whole Jacobian."""
    logits, w = flat(model, examples)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(logits(v)), w)
    p = transform(logits(w)).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return (torch.einsum("nkp,nkl,nlq->pq", jacobian, middle, jacobian) / len(examples)).detach().numpy()


def soft_rank(matrix: np.ndarray, decay: float) -> float:
    values = np.linalg.eigvalsh(matrix)
    return float((values / (values + decay)).sum())


def linear(classes: int = 4) -> nn.Sequential:
    """Softmax regression of 12 pixels, whose Gauss-Newton matrix is the Hessian."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).double().eval()


def small(count: int = 40) -> Examples:
    x = torch.rand(count, 1, 3, 4, generator=generator("soft"), dtype=torch.float64)
    return Examples(x, torch.randint(0, 4, (count,), generator=generator("labels")), torch.arange(count))


@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_products_are_those_of_the_dense_matrix_in_chunks_kept_or_not(logits, monkeypatch):
    model, examples = small_net(), small_examples(7)
    expected = dense(model, examples, normalised if logits == "normalised" else lambda z: z)
    monkeypatch.setattr(hessian, "CHUNK", 3)
    for kept in (2**28, 0):
        monkeypatch.setattr(hessian, "KEPT", kept)
        matrix = GaussNewton(model, Oracle(THREAT, SlopesParams(coupling="clean", logits=logits)), examples)
        assert len(matrix.chunks) == 3
        with matrix.products() as product:
            found = np.stack([product(row) for row in np.eye(matrix.size)])
        assert found == pytest.approx(expected, abs=1e-13)
    assert np.linalg.eigvalsh(expected).min() > -1e-12


def test_the_matrix_of_softmax_regression_is_its_hessian():
    model, examples = linear(), small()
    logits, w = flat(model, examples)
    second = torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), examples.y), w)
    assert dense(model, examples) == pytest.approx(second.numpy(), abs=1e-13)


def forms(model: nn.Module, examples: Examples, matrix: np.ndarray, count: int) -> np.ndarray:
    """u' M u for the probes u of the measure."""
    space = GaussNewton(model, Oracle(THREAT, SlopesParams(coupling="clean")), examples)
    probes = [space.draw(hessian.rademacher, 5, "soft-rank", number) for number in range(count)]
    return np.array([u @ matrix @ u for u in probes])


@pytest.mark.parametrize("decay", [5e-4, 0.02, 3.0])
def test_soft_rank_of_softmax_regression_equals_the_hessians_eigenvalues(decay):
    model, examples = linear(), small()
    logits, w = flat(model, examples)
    second = torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v), examples.y), w).numpy()
    found = read(model, examples, decay=decay, probes=20, nodes=60)
    values, vectors = np.linalg.eigh(second)
    turned = (vectors * (values / (values + decay))) @ vectors.T
    assert found.arrays["probes"] == pytest.approx(forms(model, examples, turned, 20), rel=1e-8)
    assert found.details["trace"] == pytest.approx(forms(model, examples, second, 20).mean(), rel=1e-10)
    assert found.details["residual"] == 0
    assert abs(found.value - soft_rank(second, decay)) < 4 * found.standard_error


def test_both_rules_enclose_the_true_value_and_meet():
    """On a spectrum with a large null space; the Radau rule is the nearer one."""
    values = np.concatenate([np.geomspace(5.0, 1e-5, 60), np.zeros(240)])
    u = np.random.default_rng(1).choice([-1.0, 1.0], 300)
    exactly = float((values / (values + 5e-4)).sum())
    widths = []
    for nodes in (2, 4, 8, 16, 32):
        found = rules(lambda v: values * v, u, nodes, 5e-4)
        low, high = found["radau"], found["gauss"]
        assert low <= exactly * (1 + 1e-12)
        assert exactly <= high * (1 + 1e-12)
        widths.append(high - low)
        if nodes < 32:
            assert exactly - low < high - exactly
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01 * exactly


def test_few_nodes_err_by_no_more_than_the_residual():
    model, examples = small_net(), small_examples(30)
    whole = read(model, examples, nodes=500)
    few = read(model, examples, nodes=12)
    assert whole.details["residual"] == 0
    assert whole.value - few.details["residual"] <= few.value <= whole.value
    assert few.value < whole.value
    exactly = soft_rank(dense(model, examples), 5e-4)
    assert abs(whole.value - exactly) < 4 * whole.standard_error


def test_soft_rank_ends_where_the_krylov_space_does():
    """Two images and two classes: two eigenvalues that are not 0, hence three nodes."""
    model, examples = linear(2), small(2)
    examples = Examples(examples.x, examples.y % 2, examples.index)
    values, vectors = np.linalg.eigh(dense(model, examples))
    turned = (vectors * (values / (values + 1e-3))) @ vectors.T
    for nodes in (4, 20, 26, 90):
        found = read(model, examples, nodes=nodes, decay=1e-3)
        assert found.arrays["probes"] == pytest.approx(forms(model, examples, turned, 4), rel=1e-8)
        assert found.details["residual"] == pytest.approx(0, abs=1e-9)


def test_the_quadratic_form_of_the_weights_is_their_fisher_rao_norm():
    model, examples = small_net(), small_examples(11)
    params = SlopesParams(coupling="clean")
    expected = FisherRao(params, THREAT).measure(model, examples, Workspace()).value
    matrix = GaussNewton(model, Oracle(THREAT, params), examples)
    w = matrix.weights()
    with matrix.products() as product:
        assert w @ product(w) == pytest.approx(expected, rel=1e-10)


def test_scaled_convolutions_act_as_a_scaled_decay():
    """Weights times c before a normalisation: their eigenvalues fall by c^2, so lambda / c^2 finds the same rank."""
    model, examples, c = small_net(), small_examples(), 4.0
    for name in ("weight", "bias"):
        model[4].register_buffer(name, model[4]._parameters.pop(name).detach())
    before = read(model, examples, nodes=500)
    with torch.no_grad():
        model[0].weight *= c
        model[0].bias *= c
        model[1].running_mean *= c
        model[1].running_var.add_(model[1].eps).mul_(c**2)
        model[1].eps = 0.0
    after = read(model, examples, nodes=500, decay=5e-4 / c**2)
    assert after.value == pytest.approx(before.value, rel=1e-9)
    assert read(model, examples, nodes=500).value < 0.95 * before.value


def test_soft_rank_resumes_after_every_unit():
    model, examples = small_net(), small_examples()
    plain = read(model, examples, nodes=6)
    journal = Remembering()
    assert read(model, examples, Workspace(seed=5, journal=journal), nodes=6).value == plain.value
    for lives in range(len(journal.kept)):
        dying = Remembering(lives)
        with pytest.raises(InterruptedError):
            read(model, examples, Workspace(seed=5, journal=dying), nodes=6)
        dying.lives[0] = math.inf
        assert read(model, examples, Workspace(seed=5, journal=dying), nodes=6).details == plain.details
