"""Worst-case ascent in weight space: closed forms, grids, naive loops, invariances, resumption."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import highest_in_ball
from helpers.naive import digits
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.backbones.parts import initialize
from robflat_bench.backbones.resnet import ResNet8Params, resnet8
from robflat_bench.core import Examples, ImageShape, Journal, Measurement, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.ascent import BALLS, LossOverWeights, auto_pgd, checkpoints
from robflat_bench.measures.oracle import Oracle, given_images
from robflat_bench.measures.shared import OracleParams
from robflat_bench.measures.sharpness.adaptive_worst import AdaptiveWorst, AdaptiveWorstParams
from robflat_bench.measures.sharpness.keskar import Keskar, KeskarParams
from robflat_bench.measures.sharpness.m_sharpness import MSharpness, MSharpnessParams
from robflat_bench.measures.sharpness.pac_bayes_sharpness import PacBayesSharpness, PacBayesSharpnessParams
from robflat_bench.measures.sharpness.sam_sharpness import SamSharpness, SamSharpnessParams
from robflat_bench.records.journal import StoredJournal

THREAT = Threat(0.1)
PARAMS: dict[type, type] = {
    SamSharpness: SamSharpnessParams,
    MSharpness: MSharpnessParams,
    AdaptiveWorst: AdaptiveWorstParams,
    Keskar: KeskarParams,
    PacBayesSharpness: PacBayesSharpnessParams,
}
WORST = [MSharpness, AdaptiveWorst, Keskar]

pytestmark = pytest.mark.usefixtures("one_thread")


def run(measure: type, model: nn.Module, examples: Examples, batch: int = 100, **params: Any) -> Measurement:
    """Clean and in one memory batch, unless told otherwise."""
    chosen = PARAMS[measure](**{"coupling": "clean", "steps": 3, **params})
    return measure(chosen, THREAT).measure(model, examples, Workspace(batch=batch, seed=5))


# ---------------------------------------------------------------------------------------------------------
# Models and examples
# ---------------------------------------------------------------------------------------------------------


class Known(nn.Module):
    """A network of a few weights whose cross-entropy for label 0 is 3 + mean(x) f(w), exactly.

    Logits (-log(e^q - 1), 0) have the cross-entropy log(1 + e^q - 1) = q.
    """

    def __init__(self, w: list[float], f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor(w[:1], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor(w[1:], dtype=torch.float64))
        self.f = f

    @property
    def w(self) -> Tensor:
        return torch.cat([self.first, self.second])

    def forward(self, x: Tensor) -> Tensor:
        q = 3 + x.flatten(1).mean(1) * self.f(self.w)
        return torch.stack([-torch.log(torch.expm1(q)), torch.zeros_like(q)], 1)


def grey(count: int = 6) -> Examples:
    x = 0.2 + 0.6 * torch.rand(count, 1, 2, 2, generator=generator("grey"), dtype=torch.float64)
    return Examples(x, torch.zeros(count, dtype=torch.int64), torch.arange(count))


G = torch.tensor([0.7, -0.2, 0.4, 0.05], dtype=torch.float64)
A = torch.tensor([[0.9, 0.1, 0.0, 0.3], [0.1, 0.4, -0.5, 0.2], [0.0, -0.5, 0.8, 0.1], [0.3, 0.2, 0.1, 0.6]]).double()
H = A @ A.T
W = [0.5, -1.2, 0.3, 2.0]
CENTRE = torch.tensor(W, dtype=torch.float64)


def linear(w: Tensor) -> Tensor:
    return G @ (w - CENTRE)


def bowl(w: Tensor) -> Tensor:
    return (w - CENTRE) @ H @ (w - CENTRE) / 2


def slope(w: Tensor) -> Tensor:
    return linear(w) + bowl(w)


def mlp(seed: int = 3) -> nn.Sequential:
    """Images [B,1,3,3] -> 3 logits, float64, no normalisation: 9 -> 6 -> 3 with biases."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator(seed, name), dtype=torch.float64))
    return net


def squares(count: int = 13) -> Examples:
    """Most as `mlp` labels them, every fifth not."""
    x = torch.rand(count, 1, 3, 3, generator=generator("squares"), dtype=torch.float64)
    y, index = mlp()(x).argmax(1), torch.arange(count)
    return Examples(x, torch.where(index % 5 == 4, (y + 1) % 3, y), 50 + index)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """resnet8(width=4), float32, trained for a few epochs on 300 digits; look, do not touch."""
    model = resnet8(ResNet8Params(width=4), ImageShape(1, 8, 10, (0.3,), (0.37,)), "relu")
    initialize(model, generator(1, "init"))
    examples = digits(0, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for epoch in range(4):
        for rows in torch.randperm(300, generator=generator("order", epoch)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(examples.x[rows]), examples.y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    model.eval()
    assert (model(examples.x).argmax(1) == examples.y).double().mean() > 0.7
    return model


# ---------------------------------------------------------------------------------------------------------
# Closed forms and grids
# ---------------------------------------------------------------------------------------------------------


def test_sam_sharpness_is_the_rise_after_one_step():
    examples, rho = grey(), 0.3
    found = run(SamSharpness, Known(W, slope), examples, rho=rho)
    nu = rho * G / G.norm()
    per_example = examples.x.flatten(1).mean(1) * (G @ nu + nu @ H @ nu / 2)
    assert found.arrays["per_example"] == pytest.approx(per_example.numpy(), rel=1e-9)
    assert found.value == pytest.approx(float(per_example.mean()), rel=1e-9)
    assert found.standard_error == pytest.approx(float(per_example.std()) / math.sqrt(6), rel=1e-9)
    assert found.details["gradient_norm"] == pytest.approx(float(examples.x.mean() * G.norm()), rel=1e-9)
    downhill = run(SamSharpness, Known(W, lambda w: linear(w) - 40 * bowl(w)), examples, rho=rho)
    assert downhill.value < 0, "one step may overshoot"


@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.25)])
def test_adaptive_worst_of_a_linear_loss_equals_its_closed_form(adaptive, eta):
    """rho ||c g||_2 in an ellipsoid, rho sum c_i |g_i| in a box; a weight that is 0 does not move where c = |w|."""
    w = [0.5, -1.2, 0.0, 2.0]
    model, examples = Known(w, lambda w: 0.4 + G @ w), grey()
    c = torch.tensor(w, dtype=torch.float64).abs() + eta if adaptive else torch.ones(4).double()
    for ball, rise in (("l2", (c * G).norm()), ("linf", (c * G).abs().sum())):
        found = run(AdaptiveWorst, model, examples, rho=0.2, ball=ball, adaptive=adaptive, eta=eta)
        assert found.value == pytest.approx(0.2 * float(rise * examples.x.mean()), rel=1e-9)
        assert found.details["residual"] == pytest.approx(0, abs=1e-9)


def test_keskar_of_a_linear_loss_equals_its_closed_form():
    model, examples = Known(W, lambda w: 10 * linear(w)), grey()
    found = run(Keskar, model, examples, epsilon=0.01)
    rise = float(examples.x.mean()) * 0.01 * float(((CENTRE.abs() + 1) * 10 * G.abs()).sum())
    assert found.value == pytest.approx(100 * rise / (1 + 3), rel=1e-9)
    assert found.arrays["per_example"].mean() == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.25)])
def test_adaptive_worst_of_a_quadratic_reaches_the_maximum_of_its_ellipsoid(adaptive, eta):
    c = CENTRE.abs() + eta if adaptive else torch.ones(4).double()
    expected = highest_in_ball(c * G, c[:, None] * H * c, 0.6) * float(grey().x.mean())
    found = run(AdaptiveWorst, Known(W, slope), grey(), rho=0.6, adaptive=adaptive, eta=eta, iterations=60)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.value <= expected * (1 + 1e-12)


def test_m_sharpness_of_a_quadratic_reaches_the_maximum_of_each_batch():
    """Batches of two, of which every one has the same maximiser, and its own mean grey."""
    examples = grey(7)
    found = run(MSharpness, Known(W, slope), examples, rho=0.6, m=2, iterations=200)
    greys = examples.x.flatten(1).mean(1)[:6].view(3, 2).mean(1)
    expected = highest_in_ball(G, H, 0.6) * greys
    assert found.arrays["per_batch"] == pytest.approx(expected.numpy(), rel=1e-3)
    assert found.value == pytest.approx(float(expected.mean()), rel=1e-3)
    assert found.standard_error == pytest.approx(float(expected.std()) / math.sqrt(3), rel=1e-3)
    assert found.n == 6, "the seventh example fills no batch"
    assert found.details["batches"] == 3


def wavy(w: Tensor) -> Tensor:
    """Not convex, not symmetric; takes rows of weights, too."""
    a, b = w[..., 0], w[..., 1]
    return torch.sin(3 * a + 0.4) + 0.6 * torch.cos(4 * b) + 0.5 * a * b


def grid(half: tuple[float, float], ball: str) -> Tensor:
    side = torch.linspace(-1, 1, 801, dtype=torch.float64)
    z = torch.cartesian_prod(side, side)
    z = z[z.norm(dim=1) <= 1] if ball == "l2" else z
    return z * torch.tensor(half, dtype=torch.float64)


@pytest.mark.parametrize("ball", ["l2", "linf"])
@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_adaptive_worst_of_two_weights_reaches_the_maximum_of_a_grid(ball, rho):
    w = torch.tensor([0.8, -1.1], dtype=torch.float64)
    half = (rho * 0.9, rho * 1.2)
    expected = float((wavy(w + grid(half, ball)) - wavy(w)).max() * grey().x.mean())
    found = run(AdaptiveWorst, Known([0.8, -1.1], wavy), grey(), rho=rho, ball=ball, eta=0.1, iterations=40, starts=6)
    assert found.value == pytest.approx(expected, rel=1e-3)


def test_keskar_of_two_weights_reaches_the_maximum_of_a_grid():
    w = torch.tensor([0.8, -1.1], dtype=torch.float64)
    rise = (wavy(w + grid((0.05 * 1.8, 0.05 * 2.1), "linf")) - wavy(w)).max() * grey().x.mean()
    found = run(Keskar, Known([0.8, -1.1], wavy), grey(), epsilon=0.05)
    level = 3 + float(grey().x.mean() * wavy(w))
    assert found.value == pytest.approx(float(100 * rise / (1 + level)), rel=1e-4)
    assert found.details["residual"] < 1e-3
    assert found.details["evaluations"] >= 2


def test_standard_error_of_keskar_equals_the_jackknife_of_a_ratio():
    """Against the jackknife at the same point of the box."""
    found = run(Keskar, mlp(), squares(60), epsilon=0.05)
    losses, reference = found.arrays["losses"], found.arrays["reference"]
    left_out = [np.delete(np.arange(60), i) for i in range(60)]
    values = [100 * (losses[r].mean() - reference[r].mean()) / (1 + reference[r].mean()) for r in left_out]
    assert found.standard_error == pytest.approx(math.sqrt(59**2 / 60 * np.var(values, ddof=1)), rel=0.02)


def test_random_starts_work_and_leave_a_point_without_gradient():
    """They find lambda_max rho^2 / 2, which the start at w cannot. (In one published code they raise a TypeError.)"""
    expected = 0.5 * 0.4**2 * float(torch.linalg.eigvalsh(H)[-1]) * float(grey().x.mean())
    model = Known(W, bowl)
    from_w = run(AdaptiveWorst, model, grey(), rho=0.4, adaptive=False, iterations=80)
    assert from_w.value == 0
    assert run(SamSharpness, model, grey()).value == 0
    found = run(AdaptiveWorst, model, grey(), rho=0.4, adaptive=False, iterations=80, starts=3)
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.arrays["losses"].shape == (3, 6)
    assert found.details["spread_over_starts"] == pytest.approx(found.arrays["losses"].mean(1).std(ddof=1))
    assert found.details["spread_over_starts"] > 0
    box = run(AdaptiveWorst, model, grey(), rho=0.4, adaptive=False, ball="linf", iterations=80, starts=4)
    corners = torch.tensor(list(itertools.product([-0.4, 0.4], repeat=4))).double()
    highest = max(float(corner @ H @ corner) / 2 for corner in corners) * float(grey().x.mean())
    assert box.value == pytest.approx(highest, rel=1e-6)


@pytest.mark.parametrize("measure", WORST)
def test_worst_case_is_never_below_zero(measure):
    """On a peak every step goes down."""
    assert run(measure, Known(W, lambda w: -bowl(w)), grey()).value == 0
    lower = run(measure, Known(W, lambda w: 0.01 * linear(w) - 40 * bowl(w)), grey(), iterations=2)
    assert lower.value >= 0


# ---------------------------------------------------------------------------------------------------------
# Naive loops
# ---------------------------------------------------------------------------------------------------------


def naive_auto_pgd(f: Callable[[Tensor], Tensor], radii: Tensor, norm: float, steps: int) -> list[Tensor]:
    """Auto-PGD (Croce & Hein 2020, algorithm 1) from nu = 0, in nu itself; every iterate."""

    def gradient(nu: Tensor) -> Tensor:
        variable = nu.clone().requires_grad_()
        return torch.autograd.grad(f(variable), variable)[0]

    def step(nu: Tensor, size: float) -> Tensor:
        g = gradient(nu)
        if norm == 2:
            return nu + size * radii**2 * g / (radii * g).square().sum().sqrt()
        return nu + size * radii * g.sign()

    def project(nu: Tensor) -> Tensor:
        if norm == 2:
            length = (nu / radii).square().sum().sqrt()
            return nu / length if length > 1 else nu
        return torch.maximum(torch.minimum(nu, radii), -radii)

    p, moments = [0.0, 0.22], [0, math.ceil(0.22 * steps)]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        moments.append(math.ceil(round(p[-1] * steps, 9)))
    size = 2.0
    x = [torch.zeros_like(radii)]
    x.append(project(step(x[0], size)))
    values = [float(f(point)) for point in x]
    visited = list(x)
    top = max(range(2), key=lambda i: values[i])
    top_value, top_point = values[top], x[top]
    old_size, old_top, gains = size, values[0], int(values[1] > values[0])
    since = 0
    before, now, value = x[0], x[1], values[1]
    for k in range(1, steps + 1):
        if k in moments:
            few = gains < 0.75 * (k - since)
            stuck = old_size == size and old_top == top_value
            old_size, old_top = size, top_value
            if few or stuck:
                size /= 2
                before, now, value = top_point, top_point, top_value
            gains, since = 0, k
        if k == steps:
            break
        z = project(step(now, size))
        following = project(now + 0.75 * (z - now) + 0.25 * (now - before))
        before, now = now, following
        gains += float(f(now)) > value
        value = float(f(now))
        visited.append(now)
        if value > top_value:
            top_value, top_point = value, now
    return visited


@pytest.mark.parametrize("ball", ["l2", "linf"])
@pytest.mark.parametrize("steps", [20, 33, 50])
@pytest.mark.parametrize(("start", "radius"), [((0.8, -1.1), 0.7), ((-0.57, 0.93), 3.0), ((1.58, -0.74), 0.7)])
def test_auto_pgd_equals_the_naive_loop(ball, steps, start, radius):
    """On a function so rough that every reason to halve the step occurs."""
    model, examples = Known([*start], wavy), grey()
    w, radii = torch.tensor(start, dtype=torch.float64), torch.tensor([radius, 1.3 * radius], dtype=torch.float64)
    naive = naive_auto_pgd(lambda nu: wavy(w + nu), radii, 2 if ball == "l2" else math.inf, steps)
    measure = AdaptiveWorst(AdaptiveWorstParams(coupling="clean"), THREAT)
    surface = LossOverWeights(model, *given_images(measure, model, examples, Workspace()))
    found = [point.nu for point in auto_pgd(surface, radii, BALLS[ball], steps, torch.zeros_like(w))]
    assert len(found) == len(naive) == steps + 1
    assert torch.allclose(torch.stack(found), torch.stack(naive), rtol=0, atol=1e-8)


def test_auto_pgd_reviews_its_step_size_at_the_published_steps():
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(20)) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert sorted(checkpoints(50))[0] == 11, "0.22 * 50 is 11, whatever floating point says"


def naive_ascent(model: nn.Module, examples: Examples, rho: float, iterations: int) -> Tensor:
    """Losses [n] at the highest iterate of the normalised projected ascent."""
    w = {name: p.detach().clone() for name, p in model.named_parameters()}
    nu = {name: torch.zeros_like(p) for name, p in w.items()}
    best = torch.full((len(examples),), -math.inf, dtype=torch.float64)
    for _ in range(iterations + 1):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(w[name] + nu[name])
        losses = F.cross_entropy(twin(examples.x), examples.y, reduction="none")
        losses.mean().backward()
        if losses.mean() > best.mean():
            best = losses.detach()
        gradients = {name: p.grad for name, p in twin.named_parameters()}
        length = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        nu = {name: nu[name] + 2.5 * rho / iterations * gradients[name] / length for name in nu}
        reached = math.sqrt(sum(float((v**2).sum()) for v in nu.values()))
        nu = {name: v * min(1, rho / reached) for name, v in nu.items()}
    return best


@pytest.mark.parametrize("m", [4, 6, 13, 100])
def test_m_sharpness_equals_the_naive_loop(m):
    model, examples = mlp(), squares()
    found = run(MSharpness, model, examples, m=m, rho=0.3, iterations=7)
    size = min(m, 13)
    rises = []
    for at in range(0, 13 - size + 1, size):
        part = examples[slice(at, at + size)]
        here = F.cross_entropy(model(part.x), part.y, reduction="none").detach()
        rises.append(naive_ascent(model, part, 0.3, 7) - here)
    assert found.arrays["per_example"] == pytest.approx(torch.cat(rises).numpy(), abs=1e-9)
    means = np.array([float(rise.mean()) for rise in rises])
    assert found.value == pytest.approx(means.mean(), abs=1e-9)
    if len(means) > 1:
        assert found.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(len(means)), abs=1e-9)
    else:
        assert found.standard_error is None
    assert (found.n, found.details["m"]) == (size * len(means), size)


def test_one_iteration_over_one_batch_is_sam_sharpness():
    for model, examples in ((mlp(), squares()), (Known(W, slope), grey())):
        m = len(examples)
        sam, whole = run(SamSharpness, model, examples), run(MSharpness, model, examples, m=m, iterations=1)
        assert whole.arrays["per_example"] == pytest.approx(sam.arrays["per_example"], abs=1e-12)
        assert whole.value == pytest.approx(sam.value, abs=1e-12) != 0


def test_smaller_batches_give_a_higher_m_sharpness():
    values = [run(MSharpness, mlp(), squares(12), m=m, rho=0.3).value for m in (12, 6, 3, 1)]
    assert values == sorted(values)
    assert values[-1] > 1.1 * values[0]


# ---------------------------------------------------------------------------------------------------------
# PAC-Bayesian sharpness
# ---------------------------------------------------------------------------------------------------------


class Halves(nn.Module):
    """Logits (w'x, 0): an example of label 0 is wrong once w'x < 0."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w
        return torch.stack([z, torch.zeros_like(z)], 1)


def two_groups() -> Examples:
    """Two of 25 on the first two pixels, the others on the last two: each group falls as one."""
    x = torch.tensor([[0.2, 0.6, 0.0, 0.0]] * 2 + [[0.0, 0.0, 0.5, 0.3]] * 23, dtype=torch.float64).view(25, 1, 2, 2)
    return Examples(x, torch.zeros(25, dtype=torch.int64), torch.arange(25))


WEIGHTS = [0.1, 0.05, 0.9, -0.4]


@pytest.mark.parametrize(("magnitude", "e"), [(False, 0.0), (True, 0.0), (True, 0.02)])
@pytest.mark.parametrize("target", [0.05, 0.1])
def test_pac_bayes_sharpness_of_a_linear_classifier(magnitude, e, target):
    """A group v falls at w'v / ||v||_1, or (w'v - e ||v||_1) / |w|'|v|; the small one is not 10 %, but over 5 %."""
    w, groups = torch.tensor(WEIGHTS, dtype=torch.float64), two_groups().x.flatten(1)[[0, -1]]
    falls = (groups @ w - e * groups.sum(1)) / (groups @ w.abs()) if magnitude else groups @ w / groups.sum(1)
    alpha = float(falls.min() if target < 0.08 else falls[1])
    found = run(PacBayesSharpness, Halves(WEIGHTS), two_groups(), target=target, magnitude=magnitude, e=e)
    low, width = found.details["alpha"], found.details["residual"]
    assert low <= alpha <= low + width
    assert 0 < width < 0.01 * alpha
    assert found.value == pytest.approx(1 / low**2)
    assert found.standard_error is None
    assert found.details["saturated"] == 0 == found.details["error"]
    trials = dict(zip(found.arrays["alphas"], found.arrays["rises"], strict=True))
    assert all((rise <= target) == (trial <= low) for trial, rise in trials.items())


def test_pac_bayes_sharpness_says_where_its_scale_ends():
    model, examples = Halves(WEIGHTS), two_groups()
    over = run(PacBayesSharpness, model, examples, largest=0.1)
    assert (over.details["saturated"], over.details["alpha"], over.value) == (1, 0.1, pytest.approx(100))
    under = run(PacBayesSharpness, model, examples, largest=1e7)
    assert under.details["saturated"] == -1
    assert under.details["alpha"] == pytest.approx(1e7 * 4.0**-10)
    wrong = Examples(examples.x, 1 - examples.y, examples.index)
    full = run(PacBayesSharpness, model, wrong)
    assert (full.details["error"], full.details["saturated"]) == (1, 1), "nothing is left to go wrong"


def test_pac_bayes_sharpness_counts_robust_errors_where_frozen():
    """The attack takes w'x down by epsilon |w|'1, and w moves from there."""
    model, examples, w = Halves(WEIGHTS), two_groups(), torch.tensor(WEIGHTS, dtype=torch.float64)
    found = run(PacBayesSharpness, model, examples, coupling="frozen", steps=20)
    attacked = (examples.x.flatten(1) - 0.1 * w.sign()).clamp(0, 1)
    assert found.details["error"] == float((attacked @ w < 0).double().mean()) == 0.08
    assert found.arrays["rises"].min() == 0, "the errors at w are no rise"
    v = attacked[-1]
    alpha = float(w @ v / v.sum())
    assert found.details["alpha"] <= alpha <= found.details["alpha"] + found.details["residual"]


# ---------------------------------------------------------------------------------------------------------
# Invariances
# ---------------------------------------------------------------------------------------------------------


def neurons_rescaled(model: nn.Sequential) -> nn.Sequential:
    """The same function: each hidden neuron by a, its readers by 1/a."""
    model = copy.deepcopy(model)
    a = torch.tensor([0.1, 0.5, 1.0, 3.0, 7.0, 20.0], dtype=torch.float64)
    with torch.no_grad():
        model[1].weight *= a[:, None]
        model[1].bias *= a
        model[3].weight /= a
    return model


@pytest.mark.parametrize("coupling", ["clean", "frozen"])
def test_adaptive_measures_do_not_see_rescaled_neurons(coupling):
    model, examples = mlp(), squares()
    other = neurons_rescaled(model)
    for ball, rho in (("l2", 0.5), ("linf", 0.1)):
        same = [
            run(AdaptiveWorst, net, examples, ball=ball, rho=rho, starts=2, coupling=coupling) for net in (model, other)
        ]
        assert same[0].value > 0.05
        assert same[1].value == pytest.approx(same[0].value, rel=1e-6)
        assert same[1].arrays["losses"] == pytest.approx(same[0].arrays["losses"], rel=1e-6)
        for changed in ({"adaptive": False}, {"eta": 0.1}):
            seen = [run(AdaptiveWorst, net, examples, ball=ball, rho=rho, **changed).value for net in (model, other)]
            assert seen[1] != pytest.approx(seen[0], rel=0.01)
    for e, invariant in ((0.0, True), (0.05, False)):
        alphas = [
            run(PacBayesSharpness, net, examples, magnitude=True, e=e, coupling=coupling, iterations=8).details["alpha"]
            for net in (model, other)
        ]
        assert (alphas[0] == pytest.approx(alphas[1], rel=1e-9)) == invariant


class Normalised(nn.Module):
    """A convolution, batch normalisation and a head that is no weight: only the convolution moves."""

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        source = generator("normalised")
        self.conv = nn.Conv2d(1, 4, 2, bias=False).double()
        self.norm = nn.BatchNorm2d(4, eps=1e-5 * c**2).double()
        self.register_buffer("head", torch.randn(16, 3, generator=source, dtype=torch.float64))
        with torch.no_grad():
            self.conv.weight.copy_(c * torch.randn(4, 1, 2, 2, generator=source, dtype=torch.float64))
            self.norm.running_mean.copy_(c * 0.2 * torch.ones(4))
            self.norm.running_var.copy_(c**2 * 0.5 * torch.ones(4))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x))).flatten(1) @ self.head


def test_scaling_undone_by_normalisation_moves_the_absolute_measures_by_their_powers():
    model, scaled, examples = Normalised(), Normalised(4.0), squares()
    assert torch.allclose(model(examples.x), scaled(examples.x), rtol=0, atol=1e-12)
    for measure in (SamSharpness, MSharpness):
        values = [run(measure, net, examples, rho=rho).value for net, rho in ((model, 0.05), (scaled, 0.2))]
        assert values[0] == pytest.approx(values[1], rel=1e-9)
        assert run(measure, scaled, examples, rho=0.05).value < 0.5 * values[0]
    values = [
        run(AdaptiveWorst, net, examples, adaptive=False, rho=rho).value for net, rho in ((model, 0.1), (scaled, 0.4))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    values = [run(AdaptiveWorst, net, examples).value for net in (model, scaled)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    powers = [
        run(PacBayesSharpness, net, examples, largest=largest, bisections=3).value
        for net, largest in ((model, 2.0), (scaled, 8.0))
    ]
    assert powers[0] == pytest.approx(16 * powers[1], rel=1e-9)


def test_normalised_logits_make_the_adaptive_measure_blind_to_their_scale():
    model, examples = mlp(), squares()
    louder = copy.deepcopy(model)
    with torch.no_grad():
        louder[3].weight *= 3
        louder[3].bias *= 3
    found = {
        logits: [run(AdaptiveWorst, net, examples, logits=logits).value for net in (model, louder)]
        for logits in ("plain", "normalised")
    }
    assert found["normalised"][0] == pytest.approx(found["normalised"][1], rel=1e-9) != 0
    assert found["plain"][0] != pytest.approx(found["plain"][1], rel=0.1)


# ---------------------------------------------------------------------------------------------------------
# On a trained network
# ---------------------------------------------------------------------------------------------------------


SMALL: dict[type, dict[str, Any]] = {
    SamSharpness: {},
    MSharpness: {"m": 20, "iterations": 4},
    AdaptiveWorst: {"iterations": 6, "starts": 2},
    Keskar: {"iterations": 4},
    PacBayesSharpness: {"iterations": 2, "bisections": 2},
}


@pytest.mark.parametrize("coupling", ["clean", "frozen"])
@pytest.mark.parametrize("ball", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_no_random_draw_of_the_ball_is_higher_than_the_worst_case(trained, coupling, ball, adaptive):
    examples = digits(1000, 1040)
    rho = {"l2": 0.5, "linf": 0.01}[ball]
    found = run(AdaptiveWorst, trained, examples, coupling=coupling, ball=ball, adaptive=adaptive, rho=rho)
    measure = AdaptiveWorst(AdaptiveWorstParams(coupling=coupling, steps=3), THREAT)
    _, images = given_images(measure, trained, examples, Workspace(seed=5))
    weights = {n: p for n, p in trained.named_parameters() if p.ndim > 1 or "norm" not in n}
    rises = []
    for draw in range(25):
        raw = {n: torch.randn(p.shape, generator=generator(draw, n)) for n, p in weights.items()}
        length = math.sqrt(sum(float(z.square().sum()) for z in raw.values()))
        twin = copy.deepcopy(trained)
        with torch.no_grad():
            for name, p in twin.named_parameters():
                if name in raw:
                    z = raw[name] / length if ball == "l2" else raw[name].sign()
                    p += rho * z * (p.abs() if adaptive else 1)
            rises.append(float(F.cross_entropy(twin(images.x), images.y)))
    assert max(rises) - found.arrays["reference"].mean() < found.value
    assert np.mean(rises) - found.arrays["reference"].mean() < 0.5 * found.value


def test_m_sharpness_is_at_least_one_step_and_the_ball_holds_it(trained):
    examples = digits(1000, 1040)
    single, climb = run(SamSharpness, trained, examples), run(MSharpness, trained, examples, m=40)
    assert 0 < single.value <= climb.value
    worst = run(AdaptiveWorst, trained, examples, adaptive=False, rho=0.05)
    assert worst.value == pytest.approx(climb.value, rel=0.01), "two climbs of one ball"
    assert climb.details["residual"] < 0.02 * climb.value


@pytest.mark.parametrize("measure", [SamSharpness, *WORST])
def test_frozen_and_clean_differ_and_details_add_up(trained, measure):
    examples = digits(1000, 1040)
    clean, frozen = (run(measure, trained, examples, coupling=c, **SMALL[measure]) for c in ("clean", "frozen"))
    assert abs(clean.value - frozen.value) > 0.05 * clean.value
    for found in (clean, frozen):
        assert found.arrays["per_example"].mean() == pytest.approx(found.value, rel=1e-9)
        assert found.n == 40
        assert found.standard_error > 0
        if measure is not SamSharpness:
            assert found.value > 0
            assert found.details["residual"] >= 0


@pytest.mark.parametrize("measure", PARAMS)
def test_memory_batches_change_no_value(trained, measure):
    examples, params = digits(1000, 1070), {**SMALL[measure], "coupling": "frozen"}
    found = [run(measure, trained, examples, batch, **params).value for batch in (32, 100)]
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-6)
    assert found[0] != 0


def test_the_ascent_takes_its_images_in_parts(monkeypatch):
    whole = run(AdaptiveWorst, mlp(), squares()).arrays["per_example"]
    errors = run(PacBayesSharpness, mlp(), squares(), bisections=1, iterations=3).arrays["rises"]
    monkeypatch.setattr("robflat_bench.measures.oracle.CHUNK", 4)
    monkeypatch.setattr("robflat_bench.measures.ascent.CHUNK", 4)
    assert run(AdaptiveWorst, mlp(), squares()).arrays["per_example"] == pytest.approx(whole, abs=1e-10)
    assert np.array_equal(run(PacBayesSharpness, mlp(), squares(), bisections=1, iterations=3).arrays["rises"], errors)


class Dying(Journal):
    """Hands work on to a stored journal, and dies when asked for one more unit than it may compute."""

    def __init__(self, stored: Journal, lives: list[float]) -> None:
        self.stored, self.lives = stored, lives

    def unit(self, name, compute):
        def mortal():
            if self.lives[0] == 0:
                raise InterruptedError(name)
            self.lives[0] -= 1
            return compute()

        return self.stored.unit(name, mortal)

    def section(self, name):
        return Dying(self.stored.section(name), self.lives)


@pytest.mark.parametrize("measure", PARAMS)
def test_measures_resume_bit_for_bit(measure, tmp_path):
    params = {**SMALL[measure], **({"m": 3} if measure is MSharpness else {})}
    instance = measure(PARAMS[measure](steps=2, **params), THREAT)
    model, examples = mlp(), squares()
    plain = instance.measure(model, examples, Workspace(batch=5))
    lives = [math.inf]
    whole = instance.measure(model, examples, Workspace(5, 0, Dying(StoredJournal(tmp_path / "whole"), lives)))
    assert whole.value == plain.value
    folder, deaths = tmp_path / "parts", 0
    while True:
        try:
            found = instance.measure(model, examples, Workspace(5, 0, Dying(StoredJournal(folder), [1])))
            break
        except InterruptedError:
            deaths += 1
    assert deaths >= 3
    assert (found.value, found.standard_error, found.details) == (plain.value, plain.standard_error, plain.details)
    assert all(np.array_equal(found.arrays[name], array) for name, array in plain.arrays.items())


def test_an_ascent_into_infinite_losses_still_gives_a_finite_value():
    """The highest finite iterate counts."""
    model = Known(W, lambda w: torch.exp(400 * (w[0] - 0.5)) - 1)
    for measure in WORST:
        found = run(measure, model, grey(), **({"epsilon": 5.0} if measure is Keskar else {"rho": 5.0}))
        assert math.isfinite(found.value)


def test_logits_of_nan_predict_no_class():
    """`argmax` takes NaN for the highest: here the label's."""
    model = Known(W, lambda w: -1000 * w[0])
    examples = grey()
    assert model(examples.x)[:, 0].isnan().all()
    surface = LossOverWeights(model, Oracle(THREAT, OracleParams(coupling="clean")), examples)
    assert surface.origin().wrong.all()
