"""Norms of the threat: against naive formulas, linear classifiers, foolbox and the authors' AutoAttack."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from robflat_bench.attacks.autoattack import THEIRS, AutoAttack, AutoAttackParams
from robflat_bench.attacks.engine import TrainingAttack, ascend, attacked, cross_entropy, margin, probability_margin
from robflat_bench.attacks.fgsm import FGSM, FGSMParams
from robflat_bench.attacks.norms import CLIMBED, NORMS, climbed
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import ENGINE_NORMS, Examples, Threat, UsageError, Workspace
from robflat_bench.core.randomness import generator, per_example_uniform, uniform_like

pytestmark = pytest.mark.usefixtures("one_thread")

EXPONENTS = {"linf": (math.inf, 1), "l2": (2, 2), "l1": (1, math.inf)}
SHAPE = (3, 4, 4)


def moves(count: int = 12, scale: float = 1.0, key: str = "moves") -> Tensor:
    return scale * torch.randn(count, *SHAPE, generator=generator(key), dtype=torch.float64)


def images(count: int = 12, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images; a third of the pixels lies exactly at an end of the box."""
    x = torch.rand(count, *SHAPE, generator=generator("images"), dtype=torch.float64)
    return torch.where(x < 0.17, 0.0, torch.where(x > 0.83, 1.0, x)).to(dtype)


# ---------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------


def test_the_engine_climbs_in_the_norms_that_it_declares():
    assert (*CLIMBED,) == ENGINE_NORMS
    assert {*NORMS} == {*EXPONENTS} == {*THEIRS}
    with pytest.raises(UsageError, match="defined under linf, l2, not l1; use autoattack"):
        climbed("l1")


@pytest.mark.parametrize("name", NORMS)
def test_sizes_and_duals_are_numpys(name):
    found, d = NORMS[name], moves()
    for value, p in zip((found.size(d), found.dual(d)), EXPONENTS[name], strict=True):
        expected = [np.linalg.norm(row, p) for row in d.flatten(1).numpy()]
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("name", CLIMBED)
def test_the_steepest_move_has_size_one_and_reaches_the_dual_norm(name, scale):
    norm, g = CLIMBED[name], moves(scale=scale)
    g[0] = 0
    step = norm.steepest(g)
    assert not step[0].any()
    torch.testing.assert_close(norm.size(step[1:]), torch.ones(11, dtype=torch.float64), rtol=0, atol=1e-12)
    slope = (step * (g / scale)).flatten(1).sum(1)
    torch.testing.assert_close(slope, norm.dual(g / scale), rtol=1e-12, atol=0)


def test_single_precision_gradients_whose_squares_underflow_have_a_direction():
    g = moves(scale=1e-30).float()
    torch.testing.assert_close(
        CLIMBED["l2"].size(CLIMBED["l2"].steepest(g)), torch.ones(12).double(), rtol=0, atol=1e-6
    )


def nearest_in_l1(d: np.ndarray, radius: float) -> np.ndarray:
    """By bisection of the threshold instead of sorting."""
    low, high = 0.0, float(np.abs(d).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(np.abs(d) - middle, 0).sum() > radius else (low, middle)
    return d if np.abs(d).sum() <= radius else np.sign(d) * np.maximum(np.abs(d) - high, 0)


NEAREST = {
    "linf": lambda d, r: np.clip(d, -r, r),
    "l2": lambda d, r: d * min(1.0, r / np.linalg.norm(d)),
    "l1": nearest_in_l1,
}


@pytest.mark.parametrize("name", NORMS)
def test_moves_shrink_to_the_nearest_of_the_ball(name):
    d = moves()
    radii = NORMS[name].size(d) * torch.linspace(0.2, 1.3, 12, dtype=torch.float64)  # some lie inside
    found = NORMS[name].shrunk(d, radii[:, None, None, None])
    for row, move, radius in zip(found, d, radii, strict=True):
        np.testing.assert_allclose(row.numpy().ravel(), NEAREST[name](move.numpy().ravel(), float(radius)), atol=1e-12)
        torch.testing.assert_close(NORMS[name].shrunk(move[None], float(radius))[0], row, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NORMS)
def test_projected_images_lie_in_ball_and_box_and_admissible_ones_stay_bit_for_bit(name, dtype):
    norm, x = NORMS[name], images(400, dtype)
    radius = 0.3 * float(norm.size(torch.ones(1, *SHAPE)))
    found = norm.project(x + moves(400, 0.8, "far").to(dtype), x, radius)
    slack = 1e-14 if dtype == torch.float64 else float(norm.size(torch.full((1, *SHAPE), 1e-7)))
    assert norm.size(found - x).max() <= radius + slack
    assert (found.min(), found.max()) == (0, 1)
    near = (x + (found - x) / 2).clamp(0, 1)
    assert torch.equal(norm.project(near, x, radius), near)
    other = x.flip(0)  # x + (other - x) rounds to neighbours of other
    assert torch.equal(norm.project(other, x, 4 * radius), other)


# ---------------------------------------------------------------------------------------------------------
# Starts
# ---------------------------------------------------------------------------------------------------------


def test_starts_are_uniform_in_the_l2_ball():
    """Radii^D are U(0,1) and every axis has mean 0 and variance 1/(D+2), as uniform balls have."""
    d, n = 5, 40_000
    draws = CLIMBED["l2"].uniform((n, d), generator("uniform"))
    shares = draws.norm(dim=1).pow(d).sort().values
    steps = torch.arange(1, n + 1) / n
    assert (shares - steps).abs().max() < 1.63 / math.sqrt(n)  # Kolmogorov-Smirnov, 1 %
    assert draws.mean(0).abs().max() < 4 / math.sqrt(n * (d + 2))
    torch.testing.assert_close(draws.T.cov(), torch.eye(d).double() / (d + 2), rtol=0, atol=0.004)


@pytest.mark.parametrize("name", CLIMBED)
def test_starts_depend_on_the_example_and_not_on_its_batch(name):
    x, index = images(6), torch.tensor([5, 9, 2, 100, 7, 1])
    whole = CLIMBED[name].noise(x, index, 0, "pgd", 3)
    assert torch.equal(whole[2:4], CLIMBED[name].noise(x[2:4], index[2:4], 0, "pgd", 3))
    assert not torch.equal(whole, CLIMBED[name].noise(x, index, 1, "pgd", 3))
    assert CLIMBED[name].size(whole).max() <= 1


def test_linf_starts_are_the_draws_of_earlier_versions_bit_for_bit():
    x, index = images(6, torch.float32), torch.arange(6)
    assert torch.equal(CLIMBED["linf"].noise(x, index, 0, "pgd", 1), per_example_uniform(x, index, 0, "pgd", 1))
    drawn = CLIMBED["linf"].noise_like(x, generator("a"))
    assert torch.equal(drawn, uniform_like(x, generator("a")))


class Noting(nn.Module):
    """Keeps the images of its first pass of a whole batch; a network is tried on one image before."""

    first: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.network = net()

    def forward(self, x: Tensor) -> Tensor:
        self.first = x.detach().clone() if self.first is None and len(x) > 1 else self.first
        return self.network(x)


def test_attacks_under_l2_start_inside_the_ball_at_its_uniform_draws():
    """Draws of the cube around would be projected to the border."""
    examples, epsilon = inner_images(), 0.15
    model = Noting()
    attack = TrainingAttack(
        epsilon=epsilon, step=0.1, steps=1, start="uniform", bn="eval", source=generator("attack"), norm="l2"
    )
    attack(model, examples.x, cross_entropy(examples.y))
    expected = examples.x + epsilon * CLIMBED["l2"].noise_like(examples.x, generator("attack"))
    torch.testing.assert_close(model.first, expected, rtol=0, atol=1e-12)
    (start,) = PGD(PGDParams(), Threat(epsilon, "l2"))._starts(examples, 3)
    assert torch.equal(start, examples.x + epsilon * CLIMBED["l2"].noise(examples.x, examples.index, 3, "pgd", 0))
    assert CLIMBED["l2"].size(start - examples.x).min() < 0.995 * epsilon


# ---------------------------------------------------------------------------------------------------------
# Attacks on a linear classifier
# ---------------------------------------------------------------------------------------------------------


def linear(classes: int = 2) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), classes)).double().eval()


def inner_images(count: int = 9) -> Examples:
    """Images so far from 0 and 1 that a small ball does not touch the box."""
    x = 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=generator("inner"), dtype=torch.float64)
    return Examples(x, torch.arange(count) % 2, torch.arange(count))


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
@pytest.mark.parametrize("name", CLIMBED)
def test_the_margin_of_a_linear_classifier_falls_by_epsilon_times_the_dual_norm(name, attack):
    model, examples, epsilon = linear(), inner_images(), 0.1
    threat = Threat(epsilon, name)
    build = (
        PGD(PGDParams(steps=5, loss="margin", init="zero"), threat) if attack == "pgd" else FGSM(FGSMParams(), threat)
    )
    x_adv = build.perturb(model, examples, 0)
    losses = margin(examples.y)
    w = (model[1].weight[0] - model[1].weight[1]).detach()[None]
    rise = (losses(model(x_adv)) - losses(model(examples.x))).detach()
    expected = epsilon * float(NORMS[name].dual(w))
    np.testing.assert_allclose(rise.numpy(), expected, rtol=1e-10)
    assert NORMS[name].size(x_adv - examples.x).max() <= epsilon + 1e-12


def test_default_steps_are_a_quarter_of_epsilon_or_two_and_a_half_epsilon_over_steps():
    assert PGD(PGDParams(steps=10), Threat(0.4)).step == 0.1
    assert PGD(PGDParams(steps=10), Threat(0.4, "l2")).step == pytest.approx(0.1)
    assert PGD(PGDParams(steps=20), Threat(0.4, "l2")).step == pytest.approx(0.05)
    assert PGD(PGDParams(steps=20, step=0.3), Threat(0.4, "l2")).step == 0.3


def test_the_margin_of_probabilities_is_its_formula_and_pgd_climbs_it():
    logits, y = torch.randn(20, 5, generator=generator("logits"), dtype=torch.float64), torch.arange(20) % 5
    p = logits.softmax(1).numpy()
    expected = [max(row[k] for k in range(5) if k != label) - row[label] for row, label in zip(p, y, strict=True)]
    np.testing.assert_allclose(probability_margin(y)(logits).numpy(), expected, rtol=1e-13)
    model, examples = linear(), inner_images()
    found = PGD(PGDParams(steps=5, loss="probability-margin"), Threat(0.1)).maximise(model, examples, 0)
    with torch.no_grad():
        torch.testing.assert_close(found.loss, probability_margin(examples.y)(model(found.x)))
    assert (found.loss > probability_margin(examples.y)(model(examples.x))).all()


# ---------------------------------------------------------------------------------------------------------
# Against loops and other libraries
# ---------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)]
        return nn.Sequential(*layers).double().eval()


def labelled(count: int = 16) -> Examples:
    x = images(count)
    with torch.no_grad():
        return Examples(x, net()(x).argmax(1), torch.arange(count))


def always(logits: Tensor) -> Tensor:
    return torch.ones(len(logits), dtype=torch.bool)


def last_iterates(model: nn.Module, examples: Examples, start: Tensor, epsilon: float, steps: int) -> Tensor:
    """The engine's last iterates: with a rule of who moves, the last one counts instead of the best."""
    sizes = {"epsilon": epsilon, "step": epsilon / 5, "steps": steps, "norm": "l2", "moving": lambda: always}
    with attacked(model):
        return ascend(model, examples.x, start, cross_entropy(examples.y), **sizes).x


def test_l2_ascent_is_the_loop_of_its_formula():
    model, examples, epsilon, steps = net(), labelled(), 0.9, 12
    x = examples.x.numpy()
    start = examples.x + epsilon * CLIMBED["l2"].noise(examples.x, examples.index, 0, "start")

    def admissible(image: np.ndarray, centre: np.ndarray) -> np.ndarray:
        length = math.sqrt(((image - centre) ** 2).sum())
        return np.clip(image if length <= epsilon else centre + (image - centre) * epsilon / length, 0, 1)

    for row in range(len(x)):
        current = admissible(start[row].numpy(), x[row])
        for _ in range(steps):
            variable = torch.tensor(current[None], requires_grad=True)
            nn.functional.cross_entropy(model(variable), examples.y[row : row + 1]).backward()
            g = variable.grad[0].numpy()
            current = admissible(current + epsilon / 5 * g / math.sqrt((g**2).sum()), x[row])
        found = last_iterates(model, examples, start, epsilon, steps)[row]
        np.testing.assert_allclose(found.numpy(), current, rtol=0, atol=1e-10)


def test_l2_ascent_is_foolboxs_from_the_same_starts():
    foolbox = pytest.importorskip("foolbox")
    model, examples, epsilon = net(), labelled(), 0.9
    start = examples.x + epsilon * CLIMBED["l2"].noise(examples.x, examples.index, 0, "start")

    class Started(foolbox.attacks.L2ProjectedGradientDescentAttack):
        def get_random_start(self, x0, epsilon):
            return type(x0)(CLIMBED["l2"].project(start, examples.x, epsilon))

    theirs = Started(abs_stepsize=epsilon / 5, steps=15)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(wrapped, examples.x, foolbox.criteria.Misclassification(examples.y), epsilons=epsilon)
    found = last_iterates(model, examples, start, epsilon, 15)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (CLIMBED["l2"].size(found - examples.x) > 0.99 * epsilon).any()


@pytest.mark.parametrize(("name", "epsilon"), [("l2", 0.35), ("l1", 1.5)])
def test_autoattack_is_the_authors_own_under_other_norms(name, epsilon):
    model, examples = net().float(), labelled(24)
    x, threat = examples.x.float(), Threat(epsilon, name)
    examples = Examples(x, model(x).argmax(1), examples.index)
    ours = AutoAttack(AutoAttackParams(version="apgd", fast=False), threat).run(model, examples, Workspace())
    with torch.random.fork_rng(devices=[]):
        suite = pyautoattack.AutoAttack(model, norm=THEIRS[name], eps=epsilon, seed=0, device="cpu")
        suite.attacks_to_run, suite.verbose = ["apgd-ce", "apgd-t"], False
        theirs, _ = suite.run_standard_evaluation(x, examples.y, batch_size=250)
    broken, expected = (model(images).argmax(1) != examples.y for images in (ours, theirs))
    assert torch.equal(broken, expected)
    assert torch.equal(ours[broken], theirs[broken])
    assert 0 < broken.sum() < 24
    assert NORMS[name].size(ours - x).max() <= epsilon + float(NORMS[name].size(torch.full((1, *SHAPE), 1e-6)))
    quick = AutoAttack(AutoAttackParams(version="apgd", fast=True), threat)
    fast = quick.run(model, examples, replace(Workspace(), errors_only=True))
    assert torch.equal(model(fast).argmax(1) != examples.y, expected)
    assert NORMS[name].size(fast - x).max() <= epsilon + float(NORMS[name].size(torch.full((1, *SHAPE), 1e-6)))


@pytest.mark.parametrize("start", ["uniform", "normal", "zero"])
def test_training_attacks_stay_in_the_l2_ball_and_use_all_of_it(start):
    model, examples = net(), labelled()
    attack = TrainingAttack(
        epsilon=0.5, step=0.2, steps=5, start=start, bn="eval", source=generator("attack"), norm="l2"
    )
    found = attack(model, examples.x, cross_entropy(examples.y))
    sizes = CLIMBED["l2"].size(found - examples.x)
    assert 0.45 < sizes.max() <= 0.5 + 1e-12
    shorter = attack.within(0.1)(model, examples.x, cross_entropy(examples.y))
    assert CLIMBED["l2"].size(shorter - examples.x).max() <= 0.1 + 1e-12


def test_images_that_rest_change_no_l2_result():
    """Zero gradients make images rest; a batch that shrinks keeps each image's own ball and step."""
    model, examples = net(), labelled(24)
    with torch.no_grad():
        model[3].weight.mul_(3000)
        model[3].bias.mul_(3000)
    radius = torch.linspace(0.05, 0.4, 24, dtype=torch.float64)[:, None, None, None]
    sizes = {"epsilon": radius, "step": radius / 4, "steps": 40, "norm": "l2"}
    with attacked(model):
        found = [
            ascend(model, examples.x, examples.x, cross_entropy(examples.y), **sizes, rest=r) for r in (False, True)
        ]
    assert torch.equal(found[0].x, found[1].x)
    assert torch.equal(found[0].loss, found[1].loss)
