"""Losses, attacks and schedules in float64 against formulas written out; the ends of their range."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.api import Batch, Method, Moment, generator
from robflat_bench.testing import run_checks
from robflat_bench.testing.fixtures import COUNT, inner, world
from robflat_fastat.nuat import nuclear_shares
from robflat_fastat.zerograd import large

EPSILON = 0.1  # of the kit's training attack
NAMES = ("nuat", "gat", "zerograd")
NOW = Moment(seed=7, epoch=2, update=3, progress=0.45)  # half of NuAT's ramp; an update whose step is guided


@pytest.fixture
def build(registry) -> Callable[..., Method]:
    def make(name: str, **values: object) -> Method:
        offer = registry.get("method", name)
        return offer.load()(offer.info.params(**values))

    return make


@pytest.fixture
def model() -> nn.Module:
    """The kit's network in float64 and train mode, its running statistics moved."""
    place = world()
    net = place.model.double().train()
    with torch.no_grad():
        for scale in (0.5, 1.0):
            net(scale * place.batch.x.double())
    return net


@pytest.fixture
def batch() -> Batch:
    """A dozen digits with smooth targets."""
    given = world().batch
    target = 0.9 * given.target.double() + 0.01
    return replace(given, x=given.x.double(), target=target, weight=given.weight.double(), moment=NOW)


def draw(moment: Moment, shape: torch.Size) -> Tensor:
    """U(-1,1) as keyed by the moment."""
    source = generator(moment.seed, "start", moment.epoch, moment.update)
    return 2 * torch.rand(shape, generator=source, dtype=torch.float64) - 1


def between(value: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    lower, upper = (torch.as_tensor(bound, dtype=value.dtype).expand_as(value) for bound in (lower, upper))
    return torch.minimum(torch.maximum(value, lower), upper)


def nuclear(moved: Tensor, clean: Tensor) -> Tensor:
    """The norm as torch has it, gradient through its decomposition included."""
    return torch.linalg.matrix_norm(moved - clean, ord="nuc")


def squares(moved: Tensor, clean: Tensor) -> Tensor:
    p, q = (z.exp() / z.exp().sum(1, keepdim=True) for z in (moved, clean))
    return ((p - q) ** 2).sum()


DISTANCES = {"nuat": nuclear, "gat": squares}


@pytest.mark.parametrize("name", NAMES)
def test_passes_the_conformance_kit(registry, name):
    results = run_checks(registry, "method", name)
    not_passed = {result.check for result in results if result.outcome != "passed"}
    assert not_passed == ({"check_shards_train_apart"} if name == "nuat" else set()), results


# ---------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "weight"), [("nuat", 3.0), ("gat", 3.0), ("zerograd", 0.0)])
def test_loss_gradient_and_statistics_equal_the_formula(model, batch, build, name, weight):
    """Of NuAT half the ramp is over, so half its weight counts."""
    values = {"nuat": {"weight": 6.0}, "gat": {"weight": 3.0}}.get(name, {})
    x_adv = between(batch.x + EPSILON * torch.sign(draw(NOW, batch.x.shape)), 0.0, 1.0)
    twin = copy.deepcopy(model)
    moved = twin(x_adv)
    learned = moved if name == "zerograd" else twin(batch.x)
    expected = -(batch.target * torch.log(learned.exp() / learned.exp().sum(1, keepdim=True))).sum() / COUNT
    if weight:
        expected = expected + weight * DISTANCES[name](moved, learned) / COUNT
    ours = build(name, **values).loss(model, batch, x_adv)
    assert ours.shape == (COUNT,)
    assert torch.allclose(ours.mean(), expected, rtol=0, atol=1e-12)
    ours.mean().backward()
    expected.backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-9)
    assert max(float(other.grad.abs().max()) for other in twin.parameters()) > 0.05
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DISTANCES)
def test_without_weight_only_the_clean_images_are_learned(model, batch, build, name):
    x_adv, twin = between(batch.x + EPSILON, 0.0, 1.0), copy.deepcopy(model)
    twin(x_adv)
    ours = build(name, weight=0).loss(model, batch, x_adv)
    assert torch.equal(ours, F.cross_entropy(twin(batch.x), batch.target, reduction="none"))


@pytest.mark.parametrize("name", DISTANCES)
def test_a_network_that_ignores_its_images_has_no_distance_and_finite_gradients(model, batch, build, name):
    nn.init.zeros_(next(parameter for parameter in model.parameters() if parameter.ndim == 4))
    method = build(name)
    clean = model(batch.x)
    assert torch.equal(method.distance(model(1 - batch.x), clean, batch), torch.zeros(COUNT).double())
    method.loss(model, batch, 1 - batch.x).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert torch.equal(method.attack(model, batch, inner()), between_ball(start(batch, "gat"), batch.x))


# ---------------------------------------------------------------------------------------------------------
# The nuclear norm, shared out
# ---------------------------------------------------------------------------------------------------------


def matrix(rows: int, columns: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=generator("matrix", seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 10), (50, 10), (4, 10), (1, 10), (7, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_sum_to_the_norm_and_have_its_gradient(shape, weighted):
    """With weights: the norm of the weighted rows, whatever the weights' scale; a row without weight is left out."""
    weight = torch.arange(shape[0]) % 3 / 2 + (shape[0] == 1) if weighted else torch.ones(shape[0])
    ours, theirs = (matrix(*shape).requires_grad_() for _ in range(2))
    weight = weight.double()
    total = (weight * nuclear_shares(ours, weight)).sum()
    expected = torch.linalg.matrix_norm(weight[:, None] * theirs, ord="nuc")
    total.backward()
    expected.backward()
    assert torch.allclose(total, expected, rtol=1e-12, atol=0)
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    assert torch.allclose(nuclear_shares(ours, 5 * weight), nuclear_shares(ours, weight), rtol=0, atol=1e-12)


def test_shares_go_with_their_rows():
    order = torch.randperm(12, generator=generator("order"))
    given, weight = matrix(12, 10), torch.ones(12)
    assert torch.allclose(
        nuclear_shares(given[order], weight), nuclear_shares(given, weight)[order], rtol=0, atol=1e-12
    )
    assert (nuclear_shares(given, weight) > 0).all()


def test_shares_of_orthogonal_rows_are_their_lengths():
    """All singular values meet; the gradient through the decomposition would be infinite."""
    given = (3 * torch.linalg.qr(matrix(10, 10)).Q[:6]).requires_grad_()
    shares = nuclear_shares(given, torch.ones(6))
    assert torch.allclose(shares, torch.full((6,), 3.0).double(), rtol=0, atol=1e-12)
    shares.sum().backward()
    assert torch.allclose(given.grad, given.detach() / 3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_within_rounding_have_no_gradient(dtype):
    """Rank one: the gradient is u v^T, the same with noise of a tenth of the last bit."""
    u, v = F.normalize(matrix(12, 1), dim=0), F.normalize(matrix(1, 10, 2), dim=1)
    for noise in (0.0, 0.1 * torch.finfo(dtype).eps):
        given = (8 * u @ v + noise * matrix(12, 10, 3)).to(dtype).requires_grad_()
        nuclear_shares(given, torch.ones(12)).sum().backward()
        assert torch.allclose(given.grad.double(), u @ v, rtol=0, atol=1e-5)


def test_shares_of_nothing_are_zero_and_what_is_not_finite_shows():
    given = torch.zeros(5, 10, requires_grad=True)
    shares = nuclear_shares(given, torch.ones(5))
    shares.sum().backward()
    assert torch.equal(shares, torch.zeros(5))
    assert torch.equal(given.grad, torch.zeros(5, 10))
    for value in (torch.nan, torch.inf):
        broken = matrix(5, 10).index_fill(0, torch.tensor([2]), value)
        assert nuclear_shares(broken, torch.ones(5)).isfinite().tolist() == [True, True, False, True, True]


# ---------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------


def start(given: Batch, name: str, noise: float = 0.5) -> Tensor:
    uniform = draw(given.moment, given.x.shape)
    step = EPSILON * uniform if name == "zerograd" else noise * EPSILON * torch.where(uniform < 0, 1.0, -1.0)
    return between(given.x + step, 0.0, 1.0)


def between_ball(value: Tensor, x: Tensor) -> Tensor:
    return between(between(value, x - EPSILON, x + EPSILON), 0.0, 1.0)


def input_gradient(net: nn.Module, given: Batch, at: Tensor, distance: object = None, weight: float = 0.0) -> Tensor:
    """Of the summed cross-entropies plus weight * distance, in eval mode."""
    net = copy.deepcopy(net).eval()
    variable = at.clone().requires_grad_()
    logits = net(variable)
    total = -logits.log_softmax(1)[range(COUNT), given.y].sum()
    if distance is not None:
        total = total + weight * distance(logits, net(given.x).detach())
    return torch.autograd.grad(total, variable)[0]


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("update", [2, 3])
@pytest.mark.parametrize(("noise", "alpha"), [(0.5, 1.0), (1.0, 0.3)])
def test_guided_step_equals_the_formula_and_every_other_is_plain(model, batch, build, name, update, noise, alpha):
    given = replace(batch, moment=replace(NOW, update=update, progress=0.95))
    boost = {"gat": 4.0}.get(name, 1.0)
    at = start(given, name, noise)
    plain, guided = (input_gradient(model, given, at, DISTANCES[name], weight) for weight in (0.0, 20 * boost))
    assert (plain.sign() != guided.sign()).double().mean() > 0.02, "guidance matters"
    gradient = guided if update % 2 else plain
    x_adv = build(name, weight=20, noise=noise, alpha=alpha).attack(model, given, inner())
    assert torch.allclose(x_adv, between_ball(at + alpha * EPSILON * gradient.sign(), given.x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("q", "alpha"), [(0.35, 2.0), (0.7, 0.5)])
def test_zerograd_steps_where_gradients_are_large_and_keeps_its_noise_elsewhere(model, batch, build, q, alpha):
    at = start(batch, "zerograd")
    gradient = input_gradient(model, batch, at)
    x_adv, stood = build("zerograd", q=q, alpha=alpha).attack(model, batch, inner()), 0
    for i in range(COUNT):
        sizes = sorted(gradient[i].abs().flatten().tolist())
        floor = sizes[int(q * (len(sizes) - 1))]  # the quantile lies between this size and the next
        moves = gradient[i].abs() > floor
        expected = torch.where(moves, at[i] + alpha * EPSILON * gradient[i].sign(), at[i])
        assert torch.allclose(x_adv[i], between_ball(expected, batch.x[i]), rtol=0, atol=1e-12)
        stood += int((~moves).sum())
    assert stood == COUNT * (int(q * 63) + 1)


def test_zerograd_without_a_quantile_is_fgsm_rs(model, batch, build):
    ours = build("zerograd", q=0, alpha=1.25).attack(model, batch, inner())
    assert torch.equal(ours, build("fgsm-rs", alpha=1.25).attack(model, batch, inner()))
    assert not torch.equal(ours, build("zerograd", alpha=1.25).attack(model, batch, inner()))


def test_quantiles_are_of_each_example_and_ties_stay():
    gradient = torch.tensor([[1, -2, 3, -4, 5], [10, 10, -10, 10, 10], [0, 0, 0, 0, 7], [1e-9, -2e-9, 3e-9, 4e-9, 0]])
    expected = torch.tensor([[0, 0, 3, -4, 5], [10, 10, -10, 10, 10], [0, 0, 0, 0, 7], [0, -2e-9, 3e-9, 4e-9, 0]])
    assert torch.equal(large(gradient.view(4, 1, 1, 5), 0.5).view(4, 5), expected)


@pytest.mark.parametrize("name", NAMES)
def test_attack_stays_in_ball_and_box_reaches_both_and_draws_anew(model, batch, build, name):
    method = build(name, alpha=5)
    x_adv = method.attack(model, batch, inner())
    distance = (x_adv - batch.x).abs()
    assert distance.max() <= EPSILON + 1e-12
    assert distance.max() > 0.999 * EPSILON
    assert (x_adv.min(), x_adv.max()) == (0, 1)
    assert torch.equal(x_adv, build(name, alpha=5).attack(model, batch, inner())), "keyed by the moment"
    later = replace(batch, moment=replace(NOW, update=5))
    assert not torch.equal(x_adv, method.attack(model, later, inner()))


# ---------------------------------------------------------------------------------------------------------
# Schedules
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "weights"),
    [
        ("nuat", {}, {0.0: 0.0, 0.45: 2.25, 0.9: 4.5, 1.0: 4.5}),
        ("nuat", {"ramp": 0}, {0.0: 4.5, 1.0: 4.5}),
        ("gat", {}, {0.0: 10.0, 85 / 100: 10.0, 86 / 100: 40.0, 1.0: 40.0}),
        ("gat", {"boost": 1}, {0.0: 10.0, 1.0: 10.0}),
    ],
)
def test_weight_over_training(build, name, values, weights):
    method = build(name, **values)
    found = {progress: method.weight(replace(NOW, progress=progress)) for progress in weights}
    assert found == pytest.approx(weights)
