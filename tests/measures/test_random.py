"""Measures by random moves of the weights: closed forms, naive loops, invariances, peers' defects, errors, resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.measures import (
    THREAT,
    Quadratic,
    Remembering,
    moved_copy,
    naive_robust_loss,
    shares,
    small_examples,
    small_net,
)
from scipy.optimize import brentq
from scipy.stats import norm as normal
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Measure, Measurement, NoValue, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.bisection import bracket, interpolated
from robflat_bench.measures.sharpness.adaptive_average import AdaptiveAverage, AdaptiveAverageParams
from robflat_bench.measures.sharpness.basin_width import BasinWidth, BasinWidthParams
from robflat_bench.measures.sharpness.local_entropy import LocalEntropy, LocalEntropyParams
from robflat_bench.measures.sharpness.lpf import LPF, LPFParams
from robflat_bench.measures.sharpness.pac_bayes_sigma import PacBayesSigma, PacBayesSigmaParams

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 5
MEASURES: dict[str, tuple[type[Measure], type, dict[str, Any]]] = {
    "adaptive-average": (AdaptiveAverage, AdaptiveAverageParams, {"draws": 3, "rho": 0.3}),
    "lpf": (LPF, LPFParams, {"draws": 3, "std": 0.1}),
    "local-entropy": (LocalEntropy, LocalEntropyParams, {"draws": 8}),
    "pac-bayes-sigma": (PacBayesSigma, PacBayesSigmaParams, {"draws": 3, "tolerance": 0.05}),
    "basin-width": (BasinWidth, BasinWidthParams, {"directions": 2, "tolerance": 0.05}),
}


def measured(name: str, model: nn.Module, examples: Examples, place: Workspace | None = None, **params: Any) -> Any:
    kind, kind_params, small = MEASURES[name]
    given = kind_params(**{"coupling": "clean", "steps": 2, **small, **params})
    found: Measurement = kind(given, THREAT).measure(model, examples, place or Workspace(batch=50, seed=SEED))
    assert math.isfinite(found.value)
    return found


def normals(model: nn.Module, *key: int | str) -> dict[str, Tensor]:
    """Standard normal numbers as a measure of that name draws them."""
    return {
        name: torch.randn(p.shape, generator=generator(SEED, *key, name, *p.shape), dtype=torch.float64)
        for name, p in model.named_parameters()
    }


# ---------------------------------------------------------------------------------------------------------
# A loss with a known Hessian
# ---------------------------------------------------------------------------------------------------------


def filter_variance(model: Quadratic) -> Tensor:
    """||w_f||^2 / n_f for each of the eight numbers."""
    w = model.weight.detach()
    rows = [float(w[f] @ w[f]) / 3 for f in (0, 1)]
    return torch.tensor([*[rows[0]] * 3, *[rows[1]] * 3, *(model.bias.detach() ** 2).tolist()], dtype=torch.float64)


def layer_variance(model: Quadratic) -> Tensor:
    """||w_l||^2 / d_l for each of the eight numbers."""
    means = [float(layer.detach().square().mean()) for layer in (model.weight, model.bias)]
    return torch.tensor([*[means[0]] * 6, *[means[1]] * 2], dtype=torch.float64)


def variances(model: Quadratic) -> dict[str, tuple[str, dict[str, Any], Tensor]]:
    """Of each number's random move, by setting."""
    magnitude, one = model.flat().detach() ** 2, torch.ones(8, dtype=torch.float64)
    return {
        "l2": ("adaptive-average", {"rho": 0.2, "ball": "l2"}, 0.04 * magnitude),
        "linf": ("adaptive-average", {"rho": 0.2, "ball": "linf"}, 0.04 * magnitude / 3),
        "l2 standard": ("adaptive-average", {"rho": 0.2, "adaptive": False}, 0.04 * one),
        "linf standard": ("adaptive-average", {"rho": 0.2, "ball": "linf", "adaptive": False}, 0.04 * one / 3),
        "lpf": ("lpf", {"std": 0.2}, 0.04 * one),
        "lpf filters": ("lpf", {"std": 0.2, "filter_normalised": True}, 0.04 * filter_variance(model)),
    }


@pytest.mark.parametrize("setting", variances(Quadratic()))
def test_mean_rise_is_half_the_trace_of_hessian_times_covariance(setting):
    model = Quadratic()
    name, params, variance = variances(model)[setting]
    found = measured(name, model, shares(0.5), draws=1500, **params)
    truth = float((variance * model.hessian.diagonal()).sum()) / 2
    spread = found.details["standard_error_draws"]
    assert found.value == pytest.approx(truth, abs=3 * spread)
    assert spread < 0.06 * truth, "narrow enough to tell a wrong constant"
    assert found.details["loss"] == pytest.approx(3)
    assert found.details["loss_moved"] == pytest.approx(3 + found.value)
    assert found.details["relative"] == pytest.approx(found.value / 3)


def test_local_entropy_is_the_logarithm_of_a_gaussian_integral():
    model, gamma = Quadratic(), 2.0
    found = measured("local-entropy", model, shares(), gamma=gamma, draws=3000)
    covariance = torch.diag(layer_variance(model) / gamma)
    precision = covariance.inverse() + model.hessian
    slope = model.slope
    # \int exp(-3 - g'u - u'Pu/2) du, P the Hessian and the window together.
    integral = -3 + 4 * math.log(2 * math.pi) - precision.logdet() / 2 + slope @ precision.inverse() @ slope / 2
    mean = integral - 4 * math.log(2 * math.pi) - covariance.logdet() / 2
    error = found.standard_error
    assert found.value == pytest.approx(-float(mean), abs=3 * error)
    assert found.details["local_entropy"] == pytest.approx(float(integral), abs=3 * error)
    assert found.details["rise"] == pytest.approx(found.value - 3)

    # A peer draws with standard deviation 1/gamma, and its constant lacks the dimension.
    def away(variance: Tensor) -> Tensor:
        wide = variance.inverse() + model.hessian
        return 3 + (wide.logdet() + variance.logdet()) / 2 - slope @ wide.inverse() @ slope / 2

    assert float(away(covariance)) == pytest.approx(-float(mean))
    assert abs(float(away(covariance / gamma)) - found.value) > 6 * error
    assert abs(-found.value + math.log(2 * math.pi / gamma) / 2 - float(integral)) > 6 * error


def test_effective_sample_size_is_reported_and_refused_below_five():
    model = Quadratic()
    found = measured("local-entropy", model, shares(), draws=40)
    weights = np.exp(-found.arrays["losses"].mean(1))
    assert found.details["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.value == pytest.approx(-math.log(weights.mean()), abs=1e-12)
    with pytest.raises(NoValue, match=r"effective sample size is [1-4]\.\d of 40 draws.* a gamma above 0\.05"):
        measured("local-entropy", model, shares(), draws=40, gamma=0.05)


def test_local_entropy_survives_losses_whose_exponential_underflows():
    model = Quadratic()
    high = copy.deepcopy(model)
    high.forward = lambda x: F.pad(-(1000 + high.rise(high.flat() - high.centre)).repeat(len(x), 1), (0, 1))
    low = measured("local-entropy", model, shares(), gamma=100)
    assert measured("local-entropy", high, shares(), gamma=100).value - low.value == pytest.approx(997, abs=1e-9)


@pytest.mark.parametrize("normalisation", ["filter", "layer"])
@pytest.mark.parametrize("slope", [False, True])
def test_basin_width_solves_a_quadratic_along_each_direction(normalisation, slope):
    model, target = Quadratic(slope), 0.1
    params = {"target": target, "directions": 5, "tolerance": 1e-6, "normalisation": normalisation}
    found = measured("basin-width", model, shares(0.5), **params)
    radii = np.zeros((5, 2))
    for draw in range(5):
        z = normals(model, "basin-width", draw)
        if normalisation == "layer":
            d = {name: z[name] / z[name].norm() * p.detach().norm() for name, p in model.named_parameters()}
        else:
            w, b = model.weight.detach(), model.bias.detach()
            rows = torch.stack([z["weight"][f] / z["weight"][f].norm() * w[f].norm() for f in (0, 1)])
            d = {"weight": rows, "bias": z["bias"].sign() * b.abs()}
        flat = torch.cat([d["weight"].flatten(), d["bias"]])
        curve, tilt = float(flat @ model.hessian @ flat), float(model.slope @ flat)
        for column, sign in enumerate((1, -1)):
            radii[draw, column] = (-sign * tilt + math.sqrt(tilt**2 + 2 * curve * target)) / curve
    assert found.arrays["radii"] == pytest.approx(radii, rel=1e-6)
    assert found.value == pytest.approx(radii.mean(), rel=1e-6)
    assert found.standard_error == pytest.approx(radii.mean(1).std(ddof=1) / math.sqrt(5), rel=1e-4)
    assert 0 < found.details["residual"] <= 1e-6 * radii.max() * 1.01
    assert found.details["saturated"] == 0


def test_basins_wider_than_the_search_are_saturated():
    found = measured("basin-width", Quadratic(), shares(), target=1000, largest=0.5)
    assert (found.value, found.standard_error) == (0.5, 0)
    assert (found.details["saturated"], found.details["residual"]) == (1, 0)


@pytest.mark.parametrize("name", ["adaptive-average", "lpf", "local-entropy", "basin-width"])
def test_standard_errors_shrink_with_the_root_of_draws(name):
    count, few = ("directions", 25) if name == "basin-width" else ("draws", 150)
    errors = [measured(name, Quadratic(), shares(), **{count: draws}).standard_error for draws in (few, 9 * few)]
    assert errors[0] / errors[1] == pytest.approx(3, rel=0.2)


def test_standard_error_of_local_entropy_is_its_spread_over_repetitions():
    """Over draws and over examples: the loss of an example, tilted towards the flat draws, varies by `spread`."""
    model, examples = Quadratic(), shares(0.5)
    found = [measured("local-entropy", model, examples, Workspace(seed=seed), draws=50) for seed in range(60)]
    errors = [one.details["standard_error_draws"] for one in found]
    assert np.std([one.value for one in found], ddof=1) == pytest.approx(np.mean(errors), rel=0.25)
    one = found[0]
    weights = np.exp(-one.arrays["losses"].mean(1))
    tilted = (weights[:, None] * one.arrays["losses"]).sum(0) / weights.sum()
    over_examples = tilted.std(ddof=1) / 2
    assert over_examples > 0
    assert one.details["standard_error_examples"] == pytest.approx(over_examples)
    assert one.standard_error == pytest.approx(math.sqrt(errors[0] ** 2 + over_examples**2))


# ---------------------------------------------------------------------------------------------------------
# An error rate with a known root
# ---------------------------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """Class 0 where w'x > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.weight
        return torch.stack([z, torch.zeros_like(z)], 1)


def threshold_examples(model: Threshold) -> Examples:
    """Thirty points of class 0 that the model gets right and three that it gets wrong."""
    x = torch.randn(200, 4, 1, 1, generator=generator("x"), dtype=torch.float64)
    z = (x.flatten(1) @ model.weight).detach()
    x = torch.cat([x[z > 0.3][:30], x[z < -1][:3]])
    return Examples(x, torch.zeros(33, dtype=torch.int64), torch.arange(33))


def exact_rise(model: Threshold, examples: Examples, variance: Tensor) -> float:
    """Mean over examples of P(w'x + u'x <= 0), minus the error rate at w."""
    x, w = examples.x.flatten(1), model.weight.detach()
    margins, spread = x @ w, (x**2 @ variance).sqrt()
    return float(np.mean(normal.cdf(-(margins / spread).numpy()) - (margins <= 0).numpy()))


@pytest.mark.parametrize("magnitude", [False, True])
def test_pac_bayes_sigma_is_the_standard_deviation_at_which_the_error_rate_has_risen(magnitude):
    model = Threshold()
    examples = threshold_examples(model)
    e = 0.2

    def rise(s: float) -> float:
        variance = s**2 * model.weight.detach() ** 2 + e**2 if magnitude else torch.full((4,), s**2)
        return exact_rise(model, examples, variance.double())

    found = measured("pac-bayes-sigma", model, examples, draws=400, magnitude=magnitude, e=e, tolerance=0.02)
    sigma = brentq(lambda s: rise(s) - 0.1, 1e-3, 2)
    last = found.arrays["rise"][-1]
    error = last.std(ddof=1) / math.sqrt(400)
    assert rise(found.details["sigma"]) == pytest.approx(0.1, abs=3 * error)
    assert found.details["sigma"] == pytest.approx(sigma, rel=0.15)
    assert found.value == found.details["sigma"] ** -2
    assert found.details["error"] == pytest.approx(3 / 33)
    assert abs(rise(found.details["sigma"] ** 0.5) - 0.1) > 3 * error, "a peer's sigma is the root of this one"
    assert found.standard_error is None
    assert error < found.details["standard_error_rise"] < 10 * error, "that of other examples is in it"


def naive_rise(model: Threshold, examples: Examples, s: float, draws: int) -> float:
    """Mean rise of the error rate over the draws, every pair read."""
    x, w = examples.x.flatten(1), model.weight.detach()
    moved = torch.stack([w + s * normals(model, "pac-bayes-sigma", draw)["weight"] for draw in range(draws)])
    return float((moved @ x.T <= 0).double().mean() - (x @ w <= 0).double().mean())


@pytest.mark.parametrize("tolerance", [0.2, 1e-3])
def test_pac_bayes_brackets_the_crossing_of_the_curve_of_common_draws(tolerance):
    """The whole curve, read pair by pair, is within the target at the lower end and beyond it at the upper one."""
    model, draws = Threshold(), 20
    examples = threshold_examples(model)[:30]
    found = measured("pac-bayes-sigma", model, examples, draws=draws, tolerance=tolerance)
    sigma, width = found.details["sigma"], found.details["residual"]
    low, high = sigma - width / 2, sigma + width / 2
    assert naive_rise(model, examples, low, draws) <= 0.1 < naive_rise(model, examples, high, draws)
    assert 0 < width <= tolerance * high * (1 + 1e-9)
    pairs, near = found.arrays["read"], abs(found.arrays["tried"] / sigma - 1) < 0.05
    assert (pairs[near] > pairs.max() / 2).all(), "what decides is read until it is sure"
    assert found.details["failure_probability"] <= 1e-6 * len(pairs)


def test_pac_bayes_says_when_its_target_lies_outside_the_search():
    model = Threshold()
    examples = threshold_examples(model)
    above = measured("pac-bayes-sigma", model, examples, target=0.9, largest=0.5)
    assert (above.details["saturated"], above.details["sigma"], above.value) == (1, 0.5, 4)
    below = measured("pac-bayes-sigma", model, examples, magnitude=True, e=50, draws=10)
    assert below.details["saturated"] == -1
    assert below.details["sigma"] < 1e-8
    assert measured("pac-bayes-sigma", model, examples).details["saturated"] == 0


CURVES: dict[str, Callable[[float, float], float]] = {
    "line": lambda r, root: r - root,
    "cube": lambda r, root: r**3 - root**3,
    "kink": lambda r, root: 1e3 * (r - root) if r > root else 1e-3 * (r - root),
    "signs": lambda r, root: math.copysign(math.inf, r - root) if r != root else 0.0,
    "undefined beyond": lambda r, root: r - root if r <= root else math.nan,
    "rough": lambda r, root: r - root + 0.02 * root * math.sin(997 * r / root),
}


@pytest.mark.parametrize("root", [0.001, 0.37, 1.9])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("model", [interpolated, lambda low, high: low.radius * 1.0001, lambda low, high: math.nan])
def test_bracket_has_a_verdict_at_both_ends_whatever_the_model(root, curve, model):
    tried: dict[float, float] = {}

    def excess(radius: float) -> float:
        assert radius not in tried
        tried[radius] = CURVES[curve](radius, root)
        return tried[radius]

    low, high = bracket(excess, 2.0, 1e-3, model)
    assert tried[low] <= 0
    assert not tried[high] <= 0
    assert 0 < high - low <= 1e-3 * high
    assert len(tried) <= 8 * (math.log2(2 / root) + math.log2(1e3) + 3)


def test_bracket_needs_three_radii_where_the_model_is_right():
    tried: list[float] = []
    low, high = bracket(lambda r: tried.append(r) or r - 0.37, 2.0, 1e-2, lambda *_: 0.371)
    assert low <= 0.37 < high
    assert len(tried) == 3, "largest, the root, and the other end"


def test_bracket_ends_at_the_largest_radius_or_at_zero_where_nothing_crosses():
    assert bracket(lambda _: 0.0, 2.0, 0.1) == (2.0, 2.0)
    low, high = bracket(lambda _: 1.0, 2.0, 0.1)
    assert low == 0 < high < 1e-8


# ---------------------------------------------------------------------------------------------------------
# Couplings, on a real network
# ---------------------------------------------------------------------------------------------------------


def labelled(model: nn.Module, count: int = 12, dtype: torch.dtype = torch.float64) -> Examples:
    """Examples, most of which the model gets right."""
    examples = small_examples(count, dtype)
    with torch.no_grad():
        examples.y[3:] = model(examples.x[3:]).argmax(1)
    return examples


def naive_losses(model: nn.Module, moved: nn.Module, examples: Examples, coupling: str) -> np.ndarray:
    if coupling == "reattack":
        return naive_robust_loss(moved, examples, 2, 1, SEED).numpy()
    x = examples.x if coupling == "clean" else PGD(PGDParams(steps=2), THREAT).perturb(model, examples, SEED)
    with torch.no_grad():
        return F.cross_entropy(moved(x), examples.y, reduction="none").numpy()


def naive_move(name: str, model: nn.Module, draw: int) -> dict[str, Tensor]:
    scale: dict[str, Callable[[Tensor], Any]] = {
        "adaptive-average": lambda p: 0.3 * p.detach().abs(),
        "lpf": lambda _: 0.1,
        "local-entropy": lambda p: p.detach().square().mean().sqrt() / math.sqrt(10),
    }
    layers = {key: p for key, p in model.named_parameters() if not key.startswith("1.")}
    z = normals(model, name, draw)
    return {key: scale[name](p) * z[key] for key, p in layers.items()}


@pytest.mark.parametrize("coupling", ["clean", "frozen", "reattack"])
@pytest.mark.parametrize("name", ["adaptive-average", "lpf", "local-entropy"])
def test_losses_at_each_draw_equal_a_naive_loop(name, coupling):
    model = small_net()
    examples = labelled(model)
    found = measured(name, model, examples, coupling=coupling)
    losses = found.arrays["losses"]
    naive = [
        naive_losses(model, moved_copy(model, naive_move(name, model, draw)), examples, coupling)
        for draw in range(len(losses))
    ]
    assert losses == pytest.approx(np.stack(naive), abs=1e-9)
    assert found.arrays["reference"] == pytest.approx(naive_losses(model, model, examples, coupling), abs=1e-9)
    if name != "local-entropy":
        assert found.value == pytest.approx(float((np.stack(naive) - found.arrays["reference"]).mean()), abs=1e-9)
        assert found.arrays["per_example"].mean() == pytest.approx(found.value, abs=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_couplings_differ(name):
    model = small_net()
    examples = labelled(model, 40)
    tolerance = {"tolerance": 1e-3} if "tolerance" in MEASURES[name][2] else {}
    found = [measured(name, model, examples, coupling=c, **tolerance).value for c in ("clean", "frozen", "reattack")]
    assert len({round(value, 4) for value in found}) == 3


@pytest.mark.parametrize("more", [{"coupling": "frozen"}, {"coupling": "reattack", "warm": True}])
def test_basin_width_reads_first_the_adversarial_images_of_the_highest_losses(more):
    """Another example's image is confidently of another class: with it, a tiny move would be a steep one."""
    linear = nn.Linear(2, 2).double()
    with torch.no_grad():
        linear.weight.copy_(50 * torch.eye(2))
    model, examples = nn.Sequential(nn.AvgPool2d(5), nn.Flatten(), linear).eval(), small_examples(40)
    examples.y[:] = torch.arange(40) // 20
    for label, sure in enumerate((0.9, 0.7)):  # images of the second class have the higher losses
        examples.x[examples.y == label] = 1 - sure
        examples.x[examples.y == label, label] = sure
    found = measured("basin-width", model, examples, largest=1e-3, **more)
    assert (found.value, found.details["saturated"]) == (1e-3, 1)


# ---------------------------------------------------------------------------------------------------------
# Invariances
# ---------------------------------------------------------------------------------------------------------


def scale_free_net() -> nn.Sequential:
    """Every layer is followed by a normalisation without eps, the logits too."""
    net = small_net()
    net[1].eps = 0
    net.append(nn.BatchNorm1d(4, eps=0).double().eval())
    return net


def undone(net: nn.Sequential, layer: int, factors: Tensor) -> None:
    """Scale the filters of a layer; the normalisation behind it takes the scale back."""
    following = net[layer + 1]
    with torch.no_grad():
        net[layer].weight *= factors.reshape(-1, *[1] * (net[layer].weight.ndim - 1))
        net[layer].bias *= factors
        following.running_mean *= factors
        following.running_var *= factors**2


def by_layer(c: float = 2.0) -> tuple[nn.Module, nn.Module]:
    net, scaled = scale_free_net(), scale_free_net()
    undone(scaled, 0, torch.full((5,), c))
    undone(scaled, 4, torch.full((4,), c))
    return net, scaled


def by_filter() -> tuple[nn.Module, nn.Module]:
    net, scaled = scale_free_net(), scale_free_net()
    undone(scaled, 0, torch.tensor([1.0, 2.0, 4.0, 0.5, 8.0]))
    undone(scaled, 4, torch.tensor([4.0, 0.25, 2.0, 0.5]))
    return net, scaled


def by_weight() -> tuple[nn.Module, nn.Module]:
    """Each hidden neuron scaled by its own factor, and its outgoing weights by the inverse."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Flatten(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 4)).double().eval()
    with torch.no_grad():
        net[1].bias -= net[1].weight.sum(1) / 2  # pixels have mean 1/2
    scaled, factors = copy.deepcopy(net), 2.0 ** torch.arange(-4, 4)
    with torch.no_grad():
        scaled[1].weight *= factors[:, None]
        scaled[1].bias *= factors
        scaled[3].weight /= factors
    return net, scaled


RESCALINGS = {"layer": by_layer, "filter": by_filter, "weight": by_weight}
INVARIANT: list[tuple[str, dict[str, Any], set[str]]] = [
    ("adaptive-average", {}, {"layer", "filter", "weight"}),
    ("adaptive-average", {"ball": "linf"}, {"layer", "filter", "weight"}),
    ("adaptive-average", {"adaptive": False}, set()),
    ("lpf", {}, set()),
    ("lpf", {"filter_normalised": True}, {"layer", "filter"}),
    ("local-entropy", {}, {"layer"}),
    ("pac-bayes-sigma", {}, set()),
    ("pac-bayes-sigma", {"magnitude": True, "e": 0}, {"layer", "filter", "weight"}),
    ("basin-width", {}, {"layer", "filter"}),
    ("basin-width", {"normalisation": "layer"}, {"layer"}),
]


@pytest.mark.parametrize("rescaling", RESCALINGS)
@pytest.mark.parametrize(("name", "params", "unchanged"), INVARIANT)
def test_rescaling_that_keeps_the_function_moves_what_it_should(name, params, unchanged, rescaling):
    net, scaled = RESCALINGS[rescaling]()
    examples = labelled(net, 30)
    with torch.no_grad():
        assert torch.allclose(net(examples.x), scaled(examples.x), rtol=0, atol=1e-12)
    found = [measured(name, one, examples, coupling="frozen", **params).value for one in (net, scaled)]
    assert (found[1] == pytest.approx(found[0], rel=1e-5)) == (rescaling in unchanged), found


def test_absolute_moves_scale_with_the_weights():
    """c times the weights and c times the noise is the same; so 1/sigma^2 falls as c^-2."""
    net, scaled = by_layer(4.0)
    examples = labelled(net, 30)
    for name, size, others in (("lpf", "std", {}), ("adaptive-average", "rho", {"adaptive": False})):
        found = [measured(name, one, examples, **{size: s}, **others).value for one, s in ((net, 0.1), (scaled, 0.4))]
        assert found[1] == pytest.approx(found[0], rel=1e-9)
    found = [measured("pac-bayes-sigma", one, examples, largest=s).value for one, s in ((net, 2), (scaled, 8))]
    assert found[1] == pytest.approx(found[0] / 16, rel=1e-9)


@pytest.mark.parametrize(("name", "params", "_"), [row for row in INVARIANT if row[2] and "pac" not in row[0]])
def test_normalised_logits_undo_the_scale_of_the_last_layer(name, params, _):
    net, scaled = small_net(), small_net()
    examples = labelled(net, 30)
    with torch.no_grad():
        scaled[4].weight *= 4
        scaled[4].bias *= 4
    for logits, same in (("plain", False), ("normalised", True)):
        found = [measured(name, one, examples, logits=logits, **params).value for one in (net, scaled)]
        assert (found[1] == pytest.approx(found[0], rel=1e-5)) == same


@pytest.mark.parametrize(("name", "params", "_"), INVARIANT)
def test_layers_and_filters_of_zeros_stay(name, params, _):
    net = small_net()
    with torch.no_grad():
        net[0].bias.zero_()
        net[0].weight[2].zero_()
        net[4].weight[1].zero_()
    measured(name, net, small_examples(), **params)


# ---------------------------------------------------------------------------------------------------------
# Memory and resuming
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEASURES)
def test_memory_batches_agree(name):
    net = small_net(torch.float32)
    examples = labelled(net, 130, torch.float32)
    found = [measured(name, net, examples, Workspace(batch, SEED), coupling="frozen").value for batch in (32, 100)]
    assert found[1] == pytest.approx(found[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("coupling", ["clean", "frozen", "reattack"])
@pytest.mark.parametrize("name", MEASURES)
def test_an_interrupted_measurement_resumes_bit_for_bit(name, coupling):
    net = small_net(torch.float32)
    examples = labelled(net, dtype=torch.float32)
    few = {"draws": 6} if name == "local-entropy" else {"tolerance": 0.4} if "tolerance" in MEASURES[name][2] else {}
    plain = measured(name, net, examples, Workspace(8, SEED), coupling=coupling, **few)
    journal = Remembering()
    assert measured(name, net, examples, Workspace(8, SEED, journal), coupling=coupling, **few).value == plain.value
    for lives in range(0, len(journal.kept), 1 + len(journal.kept) // 6):
        dying = Remembering(lives)
        state = copy.deepcopy(net.state_dict())
        with pytest.raises(InterruptedError):
            measured(name, net, examples, Workspace(8, SEED, dying), coupling=coupling, **few)
        assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
        dying.lives[0] = len(journal.kept) - lives
        found = measured(name, net, examples, Workspace(8, SEED, dying), coupling=coupling, **few)
        assert found.value == plain.value
        assert found.details == plain.details
        assert all(np.array_equal(found.arrays[key], array) for key, array in plain.arrays.items())
