"""Random changes of images, calibration, perturbation alignment: closed forms, naive loops, edges of bins, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.measures import REGISTRY, small_examples, small_net
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.core import Examples, Measurement, Threat, Workspace
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.measures.inputs.calibration import signed_gaps
from robflat_bench.measures.per_example import random_images
from robflat_bench.registry.components import resolve

EPSILON = 0.1

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(
    text: str, model: nn.Module, examples: Examples, epsilon: float = EPSILON, batch: int = 100, norm: str = "linf"
) -> Measurement:
    measure = resolve(REGISTRY, "measure", text).build(Threat(epsilon, norm))
    found: Measurement = measure.measure(model, examples, Workspace(batch=batch, seed=5))
    return found


class Table(nn.Module):
    """Image i holds its number in its only pixel; its logits are row i of a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[(x.flatten(1)[:, 0] * len(self.logits)).round().long()]


def table(logits: Tensor, y: Tensor) -> tuple[Table, Examples]:
    x = torch.arange(len(y), dtype=torch.float64).view(-1, 1, 1, 1) / len(y)
    return Table(logits), Examples(x, y, torch.arange(len(y)))


# ---------------------------------------------------------------------------------------------------------
# Probabilistic error
# ---------------------------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """One pixel x: class 0 where x < 0.5, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-z, z], 1)


def pixels(*values: float) -> Examples:
    x = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
    return Examples(x, torch.zeros(len(values), dtype=torch.int64), torch.arange(len(values)))


def test_probabilistic_error_of_a_threshold_is_the_share_of_the_ball_beyond_it():
    """P[x + d > 0.5] = (x + eps - 0.5) / (2 eps) for |x - 0.5| < eps, else 0 or 1; also where the ball is clipped."""
    values = (0.1, 0.42, 0.47, 0.5, 0.55, 0.95)
    expected = np.clip((np.array(values) + EPSILON - 0.5) / (2 * EPSILON), 0, 1)
    found = measured("probabilistic-error(draws=2000)", Threshold(), pixels(*values))
    for share, probability in zip(found.arrays["per_example"], expected, strict=True):
        assert binomtest(round(share * 2000), 2000, probability).pvalue > 1e-4
    assert found.arrays["per_example"][[0, 5]].tolist() == [0.0, 1.0]
    assert found.value == found.arrays["per_example"].mean()
    spread = math.sqrt(sum(p * (1 - p) / 2000 for p in expected)) / 6
    assert found.details["standard_error_draws"] == pytest.approx(spread, rel=0.05)
    assert found.details["below"] == 5 / 6


def test_random_images_stay_in_the_box():
    """At 0.02 a fifth of the ball [-0.08, 0.12] is below 0, where the network errs."""

    class Below(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, 0]
            return torch.stack([z + 1e-9, -z - 1e-9], 1)

    assert measured("probabilistic-error", Below(), pixels(0.02)).value == 0


def test_an_image_is_below_when_its_errors_exceed_rho():
    """With 100 draws and rho = 0.03, three errors are allowed and four are not."""
    examples = pixels(*(0.4 + k / 2000 for k in range(1, 41)))
    for rho in (0.0, 0.01, 0.03, 0.07):
        found = measured(f"probabilistic-error(rho={rho})", Threshold(), examples)
        errors = np.round(found.arrays["per_example"] * 100)
        assert found.details["below"] == pytest.approx((errors > round(100 * rho)).mean())
        assert round(100 * rho) in errors, "an image sits on the edge"


def test_probabilistic_error_equals_the_naive_loop_in_any_batch():
    model, examples = small_net(), small_examples(23)
    with torch.no_grad():
        examples = Examples(examples.x, model(examples.x).argmax(1), examples.index)
    wrong = np.zeros(23)
    for draw in range(20):
        noise = EPSILON * per_example_uniform(examples.x, examples.index, 5, "probabilistic-error", draw)
        for i, label in enumerate(examples.y.tolist()):
            image = torch.clamp(examples.x[i] + noise[i], 0, 1)
            wrong[i] += int(model(image[None])[0].argmax()) != label
    for batch in (100, 7):
        found = measured("probabilistic-error(draws=20)", model, examples, batch=batch)
        assert found.arrays["per_example"] == pytest.approx(wrong / 20, abs=0)
    assert 0 < found.value < 1
    backwards = Examples(*(part.flip(0) for part in (examples.x, examples.y, examples.index)))
    assert measured("probabilistic-error(draws=20)", model, backwards).arrays["per_example"][::-1] == pytest.approx(
        wrong / 20, abs=0
    )


def test_error_of_probabilistic_error_is_the_spread_over_fresh_examples():
    x = torch.rand(1500, generator=generator("fresh"), dtype=torch.float64) * 0.2 + 0.35
    every = pixels(*x.tolist())
    found = [
        measured("probabilistic-error(draws=4)", Threshold(), every[rows]) for rows in torch.arange(1500).split(30)
    ]
    spread = np.std([one.value for one in found], ddof=1)
    assert math.sqrt(np.mean([one.standard_error**2 for one in found])) == pytest.approx(spread, rel=0.3)


# ---------------------------------------------------------------------------------------------------------
# Calibration
# ---------------------------------------------------------------------------------------------------------


def logits_of(confidence: list[float]) -> Tensor:
    """Two classes, the first with these probabilities."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_calibration_by_hand():
    """Confidences .9, .9, .6, .6, hits 1, 1, 1, 0: |1.8 - 2| / 4 + |1.2 - 1| / 4 = 0.1."""
    model, examples = table(logits_of([0.9, 0.9, 0.6, 0.6]), torch.tensor([0, 0, 0, 1]))
    found = measured("calibration(coupling=clean)", model, examples)
    p, q = np.array([0.9, 0.9, 0.6, 0.6]), np.array([0.9, 0.9, 0.6, 0.4])
    expected = {
        "ece": 0.1,
        "nll": -np.log(q).mean(),
        "brier": (2 * (1 - q) ** 2).mean(),
        "confidence": 0.75,
        "entropy": -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(),
        "accuracy": 0.75,
    }
    assert found.details == pytest.approx(expected)
    assert found.value == pytest.approx(0.1)
    for kind in ("ece", "nll", "brier", "confidence", "entropy"):
        assert measured(f"calibration(coupling=clean, kind={kind})", model, examples).value == pytest.approx(
            expected[kind]
        )
    merged = measured("calibration(coupling=clean, bins=1)", model, examples)
    assert merged.value == pytest.approx(0.0), "gaps of opposite signs cancel within a bin"


def test_a_bin_holds_its_upper_edge_and_the_last_one_holds_one():
    """Two bins: 0.5 and below, above 0.5 to 1. Each confidence with a hit in the one and a miss in the other."""
    hit, miss = 1.0, 0.0
    for confidence, gap in (
        ([0.5, 0.25], 0.75 - 1),
        ([0.5, 0.75], None),
        ([1.0, 0.75], 1.75 - 1),
        ([0.0, 0.5], 0.5 - 1),
    ):
        found = abs(signed_gaps(np.array(confidence), np.array([hit, miss]), 2).mean())
        apart = (abs(confidence[0] - 1) + confidence[1]) / 2
        assert found == pytest.approx(apart if gap is None else abs(gap) / 2)
    for bins in (3, 15, 49):
        edges = np.arange(1, bins + 1) / bins
        for edge in edges:
            here, above = np.array([edge - 1e-9, edge]), np.array([edge, edge + 1e-9])
            assert abs(signed_gaps(here, np.array([1.0, 0.0]), bins).sum()) == pytest.approx(abs(here.sum() - 1))
            if edge < 1:
                assert signed_gaps(above, np.array([1.0, 0.0]), bins).sum() == pytest.approx(1, abs=1e-6)


def test_certain_predictions_have_finite_scores():
    model, examples = table(torch.tensor([[2000.0, 0.0], [2000.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1]))
    found = measured("calibration(coupling=clean)", model, examples)
    assert found.details == pytest.approx(
        {"ece": 0.5, "nll": 1000.0, "brier": 1.0, "confidence": 1.0, "entropy": 0.0, "accuracy": 0.5}
    )


@pytest.mark.parametrize("logits", ["plain", "normalised"])
def test_scores_equal_the_naive_loop(logits):
    model, examples = small_net(), small_examples(30)
    expected: dict[str, list[float]] = {"nll": [], "brier": [], "confidence": [], "entropy": []}
    bins: dict[int, list[float]] = {}
    for scores, label in zip(model(examples.x).detach(), examples.y.tolist(), strict=True):
        if logits == "normalised":
            scores = (scores - scores.mean()) / (scores - scores.mean()).norm()
        p = [float(part) for part in scores.exp() / scores.exp().sum()]
        expected["nll"].append(-math.log(p[label]))
        expected["brier"].append(sum((part - (k == label)) ** 2 for k, part in enumerate(p)))
        expected["confidence"].append(max(p))
        expected["entropy"].append(-sum(part * math.log(part) for part in p))
        bins.setdefault(math.ceil(max(p) * 15), []).append(max(p) - (p.index(max(p)) == label))
    for kind, each in expected.items():
        found = measured(f"calibration(coupling=clean, kind={kind}, logits={logits})", model, examples)
        assert found.arrays["per_example"] == pytest.approx(each, rel=1e-9)
    found = measured(f"calibration(coupling=clean, logits={logits})", model, examples)
    assert found.value == pytest.approx(sum(abs(sum(gaps)) for gaps in bins.values()) / 30, rel=1e-9)


def test_calibration_reads_the_images_of_its_coupling():
    model, examples = small_net(), small_examples(20)
    clean, frozen = (
        measured(f"calibration(kind=nll, coupling={coupling}, steps=4)", model, examples)
        for coupling in ("clean", "frozen")
    )
    assert frozen.value > 1.05 * clean.value


def drawn(count: int, seed: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and hits of a network that is too sure by `gap`."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.3, 1.0, count)
    return confidence, (rng.uniform(size=count) < confidence - gap).astype(float)


def error_and_spread(gap: float, count: int = 400) -> tuple[float, float]:
    """The standard error of ece, root mean square over samples, and the spread of ece over them."""
    found = [signed_gaps(*drawn(count, seed, gap), 15) for seed in range(400)]
    error = math.sqrt(np.mean([each.var(ddof=1) / count for each in found]))
    return error, float(np.std([each.mean() for each in found], ddof=1))


def test_error_of_ece_is_its_spread_over_fresh_samples():
    error, spread = error_and_spread(0.25)
    assert error == pytest.approx(spread, rel=0.1)


def test_error_of_ece_without_a_gap_is_too_large_and_so_is_ece():
    error, spread = error_and_spread(0.0)
    assert error / spread == pytest.approx(1 / math.sqrt(1 - 2 / math.pi), rel=0.15)
    few, many = (np.mean([signed_gaps(*drawn(n, seed, 0.0), 15).mean() for seed in range(200)]) for n in (100, 400))
    assert few / many == pytest.approx(2, rel=0.15)


# ---------------------------------------------------------------------------------------------------------
# Perturbation alignment
# ---------------------------------------------------------------------------------------------------------


def alignment_by_hand(model: nn.Module, examples: Examples, step: float) -> list[float]:
    noise = EPSILON * per_example_uniform(examples.x, examples.index, 5, "pert-align")
    found = []
    for image, move, label in zip(examples.x, noise, examples.y, strict=True):
        gradients, x = [], torch.clamp(image + move, 0, 1)
        for _ in range(2):
            variable = x[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(variable), label[None]), variable)
            gradients.append(gradient.flatten())
            x = x + step * gradient[0].sign()
            x = torch.maximum(torch.minimum(x, image + EPSILON), image - EPSILON).clamp(0, 1)
        found.append(float(F.cosine_similarity(*gradients, dim=0)))
    return found


@pytest.mark.parametrize(("text", "step"), [("pert-align", 0.125), ("pert-align(step=0.03)", 0.03)])
def test_perturbation_alignment_equals_the_naive_loop(text, step):
    model, examples = small_net(), small_examples(12)
    found = measured(text, model, examples)
    assert found.arrays["per_example"] == pytest.approx(alignment_by_hand(model, examples, step), abs=1e-10)
    assert found.value < 0.999
    assert found.details == {"vanishing": 0.0}
    assert measured(text, model, examples, batch=5).value == pytest.approx(found.value, abs=1e-12)


def test_perturbation_alignment_in_an_l2_ball_equals_the_naive_loop():
    """The start is the measure's own draw; the step goes along the gradient, and shrinks into the ball."""
    model, examples, radius = small_net(), small_examples(12), 0.4
    starts = random_images(examples, Threat(radius, "l2"), 5, "pert-align")
    found = []
    for image, x, label in zip(examples.x, starts, examples.y, strict=True):
        gradients = []
        for _ in range(2):
            variable = x[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(variable), label[None]), variable)
            gradients.append(gradient.flatten())
            move = x + 1.25 * radius * gradient[0] / gradient.norm() - image
            x = (image + move * min(1.0, radius / float(move.norm()))).clamp(0, 1)
        found.append(float(F.cosine_similarity(*gradients, dim=0)))
    ours = measured("pert-align", model, examples, epsilon=radius, norm="l2")
    assert ours.arrays["per_example"] == pytest.approx(found, abs=1e-10)
    assert ours.value < 0.999


class Bent(nn.Module):
    """Two classes whose logits differ by c (x - 0.5)^2 of one pixel; its slope changes sign at 0.5."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        z = (x.flatten(1) - 0.5).pow(self.power).sum(1)
        return torch.stack([z, -z], 1)


def test_perturbation_alignment_is_one_where_the_loss_is_linear_and_minus_one_where_the_step_passes_its_maximum():
    """Label 0: the loss falls in z, so a network z = (x - 0.5)^2 is attacked towards 0.5, and from near it beyond."""
    examples = pixels(0.3, 0.7)
    assert measured("pert-align", Bent(1), examples).arrays["per_example"].tolist() == pytest.approx([1, 1], abs=1e-12)
    assert measured("pert-align", Bent(2), examples).arrays["per_example"].tolist() == pytest.approx([1, 1], abs=1e-12)
    near = pixels(0.5, 0.49, 0.51)
    assert measured("pert-align", Bent(2), near).arrays["per_example"].tolist() == pytest.approx([-1] * 3, abs=1e-12)


def test_a_network_without_a_gradient_is_aligned_with_itself():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([0 * x.flatten(1).sum(1), torch.ones(len(x)).to(x)], 1)

    found = measured("pert-align", Constant(), pixels(0.3, 0.6))
    assert (found.value, found.details["vanishing"]) == (1.0, 1.0)
