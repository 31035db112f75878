"""Flatness measures: closed forms, naive loops, exact restore, invariance, common random numbers, standard errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import EPSILON, THREAT, Remembering, moved_copy, naive_robust_loss, small_examples, small_net
from helpers.naive import digits
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Measurement, Workspace
from robflat_bench.core.estimates import crossed_errors
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams
from robflat_bench.measures.flatness.reference import paper_reference
from robflat_bench.measures.flatness.worst_case import WorstCase, WorstCaseParams
from robflat_bench.measures.oracle import Oracle
from robflat_bench.measures.shared import OracleParams
from robflat_bench.numerics.weight_space import WeightSpace, norm

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(adversarially_trained) -> nn.Module:
    return adversarially_trained


# ---------------------------------------------------------------------------------------------------------
# Models and examples
# ---------------------------------------------------------------------------------------------------------


def average_case(model: nn.Module, examples: Examples, memory: int = 100, **params: Any) -> Measurement:
    measure = AverageCase(AverageCaseParams(**{"draws": 3, "steps": 3, **params}), THREAT)
    return measure.measure(model, examples, Workspace(batch=memory, seed=5))


def worst_case(model: nn.Module, examples: Examples, memory: int = 100, **params: Any) -> Measurement:
    measure = WorstCase(WorstCaseParams(**{"restarts": 2, "steps": 3, **params}), THREAT)
    return measure.measure(model, examples, Workspace(batch=memory, seed=5))


RELEASED_CODE: dict[str, Any] = {"batch": 16, "weight_step": 0.01, "keep": "last"}
MEASURES = {
    "average-case": average_case,
    "worst-case": worst_case,
    "worst-case, released code": lambda *args, **kw: worst_case(*args, **(RELEASED_CODE | kw)),
}


def test_the_trained_network_is_trained(trained):
    examples = digits(1000, 1130)
    with torch.no_grad():
        accuracy = (trained(examples.x).argmax(1) == examples.y).double().mean()
    assert accuracy > 0.7


# ---------------------------------------------------------------------------------------------------------
# Which layers move, and in which ball
# ---------------------------------------------------------------------------------------------------------


class OwnNorm(nn.BatchNorm2d):
    """Somebody's own normalisation layer."""


class Oddly(nn.Module):
    """Layers with the names of other kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1 = nn.Conv2d(2, 4, 3)
        self.conv = nn.BatchNorm2d(4)
        self.norm = nn.Linear(4, 4)
        self.linear = nn.LayerNorm(4)
        self.weight = nn.GroupNorm(2, 4)
        self.head = nn.Sequential(nn.InstanceNorm2d(4, affine=True), OwnNorm(4), nn.RMSNorm(4))
        self.scale = nn.Parameter(torch.ones(3))
        for module in (self.conv, self.linear, self.weight, *self.head):
            nn.init.constant_(module.weight, 0.7)


def test_layers_are_chosen_by_type_and_biases_are_layers_of_their_own():
    assert set(WeightSpace(Oddly()).layers) == {"bn1.weight", "bn1.bias", "norm.weight", "norm.bias", "scale"}


def test_tensors_of_zero_norm_never_move():
    model = Oddly()
    with torch.no_grad():
        model.bn1.bias.zero_()
        model.norm.weight.zero_()
    space = WeightSpace(model)
    assert set(space.layers) == {"bn1.weight", "norm.bias", "scale"}
    for nu in (space.on_sphere(0.5, 1), space.in_ball(0.5, 1), space.zero()):
        assert nu.keys() == space.layers.keys()
        assert all(tensor.isfinite().all() for tensor in nu.values())
        with space.moved(nu):
            assert not model.bn1.bias.any()


def test_norms_are_accumulated_in_float64():
    assert norm(torch.full((40_000_000,), 0.1)) == pytest.approx(0.10000000149 * math.sqrt(4e7), rel=1e-9)


@pytest.mark.parametrize("xi", [0.003, 0.5])
def test_every_layer_of_a_draw_has_its_norm(xi):
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 1000))
    for draw in range(20):
        nu = WeightSpace(model).on_sphere(xi, 0, "average-case", draw)
        assert set(nu) == {"0.weight", "0.bias", "3.weight", "3.bias"}
        for name, tensor in nu.items():
            assert tensor.dtype == torch.float32
            wanted = xi * float(model.get_parameter(name).detach().double().square().sum().sqrt())
            assert float(tensor.double().square().sum().sqrt()) == pytest.approx(wanted, rel=1e-6)


def test_sphere_draws_are_isotropic():
    """E[nu nu^T] = xi^2 ||w||^2 I / d, over 4,000 draws of a layer with 5 numbers."""
    model = nn.Linear(5, 1, bias=False).double()
    space = WeightSpace(model)
    draws = torch.stack([space.on_sphere(0.5, 0, draw)["weight"].flatten() for draw in range(4000)])
    radius = 0.5 * space.norms["weight"]
    assert torch.allclose(draws.T @ draws / 4000, radius**2 / 5 * torch.eye(5).double(), rtol=0, atol=0.02 * radius**2)
    assert draws.mean(0).abs().max() < 0.05 * radius


def test_ball_draws_have_a_uniform_radius_and_isotropic_directions():
    model = nn.Linear(5, 2)
    space = WeightSpace(model)
    draws = [space.in_ball(0.3, 0, draw) for draw in range(1500)]
    for name in ("weight", "bias"):
        fractions = [norm(nu[name]) / (0.3 * space.norms[name]) for nu in draws]
        assert stats.kstest(fractions, "uniform").pvalue > 0.01
    both = [[norm(nu[name]) for nu in draws] for name in ("weight", "bias")]
    assert abs(np.corrcoef(both)[0, 1]) < 0.1, "each layer has its own radius"
    directions = torch.stack([(nu["bias"] / norm(nu["bias"])).double() for nu in draws])
    assert torch.allclose(directions.T @ directions / 1500, torch.eye(2).double() / 2, rtol=0, atol=0.05)


def unit(tensor: Tensor) -> Tensor:
    return tensor.double() / tensor.double().norm()


@pytest.mark.parametrize("draw", ["on_sphere", "in_ball"])
def test_two_models_meet_common_random_numbers(draw):
    first, second = small_net(), small_net()
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(3).add_(0.1)
    larger = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 7), nn.Flatten(), nn.Linear(45, 9))
    a, b, c = (getattr(WeightSpace(model), draw)(0.5, 1, "x") for model in (first, second, larger))
    for name in ("0.weight", "0.bias", "4.weight", "4.bias"):
        assert torch.allclose(unit(a[name]), unit(b[name]), rtol=0, atol=1e-12)
    for name in ("0.weight", "0.bias"):
        assert torch.allclose(unit(a[name]), unit(c[name]), rtol=0, atol=1e-6), "other tensors play no part"
    assert not torch.allclose(unit(a["4.bias"]), unit(c["4.bias"][:4]), rtol=0, atol=0.1), "the shape does"


def test_draws_differ_by_name_and_by_key():
    space = WeightSpace(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    nu, other = space.on_sphere(0.5, 1, "a", 0), space.on_sphere(0.5, 1, "a", 1)
    pairs = [(nu["0.weight"], nu["1.weight"]), (nu["0.bias"], nu["1.bias"]), (nu["0.weight"], other["0.weight"])]
    assert all((unit(a) * unit(b)).sum().abs() < 0.9 for a, b in pairs)
    again = space.on_sphere(0.5, 1, "a", 0)
    assert all(torch.equal(nu[name], again[name]) for name in nu)


def test_a_step_goes_along_the_normalised_gradient_and_is_projected_radially():
    space = WeightSpace(small_net())
    nu = space.in_ball(0.2, 1)
    gradient = {name: torch.randn(t.shape, generator=generator(name)).double() * 50 for name, t in nu.items()}
    gradient["0.bias"] = torch.zeros(5).double()
    for size, projected in ((0.01, False), (0.5, True)):
        moved = space.step(nu, gradient, size, 0.2)
        for name, w in space.layers.items():
            length, g = w.detach().norm(), gradient[name]
            expected = nu[name] if name == "0.bias" else nu[name] + size * length * g / g.norm()
            outside = bool(expected.norm() > 0.2 * length)
            assert outside == (projected and name != "0.bias")
            if outside:
                expected = expected / expected.norm() * 0.2 * length
            assert torch.allclose(moved[name], expected, rtol=0, atol=1e-12)
    still = space.step(nu, gradient, 0.5, 0.2)["0.bias"]
    assert torch.equal(still, nu["0.bias"]), "a layer without gradient stays"


@pytest.mark.parametrize("xi", [0.003, 0.5, 30.0])
@pytest.mark.parametrize("failing", [False, True])
def test_weights_are_restored_bit_for_bit(xi, failing):
    model = small_net(torch.float32).to(memory_format=torch.channels_last)
    before = copy.deepcopy(model.state_dict())
    strides = [p.stride() for p in model.parameters()]
    space = WeightSpace(model)
    nu = space.on_sphere(xi, 1)

    def move() -> None:
        with space.moved(nu):
            for name, parameter in model.named_parameters():
                expected = before[name] + nu[name] if name in nu else before[name]
                assert torch.equal(parameter, expected)
            if failing:
                raise KeyError("inside")

    if failing:
        with pytest.raises(KeyError, match="inside"):
            move()
    else:
        move()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.stride() for p in model.parameters()] == strides
    subtracted = [before[name] + nu[name] - nu[name] for name in nu]
    assert not all(torch.equal(a, before[name]) for a, name in zip(subtracted, nu, strict=True)), "no mere subtraction"


# ---------------------------------------------------------------------------------------------------------
# Closed forms
# ---------------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """A network whose cross-entropy for label 0 is 1 + mean(x) Q(w), Q(w) = (w - c)' H (w - c) / 2, exactly.

    Logits (-log(e^q - 1), 0) have the cross-entropy log(1 + e^q - 1) = q. The attack's best answer, in reach of
    one long step, raises every pixel by epsilon, so the robust loss is 1 + (mean(x) + epsilon) Q(w).
    """

    def __init__(self, hessian: Tensor, centred: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv = nn.Conv2d(1, 3, 2)
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 2)
        self.double()
        w = torch.cat([layer.detach().flatten() for layer in self.moving()])
        self.register_buffer("centre", w.clone() if centred else torch.zeros_like(w))
        self.register_buffer("hessian", hessian.clone())

    def moving(self) -> list[nn.Parameter]:
        return [self.conv.weight, self.conv.bias, self.head.weight, self.head.bias]

    def forward(self, x: Tensor) -> Tensor:
        away = torch.cat([layer.flatten() for layer in self.moving()]) - self.centre
        q = 1 + x.flatten(1).mean(1) * (away @ self.hessian @ away) / 2
        return torch.stack([-torch.log(torch.expm1(q)), torch.zeros_like(q)], 1)


SIZES = (12, 3, 6, 2)


def random_hessian() -> Tensor:
    a = torch.randn(23, 23, generator=generator("hessian"), dtype=torch.float64)
    return a @ a.T / 23


def grey_images(count: int = 5) -> Examples:
    x = 0.2 + 0.6 * torch.rand(count, 1, 2, 2, generator=generator("grey"), dtype=torch.float64)
    return Examples(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def blocks(hessian: Tensor) -> Iterator[Tensor]:
    """H_ll of each layer."""
    start = 0
    for size in SIZES:
        yield hessian[start : start + size, start : start + size]
        start += size


def test_average_case_of_a_quadratic_is_its_closed_form():
    """F_avg = sum_l xi^2 ||w_l||^2 tr(H_ll) / (2 dim_l), cross terms and the slope at w averaging out."""
    hessian, examples, xi = random_hessian(), grey_images(), 0.5
    model = Quadratic(hessian, centred=False)
    found = average_case(model, examples, draws=1000, xi=xi, steps=1, step=1.0)
    rise = sum(
        0.5 * xi**2 * float(layer.detach().square().sum()) * float(block.trace()) / size
        for layer, block, size in zip(model.moving(), blocks(hessian), SIZES, strict=True)
    )
    expected = (float(examples.x.mean()) + EPSILON) * rise
    error = found.details["standard_error_draws"]
    assert abs(found.value - expected) <= 3 * error + 1e-6 * expected
    assert 0 < error < 0.1 * expected, "three standard errors must mean something"


def test_average_case_of_an_isotropic_bowl_is_exact_in_every_draw():
    """With H_ll = h_l I around w itself every point of the sphere is equally high: no sampling error is left."""
    heights, examples, xi = (2.0, 5.0, 0.5, 11.0), grey_images(), 0.7
    hessian = torch.diag(torch.cat([torch.full((n,), h) for n, h in zip(SIZES, heights, strict=True)])).double()
    model = Quadratic(hessian, centred=True)
    found = average_case(model, examples, draws=4, xi=xi, steps=1, step=1.0)
    rise = sum(0.5 * xi**2 * h * float(p.detach().square().sum()) for h, p in zip(heights, model.moving(), strict=True))
    per_example = (examples.x.flatten(1).mean(1) + EPSILON) * rise
    assert found.arrays["reference"] == pytest.approx(1.0, abs=1e-12)
    assert found.arrays["per_example"] == pytest.approx(per_example.numpy(), rel=1e-9)
    assert found.value == pytest.approx(float(per_example.mean()), rel=1e-9)
    assert found.details["standard_error_draws"] < 1e-9


def test_worst_case_of_a_bowl_finds_the_highest_curvature_of_each_layer():
    """Block-diagonal H around w: F_worst = sum_l xi^2 ||w_l||^2 lambda_max(H_ll) / 2."""
    hessian, examples, xi = torch.block_diag(*blocks(random_hessian())), grey_images(), 0.2
    model = Quadratic(hessian, centred=True)
    found = worst_case(model, examples, xi=xi, restarts=3, steps=60, step=1.0, weight_step=0.1)
    highest = sum(
        0.5 * xi**2 * float(p.detach().square().sum()) * float(torch.linalg.eigvalsh(block)[-1])
        for p, block in zip(model.moving(), blocks(hessian), strict=True)
    )
    expected = (float(examples.x.mean()) + EPSILON) * highest
    assert found.value == pytest.approx(expected, rel=1e-3)
    assert found.value <= expected * (1 + 1e-9)


# ---------------------------------------------------------------------------------------------------------
# Naive loops
# ---------------------------------------------------------------------------------------------------------


def test_average_case_attacks_afresh_at_every_draw():
    model, examples = small_net(), small_examples()
    found = average_case(model, examples, xi=0.4, draws=3, steps=4, restarts=2)
    reference = naive_robust_loss(model, examples, 4, 2, seed=5)
    losses = torch.stack(
        [
            naive_robust_loss(
                moved_copy(model, WeightSpace(model).on_sphere(0.4, 5, "average-case", d)), examples, 4, 2, 5
            )
            for d in range(3)
        ]
    )
    assert found.arrays["reference"] == pytest.approx(reference.numpy(), abs=1e-10)
    assert found.arrays["losses"] == pytest.approx(losses.numpy(), abs=1e-10)
    assert found.value == pytest.approx(float((losses - reference).mean()), abs=1e-10)
    assert found.n == 9


def naive_joint(
    model: nn.Module, examples: Examples, params: WorstCaseParams, xi: float, seed: int, restart: int
) -> tuple[dict[str, Tensor], Tensor]:
    """nu and the losses under it where the joint ascent ends, the long way round."""
    key = (seed, "worst-case", restart)
    w = {name: p.detach().clone() for name, p in WeightSpace(model).layers.items()}
    nu = WeightSpace(model).in_ball(xi, *key)
    x = examples.x + EPSILON * per_example_uniform(examples.x, examples.index, *key)
    x = x.clamp(0, 1)
    size = params.batch or len(examples)
    groups = [range(at, min(at + size, len(examples))) for at in range(0, len(examples), size)]
    weight_step = params.weight_step or 2.5 * xi / (params.steps * len(groups))
    history: list[tuple[dict[str, Tensor], Tensor]] = []

    def evaluate() -> None:
        with torch.no_grad():
            losses = F.cross_entropy(moved_copy(model, nu)(x), examples.y, reduction="none")
        history.append((nu, losses))

    evaluate()
    for _ in range(params.steps):
        for group in groups:
            rows = list(group)
            twin = moved_copy(model, nu)
            variable = x[rows].clone().requires_grad_()
            F.cross_entropy(twin(variable), examples.y[rows]).backward()
            x[rows] = (x[rows] + EPSILON / 4 * variable.grad.sign()).clamp(
                examples.x[rows] - EPSILON, examples.x[rows] + EPSILON
            )
            x.clamp_(0, 1)
            gradients = dict(twin.named_parameters())
            nu = dict(nu)
            for name in nu if xi > 0 else ():
                g, length = gradients[name].grad, w[name].norm()
                moved = nu[name] + weight_step * length * g / g.norm()
                nu[name] = moved if moved.norm() <= xi * length else moved * (xi * length / moved.norm())
        evaluate()
    if len(groups) > 1:
        history = history[1:]  # several groups: judged after each round
    if params.keep == "last":
        return history[-1]
    return max(history, key=lambda pair: float(pair[1].mean()))


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("batch", [0, 4])
@pytest.mark.parametrize(("xi", "weight_step"), [(0.1, None), (0.03, 0.2), (0.0, None)])
def test_joint_ascent_equals_the_naive_loop(keep, batch, xi, weight_step):
    model, examples = small_net(), small_examples()
    params = WorstCaseParams(xi=xi, steps=6, batch=batch, keep=keep, weight_step=weight_step)
    found = WorstCase(params, THREAT).ascend(model, examples, Workspace(seed=5), xi, restart=1)
    nu, losses = naive_joint(model, examples, params, xi, seed=5, restart=1)
    assert found.losses.numpy() == pytest.approx(losses.numpy(), abs=1e-8)
    assert found.nu.keys() == nu.keys()
    for name, tensor in found.nu.items():
        assert torch.allclose(tensor, nu[name], rtol=0, atol=1e-8), name


def test_joint_ascent_reads_its_gradients_in_parts(monkeypatch):
    """More examples than one backward pass takes give the same ascent, remainders not counted twice."""
    model, examples = small_net(), small_examples()
    measure = WorstCase(WorstCaseParams(xi=0.1, steps=4), THREAT)
    whole = measure.ascend(model, examples, Workspace(), 0.1, 0)
    monkeypatch.setattr("robflat_bench.measures.oracle.CHUNK", 4)
    parts = measure.ascend(model, examples, Workspace(), 0.1, 0)
    assert torch.allclose(whole.losses, parts.losses, rtol=0, atol=1e-10)
    assert all(torch.allclose(whole.nu[name], parts.nu[name], rtol=0, atol=1e-10) for name in whole.nu)


def test_worst_case_keeps_the_best_restart():
    model, examples = small_net(), small_examples()
    params = WorstCaseParams(xi=0.1, restarts=4, steps=3)
    found = WorstCase(params, THREAT).measure(model, examples, Workspace(seed=5))
    losses = np.stack([naive_joint(model, examples, params, 0.1, 5, restart)[1] for restart in range(4)])
    matched = np.stack([naive_joint(model, examples, params, 0.0, 5, restart)[1] for restart in range(4)])
    assert found.arrays["losses"] == pytest.approx(losses, abs=1e-8)
    expected = max(losses.mean(1)) - max(matched.mean(1))
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert found.arrays["per_example"].mean() == found.value
    assert found.standard_error == pytest.approx(found.arrays["per_example"].std(ddof=1) / 3)
    assert found.details["spread_over_restarts"] == pytest.approx(losses.mean(1).std(ddof=1))
    assert found.n == 9


@pytest.mark.parametrize("means", [(1.0, 3.0, 2.0), (2.0, 2.0, 1.0), (1.0, math.nan, 3.0), (math.nan, 1.0, math.nan)])
def test_no_ascent_is_made_twice_for_the_strong_attack(means, monkeypatch):
    """The ascent that is kept is the one with the highest mean, the first of equal ones; NaN is the highest."""
    made: list[int] = []
    ascend = WorstCase.ascend

    def given(self, model, examples, workspace, xi, restart, frozen=None):
        made.append(restart)
        climb = ascend(self, model, examples, workspace, xi, restart, frozen)
        return climb._replace(losses=torch.full_like(climb.losses, means[restart]))

    monkeypatch.setattr(WorstCase, "ascend", given)
    params = WorstCaseParams(xi=0.1, restarts=3, steps=1, strong_steps=1)
    WorstCase(params, THREAT).measure(small_net(), small_examples(), Workspace(seed=5))
    assert made == [0, 1, 2] * 2


def test_paper_reference_selects_restarts_by_wrong_class_confidence():
    model, examples = small_net(), small_examples(40)
    found = paper_reference(PGD(PGDParams(steps=2), THREAT), model, examples, Workspace(seed=5, batch=16), restarts=4)
    expected, by_loss = [], []
    for i in range(40):
        confidence, chosen, losses = -1.0, math.nan, []
        for restart in range(4):
            pgd = PGD(PGDParams(steps=2), THREAT)
            with torch.no_grad():
                p = model(pgd.perturb(model, examples[i : i + 1], 5 + restart)).softmax(1)[0].tolist()
            label = int(examples.y[i])
            losses.append(-math.log(p[label]))
            wrong = max(value for k, value in enumerate(p) if k != label)
            if wrong > confidence:
                confidence, chosen = wrong, losses[-1]
        expected.append(chosen)
        by_loss.append(max(losses))
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-10)
    assert np.abs(np.array(expected) - np.array(by_loss)).max() > 1e-4, "the highest loss would be another choice"


# ---------------------------------------------------------------------------------------------------------
# What every measure must do
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("reference", ["matched", "paper"])
def test_measures_leave_no_trace_and_do_not_mind_train_mode(name, reference):
    model, examples = small_net(torch.float32), small_examples(20, torch.float32)
    expected = MEASURES[name](model, examples, xi=0.1, reference=reference)
    model[0].train()
    model[1].train()
    model[4].weight.requires_grad_(False)
    before, images = copy.deepcopy(model.state_dict()), examples.x.clone()
    random_state = torch.get_rng_state()
    found = MEASURES[name](model, examples, xi=0.1, reference=reference)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, False, False]
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(examples.x, images)
    assert found.value == expected.value


@pytest.mark.parametrize("name", MEASURES)
def test_weights_are_restored_when_a_measure_fails(name):
    model, examples = small_net(torch.float32), small_examples(20, torch.float32)
    before, calls = copy.deepcopy(model.state_dict()), []

    def fail_late(module: nn.Module, inputs: tuple[Tensor]) -> None:
        calls.append(torch.equal(module[0].weight, before["0.weight"]))
        if len(calls) == 6:
            raise InterruptedError("a kill")

    handle = model.register_forward_pre_hook(fail_late)
    with pytest.raises(InterruptedError):
        MEASURES[name](model, examples, xi=0.1)
    handle.remove()
    assert not calls[-1], "it failed at moved weights"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MEASURES)
def test_matched_reference_is_exactly_zero_at_radius_zero(trained, name):
    found = MEASURES[name](trained, digits(1000, 1020), xi=0)
    assert found.value == 0.0
    assert not found.arrays["per_example"].any()
    assert found.standard_error == 0.0
    assert found.arrays["losses"].max() > 0.1


@pytest.mark.parametrize("name", MEASURES)
def test_paper_reference_shows_its_offset_at_radius_zero(trained, name):
    examples = digits(1000, 1020)
    at_zero = MEASURES[name](trained, examples, xi=0, reference="paper", reference_restarts=3)
    assert at_zero.value == pytest.approx(at_zero.details["offset_at_zero"], abs=1e-12)
    assert abs(at_zero.value) > 1e-4
    further = MEASURES[name](trained, examples, xi=0.03, reference="paper", reference_restarts=3)
    matched = MEASURES[name](trained, examples, xi=0.03)
    assert further.details["offset_at_zero"] == at_zero.details["offset_at_zero"]
    assert further.value == pytest.approx(matched.value + at_zero.value, abs=1e-12)


@pytest.mark.parametrize(
    "measure",
    [
        AverageCase(AverageCaseParams(draws=3, steps=2, reference="paper", reference_restarts=2), THREAT),
        WorstCase(WorstCaseParams(xi=0.1, restarts=2, steps=2, reference="paper", reference_restarts=2), THREAT),
    ],
    ids=["average-case", "worst-case"],
)
def test_measures_resume_bit_for_bit(measure):
    model, examples = small_net(torch.float32), small_examples(9, torch.float32)
    plain = measure.measure(model, examples, Workspace(batch=4))
    journal = Remembering()
    assert measure.measure(model, examples, Workspace(4, 0, journal)).value == plain.value, "units never collide"
    for lives in range(len(journal.kept)):
        dying = Remembering(lives)
        with pytest.raises(InterruptedError):
            measure.measure(model, examples, Workspace(4, 0, dying))
        dying.lives[0] = len(journal.kept) - lives
        found = measure.measure(model, examples, Workspace(4, 0, dying))
        assert found.value == plain.value
        assert all(np.array_equal(found.arrays[name], array) for name, array in plain.arrays.items())


# ---------------------------------------------------------------------------------------------------------
# On a trained network
# ---------------------------------------------------------------------------------------------------------

PAIRS = (("conv", "norm"), ("conv1", "norm1"), ("conv2", "norm2"))


def with_biases(model: nn.Module) -> nn.Module:
    """The same function with a bias in every convolution, undone by the running mean behind it."""
    model = copy.deepcopy(model)
    for conv, following in convolutions(model):
        bias = 0.1 * torch.randn(conv.out_channels, generator=generator("bias", conv.out_channels))
        conv.bias = nn.Parameter(bias)
        following.running_mean += bias
    return model


def convolutions(model: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution with the normalisation that follows it."""
    found = [
        (children[conv], children[norm_])
        for children in (dict(module.named_children()) for module in model.modules())
        for conv, norm_ in PAIRS
        if conv in children
    ]
    assert len(found) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return found


def rescaled(model: nn.Module, c: float, with_eps: bool) -> nn.Module:
    """The same function with every convolution scaled by c."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for conv, following in convolutions(model):
            conv.weight *= c
            conv.bias *= c
            following.running_mean *= c
            following.running_var *= c**2
            if with_eps:
                following.eps *= c**2
    return model


@pytest.mark.parametrize("c", [0.5, 2.0])
@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_invariant_bit_for_bit_to_scaling_undone_by_normalisation(trained, name, c):
    model, examples = with_biases(trained), digits(1000, 1040)
    scaled = rescaled(model, c, with_eps=True)
    assert torch.equal(model(examples.x), scaled(examples.x))
    found, again = (MEASURES[name](net, examples, xi=0.1) for net in (model, scaled))
    assert abs(found.value) > 0.01
    assert again.value == found.value
    assert again.standard_error == found.standard_error
    assert all(np.array_equal(again.arrays[key], array) for key, array in found.arrays.items())


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_average_case_hardly_notices_scaling_that_leaves_eps_alone(trained, c):
    model, examples = with_biases(trained), digits(1000, 1040)
    found, again = (average_case(net, examples, xi=0.5, draws=5) for net in (model, rescaled(model, c, with_eps=False)))
    assert found.value > 0.1
    assert 0 < abs(again.value - found.value) < 5e-3


@pytest.mark.parametrize("xi", [0.01, 0.03, 0.1])
def test_worst_case_is_above_average_case_at_equal_radius(trained, xi):
    examples = digits(1000, 1060)
    average, worst = average_case(trained, examples, xi=xi, steps=5), worst_case(trained, examples, xi=xi, steps=10)
    assert worst.value > average.value + 3 * average.standard_error
    assert worst.value > 0.01


def test_flatness_grows_with_the_radius(trained):
    examples = digits(1000, 1060)
    for measure, radii in ((average_case, (0.2, 0.5, 1.0)), (worst_case, (0.003, 0.01, 0.03))):
        values = [measure(trained, examples, xi=xi).value for xi in radii]
        assert values == sorted(values)
        assert values[-1] > 5 * abs(values[0])


@pytest.mark.parametrize("xi", [0.003, 0.03])
def test_released_codes_setting_stays_in_the_ball_and_best_beats_last(trained, xi):
    """Its step is longer than the small ball's radius: every step ends at the border, and may overshoot."""
    examples = digits(1000, 1050)
    ends = {}
    for keep in ("best", "last"):
        params = WorstCaseParams(xi=xi, steps=6, **(RELEASED_CODE | {"keep": keep}))
        ends[keep] = WorstCase(params, THREAT).ascend(trained, examples, Workspace(), xi, 0)
        space = WeightSpace(trained)
        assert ends[keep].nu.keys() == space.layers.keys()
        fractions = [norm(ends[keep].nu[name]) / (xi * space.norms[name]) for name in space.layers]
        assert max(fractions) <= 1 + 1e-6
        assert max(fractions) > 0.99
    assert ends["best"].losses.mean() >= ends["last"].losses.mean()
    assert ends["last"].losses.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_batches_change_no_value(trained, layout):
    model, examples = copy.deepcopy(trained).to(memory_format=layout), digits(1000, 1130)
    oracle = Oracle(THREAT, OracleParams(coupling="reattack", steps=5, restarts=2))
    batches = (32, 100, 250)
    losses = [oracle.losses(model, examples, Workspace(batch=batch)) for batch in batches]
    assert losses[0].shape == (130,)
    for other in losses[1:]:
        assert torch.allclose(other, losses[0], rtol=1e-6, atol=1e-6)
        assert float(other.mean()) == pytest.approx(float(losses[0].mean()), abs=1e-6)
    for measure in (average_case, worst_case):
        found = [measure(model, examples, batch, xi=0.05).value for batch in batches]
        assert abs(found[0]) > 0.001
        assert found == pytest.approx([found[0]] * 3, abs=1e-6)


@pytest.mark.parametrize("name", ["worst-case", "worst-case, released code"])
def test_joint_ascent_does_not_see_the_memory_batch(trained, name):
    """Not within rounding: at all. Sums in another order would let the sign of a gradient near 0 flip."""
    found = [MEASURES[name](trained, digits(1000, 1060), batch, xi=0.03).arrays["losses"] for batch in (7, 60, 250)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_order_and_company_of_examples_change_no_loss():
    model, examples = small_net(), small_examples(20)
    oracle = Oracle(THREAT, OracleParams(coupling="reattack", steps=3, restarts=2))
    losses = oracle.losses(model, examples, Workspace(seed=5))
    order = torch.randperm(20, generator=generator("order"))
    assert torch.allclose(oracle.losses(model, examples[order], Workspace(seed=5)), losses[order], rtol=0, atol=1e-12)
    assert losses.dtype == torch.float64
    assert losses.numpy() == pytest.approx(naive_robust_loss(model, examples, 3, 2, seed=5).numpy(), abs=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Standard errors
# ---------------------------------------------------------------------------------------------------------


def simulate(worlds: int, draws: int, n: int, scales: tuple[float, float, float]) -> tuple[np.ndarray, list[dict]]:
    """Grand means (true value 0) and their standard errors when draws, examples and their interaction are random."""
    random = np.random.default_rng(1)
    over_draws, over_examples, interaction = scales
    values = (
        over_draws * random.standard_normal((worlds, draws, 1))
        + over_examples * random.standard_normal((worlds, 1, n))
        + interaction * random.standard_normal((worlds, draws, n))
    )
    return values.mean((1, 2)), [crossed_errors(world) for world in values]


SCALES = [(0.3, 1.0, 0.5), (0.5, 0.2, 2.0), (0.0, 1.0, 1.0), (0.2, 0.0, 0.3)]


@pytest.mark.parametrize("scales", SCALES)
def test_standard_errors_estimate_the_known_variance(scales):
    draws, n = 10, 30
    means, errors = simulate(4000, draws, n, scales)
    a, b, c = (scale**2 for scale in scales)
    truth = a / draws + b / n + c / (draws * n)
    assert means.var() == pytest.approx(truth, rel=0.1), "the simulation itself"
    estimate = np.mean([found["standard_error"] ** 2 for found in errors])
    assert 0.97 * truth < estimate < 1.1 * truth
    by_draws = np.mean([found["standard_error_draws"] ** 2 for found in errors])
    by_examples = np.mean([found["standard_error_examples"] ** 2 for found in errors])
    assert by_draws == pytest.approx(a / draws + c / (draws * n), rel=0.05)
    assert by_examples == pytest.approx(b / n + c / (draws * n), rel=0.05)


def test_combined_standard_error_covers_where_either_alone_does_not():
    means, errors = simulate(4000, 10, 30, (0.4, 0.7, 0.5))
    covered = {
        name: np.mean([abs(mean) <= 1.96 * found[name] for mean, found in zip(means, errors, strict=True)])
        for name in ("standard_error", "standard_error_draws", "standard_error_examples")
    }
    assert covered["standard_error"] > 0.92
    assert covered["standard_error_draws"] < 0.87
    assert covered["standard_error_examples"] < 0.87


def test_crossed_standard_errors_equal_those_by_hand():
    found = crossed_errors(np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]))  # additive: no interaction at all
    assert found["standard_error_draws"] == pytest.approx(math.sqrt(2.0 / 2))
    assert found["standard_error_examples"] == pytest.approx(math.sqrt(7.0 / 3))
    assert found["standard_error"] == pytest.approx(math.sqrt(1 + 7 / 3))
    single = crossed_errors(np.array([[1.0], [2.0]]))
    assert single["standard_error"] == single["standard_error_draws"] == pytest.approx(0.5)


def test_average_case_reports_the_errors_of_its_differences():
    found = average_case(small_net(), small_examples(), xi=0.4, draws=4)
    errors = crossed_errors(found.arrays["losses"] - found.arrays["reference"])
    assert found.standard_error == errors["standard_error"]
    assert found.details.items() >= {key: value for key, value in errors.items() if key != "standard_error"}.items()
    assert found.value == pytest.approx(found.arrays["per_example"].mean(), rel=1e-12)
