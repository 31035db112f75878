"""Measures under an l2 threat: closed forms on linear classifiers, dual norms, and the ball that images stay in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.norms import NORMS
from robflat_bench.core import Examples, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.oracle import Oracle
from robflat_bench.measures.shared import OracleParams
from robflat_bench.registry.components import resolve

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = 0.15
L2 = Threat(EPSILON, "l2")


class Linear(nn.Module):
    """Images -> W x with two classes; no bias, so that one layer holds all weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(weight.shape[1], 2, bias=False, dtype=torch.float64)
        self.head.weight.data.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def linear() -> Linear:
    return Linear(torch.randn(2, 16, generator=generator("weight"), dtype=torch.float64)).eval()


def inner_images(count: int = 10) -> Examples:
    """Images that a ball of radius 0.15 does not move to an end of the box."""
    x = 0.4 + 0.2 * torch.rand(count, 1, 4, 4, generator=generator("inner"), dtype=torch.float64)
    return Examples(x, torch.arange(count) % 2, torch.arange(count))


def measured(registry, text: str, model: nn.Module, examples: Examples, threat: Threat = L2):
    component = resolve(registry, "measure", text)
    assert threat.norm in component.params.norms
    return component.build(threat).measure(model, examples, Workspace(batch=100, seed=5))


def robust_losses(model: Linear, examples: Examples, norm: str) -> np.ndarray:
    """log(1 + exp(-(margin - eps ||w_y - w_k||_dual))), exactly."""
    weight = model.head.weight.detach()
    v = torch.where(examples.y[:, None] == 0, weight[0] - weight[1], weight[1] - weight[0])
    margins = (v * examples.x.flatten(1)).sum(1) - EPSILON * NORMS[norm].dual(v)
    return F.softplus(-margins).numpy()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("coupling", ["frozen", "reattack"])
def test_the_oracle_reads_the_robust_loss_of_a_linear_classifier(norm, coupling):
    model, examples = linear(), inner_images()
    oracle = Oracle(Threat(EPSILON, norm), OracleParams(coupling=coupling, steps=15, step=1.0))
    oracle.freeze(model, examples, Workspace())
    np.testing.assert_allclose(
        oracle.losses(model, examples, Workspace()), robust_losses(model, examples, norm), rtol=1e-10
    )
    with torch.no_grad():
        model.head.weight.mul_(-1.5)
    moved = robust_losses(model, examples, norm)
    found = oracle.losses(model, examples, Workspace()).numpy()
    if coupling == "reattack":
        np.testing.assert_allclose(found, moved, rtol=1e-10)
    else:
        assert (found < moved - 1e-3).all()  # the images were found at other weights


def test_short_attacks_have_twice_the_default_l2_step():
    oracle = Oracle(L2, OracleParams(coupling="reattack", steps=20))
    assert oracle.short().again.params.step == pytest.approx(2 * 2.5 * EPSILON / 20)
    assert Oracle(Threat(EPSILON), OracleParams(steps=20)).short().again.params.step == EPSILON / 2


def test_average_case_flatness_under_l2_is_the_mean_of_closed_forms(registry):
    model, examples = linear(), inner_images()
    found = measured(registry, "average-case(xi=0.3, draws=4, steps=15, step=1)", model, examples)
    np.testing.assert_allclose(found.arrays["reference"], robust_losses(model, examples, "l2"), rtol=1e-10)
    assert found.value == pytest.approx((found.arrays["losses"].mean(0) - found.arrays["reference"]).mean())
    other = measured(registry, "average-case(xi=0.3, draws=4, steps=15, step=1)", model, examples, Threat(EPSILON))
    assert (other.arrays["losses"] > found.arrays["losses"]).all()  # the l-inf ball holds the l2 ball


def test_joint_worst_case_under_l2_reaches_the_closed_form(registry):
    """One image x along v = w_0 - w_1: the margin falls to v.x - eps ||v|| - sqrt(2) xi ||W|| (||x|| - eps)."""
    along = torch.linspace(0.7, 1.3, 16, dtype=torch.float64)  # no multiple of a sign
    weight, image = torch.stack([0.9 * along, -0.4 * along]), 0.5 * along.reshape(1, 1, 4, 4)
    model, examples = Linear(weight).eval(), Examples(image, *torch.zeros(2, 1).long())
    xi, v = 0.05, weight[0] - weight[1]
    radius, length = xi * float(weight.norm()), float(v.norm())
    far = float(examples.x.norm())
    margin = length * far - EPSILON * length - math.sqrt(2) * radius * (far - EPSILON)
    text = f"worst-case(xi={xi}, restarts=2, steps=20, step=1, weight_step=1, strong_steps=5)"
    found = measured(registry, text, model, examples)
    highest = float(found.arrays["losses"].max())
    exact = math.log1p(math.exp(-margin))
    assert highest <= exact * (1 + 1e-9)
    assert highest == pytest.approx(exact, rel=1e-6)
    np.testing.assert_allclose(found.arrays["reference"], robust_losses(model, examples, "l2"), rtol=1e-9)


def test_the_joint_ascent_starts_at_uniform_draws_of_the_l2_ball(registry):
    examples = inner_images(40)
    measure = resolve(registry, "measure", "worst-case").build(L2)
    shares = (NORMS["l2"].size(measure._start(examples, 0, "worst-case", 0) - examples.x) / EPSILON) ** 16
    assert abs(float(shares.mean()) - 0.5) < 4 * (1 / 12 / 40) ** 0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_local_lipschitz_constant_of_a_linear_function_is_the_dual_norm_of_its_slope(registry, norm):
    model, examples = linear(), inner_images()
    with torch.no_grad():
        model.head.weight[1] = 0
    found = measured(registry, "local-lipschitz(steps=12, step=1)", model, examples, Threat(EPSILON, norm))
    expected = float(NORMS[norm].dual(model.head.weight[:1].detach()))
    np.testing.assert_allclose(found.arrays["per_example"], expected, rtol=1e-9)


@pytest.mark.parametrize(("norm", "p"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_the_input_gradient_is_measured_in_the_dual_norm(registry, norm, p):
    model, examples = linear(), inner_images()
    component = resolve(registry, "measure", "input-gradient-norm(coupling=clean, p=dual)")
    found = component.build(Threat(EPSILON, norm)).measure(model, examples, Workspace())
    variable = examples.x.clone().requires_grad_()
    F.cross_entropy(model(variable), examples.y, reduction="sum").backward()
    rows = variable.grad.flatten(1).numpy()
    np.testing.assert_allclose(found.arrays["per_example"], [np.linalg.norm(row, p) for row in rows], rtol=1e-10)


def test_boundary_thickness_under_l2_is_cut_from_a_segment_of_the_radius(registry):
    """Along the gradient, g = tanh(d / 2) and d, the difference of the logits, falls linearly: a closed length."""
    w = torch.full((16,), 0.5, dtype=torch.float64)
    model, radius = Linear(torch.stack([w, -w])).eval(), 0.5
    with torch.no_grad():
        offset = torch.full((1, 1, 4, 4), 0.5).double()
    model.forward = lambda x: model.head((x - offset + 0.02).flatten(1))  # the boundary lies 0.08 away
    examples = Examples(offset.clone(), *torch.zeros(2, 1).long())
    text = f"boundary-thickness(radius={radius}, points=2000, steps=15, step=5)"
    found = measured(registry, text, model, examples)
    slope = 2 * float(w.norm())  # of the logits' difference, per unit of l2 length
    first = 2 * float((w * 0.02).sum())  # their difference at x
    levels = [2 * math.atanh(level) for level in (0.0, 0.75)]
    low, high = ((first - level) / slope for level in levels[::-1])
    expected = min(high, radius) - max(low, 0.0)
    assert found.value == pytest.approx(expected, abs=2 * radius / 2000)


@pytest.mark.parametrize(
    "text",
    [
        *("average-case(draws=2, steps=3)", "worst-case(restarts=1, steps=3, strong_steps=3)", "gradient-alignment"),
        *("boundary-thickness(points=4, steps=3)", "local-lipschitz(steps=3)", "margin(steps=3)"),
        *("hessian-trace(probes=2, steps=3)", "input-gradient-norm(coupling=frozen, steps=3)"),
    ],
)
def test_no_image_that_a_measure_reads_leaves_the_l2_ball(registry, text):
    examples, seen = inner_images(6), []

    class Watching(Linear):
        def forward(self, x: Tensor) -> Tensor:
            centres = examples.x.flatten(1)
            seen.append(torch.cdist(x.detach().flatten(1), centres).amin(1).max())
            return super().forward(x)

    measured(registry, text, Watching(linear().head.weight.detach()).eval(), examples)
    assert max(seen) <= EPSILON + 1e-9
    seen.clear()
    measured(registry, text, Watching(linear().head.weight.detach()).eval(), examples, Threat(EPSILON))
    assert max(seen) > EPSILON + 1e-3
