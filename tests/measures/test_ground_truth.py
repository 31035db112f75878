"""Issue 4, "It must show", clause 1: every measure against what is known of it in advance. Clauses 2 and 3 are in
`test_ground_truth_order`. Clauses are quoted above the tests that enforce them; these are proved elsewhere:

| clause                                                     | test                                                   |
|------------------------------------------------------------|--------------------------------------------------------|
| average-, worst-case, layers, l2, reattack and joint       | test_measures: Closed forms                            |
| adaptive-average, lpf, local-entropy, basin-width on a     | test_measures_random: A loss with a known Hessian;     |
| quadratic; pac-bayes-sigma of a threshold                  | An error rate with a known root                        |
| sam, m-sharpness, adaptive-worst, keskar of linear and     | test_measures_ascent: Closed forms and grids;          |
| quadratic losses; pac-bayes-sharpness of a threshold       | PAC-Bayesian sharpness                                 |
| lambda max, traces, weighted, relative flatness, Fisher    | test_measures_curvature: Ground truth, Traces, Relative|
| input-space measures, gradients and norms                  | test_measures_inputs; distance: test_measure_catalogue |
| fold(): equal logits, equal input-space measures           | test_measures_inputs: Folding                          |
| errors of adaptive-average, lpf, local-entropy,            | test_measures_random: ..shrink_with_the_root_of_draws, |
| basin-width, gradient-alignment ~ 1/sqrt(draws)            | test_measures_inputs: ..shrinks_with_their_root        |
| A14: random starts of adaptive-worst                       | test_measures_ascent: test_random_starts_work_and_..   |
| A15: noise of standard deviation sigma, not sigma^2        | test_measures_random: test_pac_bayes_sigma_is_..       |
| A16: local entropy draws with 1/sqrt(gamma), its constant  | test_measures_random: test_local_entropy_is_the_..     |
| has the factor d                                           |                                                        |
| A16: no measure updates running statistics                 | test_conformance: leaves_no_trace                      |
| A17: traces per layer; H of a mean, not of batch means     | test_measures_curvature: Traces, Ground truth          |
| A17: the loss is attacked again at perturbed weights       | test_oracle: ..follow_the_coupling                     |
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ground_truth import (
    ALL,
    HERE,
    TwoLayers,
    declared,
    every_ball,
    every_measure,
    examples_of,
    measured,
    rescaled,
    tight,
    value,
)
from helpers.measures import REGISTRY, Quadratic, highest_in_ball, residual, shares, tangled
from scipy import stats
from torch import Tensor, nn

from robflat_bench.core import Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.curvature.hessian import Hessian
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.weight_space import Ball, WeightSpace

pytestmark = pytest.mark.usefixtures("one_thread")


# ---------------------------------------------------------------------------------------------------------
# "On a quadratic loss with known Hessian every measure with a closed form matches it (Monte Carlo within 3
# standard errors, curvature to 1e-3)": each ball and norm of weight space
# ---------------------------------------------------------------------------------------------------------


def groups(shape: str) -> list[list[int]]:
    """Which of the eight numbers of `Quadratic` (two rows of three, two biases) share a radius."""
    by_tensor = [[0, 1, 2, 3, 4, 5], [6, 7]]
    return {
        "layer": by_tensor,
        "filter": [[0, 1, 2], [3, 4, 5], [6], [7]],
        "element": by_tensor,
        "global": [list(range(8))],
    }[shape]


def half_axes(shape: str, w: np.ndarray) -> np.ndarray:
    """The diagonal of T."""
    return np.abs(w) if shape == "element" else np.ones(8)


def radii(shape: str, norm: str, w: np.ndarray) -> np.ndarray:
    """||T^{-1} w_g||_p of the group of each of the eight numbers."""
    found = np.zeros(8)
    for group in groups(shape):
        inside = [abs(w[i]) if shape != "element" else float(w[i] != 0) for i in group]
        length = math.sqrt(sum(a * a for a in inside)) if norm == "l2" else max(inside)
        found[group] = length
    return found


def flat(nu: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([nu["weight"].flatten(), nu["bias"]]).numpy()


def unflat(v: np.ndarray) -> dict[str, Tensor]:
    given = torch.from_numpy(v.copy())
    return {"weight": given[:6].view(2, 3), "bias": given[6:]}


def with_zeros() -> Quadratic:
    """A filter of zeros, a single weight of zero, a bias of zero."""
    model = Quadratic()
    with torch.no_grad():
        model.weight[0] = 0
        model.weight[1, 1] = 0
        model.bias[0] = 0
    return model


def weights(model: Quadratic) -> np.ndarray:
    w: np.ndarray = model.flat().detach().numpy()
    return w


def lengths(shape: str, norm: str, w: np.ndarray, nu: np.ndarray) -> list[float]:
    """||T^{-1} nu_g||_p of each group; T z is at rest where T is 0."""
    t = half_axes(shape, w)
    assert not nu[t == 0].any()
    z = np.divide(nu, t, out=np.zeros(8), where=t > 0)
    return [float(np.linalg.norm(z[group], 2 if norm == "l2" else np.inf)) for group in groups(shape)]


@every_ball
@pytest.mark.parametrize("make", [Quadratic, with_zeros])
def test_draws_have_the_radius_of_every_group(shape, norm, make):
    """On the sphere exactly, in the box and the ball at most; zero weights take no part of an adaptive radius."""
    model, xi = make(), 0.3
    w, space = weights(model), WeightSpace(model, ball=Ball(shape, norm))
    wanted = [xi * radii(shape, norm, w)[group[0]] for group in groups(shape)]
    for draw in range(40):
        found = lengths(shape, norm, w, flat(space.on_sphere(xi, draw)))
        if norm == "l2":
            assert found == pytest.approx(wanted, rel=1e-12, abs=1e-15)
        assert all(a <= b * (1 + 1e-12) for a, b in zip(found, wanted, strict=True))
        inside = lengths(shape, norm, w, flat(space.in_ball(xi, draw)))
        assert all(a <= b * (1 + 1e-12) for a, b in zip(inside, wanted, strict=True))


def variance(shape: str, norm: str, w: np.ndarray, xi: float) -> np.ndarray:
    """E nu_i^2: xi^2 r_g^2 T_i^2 / d_g on the sphere, / 3 in the box."""
    share = np.full(8, 1 / 3)
    if norm == "l2":
        for group in groups(shape):
            share[group] = 1 / len(group)
    result: np.ndarray = (xi * radii(shape, norm, w) * half_axes(shape, w)) ** 2 * share
    return result


@every_ball
def test_second_moment_of_every_ball(shape, norm):
    """E[nu nu'] is diagonal: isotropic in a group, independent between groups."""
    model, xi, count = Quadratic(), 0.3, 2000
    space = WeightSpace(model, ball=Ball(shape, norm))
    draws = np.stack([flat(space.on_sphere(xi, draw)) for draw in range(count)])
    standard = draws / np.sqrt(variance(shape, norm, weights(model), xi))
    assert np.abs(standard.T @ standard / count - np.eye(8)).max() < 0.13
    assert np.abs(standard.mean(0)).max() < 0.1


@every_ball
def test_a_start_is_spread_over_its_ball(shape, norm):
    """The radius of each group U(0,1) of its own (l2), every coordinate U(-1,1) (linf)."""
    model, count = Quadratic(), 500
    w, space = weights(model), WeightSpace(model, ball=Ball(shape, norm))
    draws = np.stack([flat(space.in_ball(0.3, draw)) for draw in range(count)])
    if norm == "linf":
        share = draws / (0.3 * radii(shape, norm, w) * half_axes(shape, w))
        assert all(stats.kstest(column, "uniform", (-1, 2)).pvalue > 1e-3 for column in share.T)
        return
    wanted = np.array([0.3 * radii(shape, norm, w)[group[0]] for group in groups(shape)])
    share = np.stack([lengths(shape, norm, w, nu) for nu in draws]) / wanted
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in share.T)
    if share.shape[1] > 1:
        assert np.abs(np.corrcoef(share.T) - np.eye(share.shape[1])).max() < 0.2


def naive_step(shape: str, norm: str, w: np.ndarray, nu: np.ndarray, g: np.ndarray, size: float, xi: float) -> Any:
    """Ascent and projection, group by group and number by number."""
    t, made = half_axes(shape, w), np.zeros(8)
    for group in groups(shape):
        r = radii(shape, norm, w)[group[0]]
        slope = [t[i] * g[i] for i in group]
        steep = math.sqrt(sum(s * s for s in slope))
        z = [nu[i] / t[i] if t[i] > 0 else 0.0 for i in group]
        for k, s in enumerate(slope):
            if norm == "l2":
                z[k] += size * r * s / steep if steep > 0 else 0.0
            else:
                z[k] += size * r * float(np.sign(s))
        if norm == "l2":
            length = math.sqrt(sum(a * a for a in z))
            z = [a * xi * r / length if length > xi * r else a for a in z]
        else:
            z = [min(max(a, -xi * r), xi * r) for a in z]
        made[group] = [t[i] * a for i, a in zip(group, z, strict=True)]
    return made


@every_ball
@pytest.mark.parametrize("make", [Quadratic, with_zeros])
@pytest.mark.parametrize("size", [0.02, 0.5])
def test_step_and_projection_equal_naive_loops(shape, norm, make, size):
    model, xi = make(), 0.2
    w, space = weights(model), WeightSpace(model, ball=Ball(shape, norm))
    outside = 0
    for seed in range(5):
        nu = flat(space.in_ball(xi, seed))
        g = np.random.default_rng(seed).normal(size=8)
        g[[6, 7] if seed % 2 else [0]] = 0  # a group, or a part of one, without gradient
        expected = naive_step(shape, norm, w, nu, g, size, xi)
        found = flat(space.step(unflat(nu), unflat(g), size, xi))
        assert found == pytest.approx(expected, abs=1e-12)
        outside += not np.allclose(expected, naive_step(shape, norm, w, nu, g, size, 1e9))
    assert outside or size < xi, "the projection had something to do"


@every_ball
def test_average_case_of_a_quadratic_in_every_ball(shape, norm):
    """Half the trace of Hessian times covariance, as the odd terms average out."""
    model, xi = Quadratic(slope=False), 0.3
    found = measured("average-case", model, shares(0.5), coupling="clean", ball=shape, norm=norm, xi=xi, draws=500)
    truth = float(variance(shape, norm, weights(model), xi) @ model.hessian.diagonal().numpy()) / 2
    error = found.details["standard_error_draws"]
    assert abs(found.value - truth) <= 3 * error
    assert 0 < error < 0.07 * truth, "three standard errors must mean something"


CORNERS = np.array(list(itertools.product([-1.0, 1.0], repeat=8)))


def worst(model: Quadratic, shape: str, norm: str, xi: float) -> float:
    """A box has many corners that are higher than their neighbours, each a step or two from where an ascent begins."""
    climbs = {"restarts": 5, "steps": 50, "weight_step": xi} if norm == "l2" else {"restarts": 60, "steps": 4}
    examples = shares(0.5)
    return measured("worst-case", model, examples, coupling="clean", ball=shape, norm=norm, xi=xi, **climbs).value


@every_ball
def test_worst_case_of_a_linear_loss_in_every_ball(shape, norm):
    """sum_g xi r_g ||T g_g||_q, q dual to p."""
    model, xi = Quadratic(), 0.2
    model.hessian.zero_()
    w, slope = weights(model), model.slope.numpy()
    slopes, r = half_axes(shape, w) * slope, radii(shape, norm, w)
    dual = [float(np.linalg.norm(slopes[group], 2 if norm == "l2" else 1)) for group in groups(shape)]
    expected = xi * sum(r[group[0]] * length for group, length in zip(groups(shape), dual, strict=True))
    assert worst(model, shape, norm, xi) == pytest.approx(expected, rel=1e-9)


@every_ball
def test_worst_case_of_a_quadratic_in_every_ball(shape, norm):
    """l2, a Hessian of one block per group: each group's trust region. linf: the highest of all corners."""
    model, xi = Quadratic(), 0.2
    w, slope = weights(model), model.slope
    t, r = half_axes(shape, w), xi * radii(shape, norm, w)
    if norm == "linf":
        corners = CORNERS * t * r
        hessian = model.hessian.numpy()
        expected = float((corners @ slope.numpy() + (corners @ hessian * corners).sum(1) / 2).max())
    else:
        blocks = torch.zeros(8, 8, dtype=torch.float64)
        for group in groups(shape):
            blocks[np.ix_(group, group)] = model.hessian[np.ix_(group, group)]
        model.hessian.copy_(blocks)
        scale = torch.from_numpy(t)
        expected = sum(
            highest_in_ball(
                (scale * slope)[group], (scale[:, None] * blocks * scale)[np.ix_(group, group)], r[group[0]]
            )
            for group in groups(shape)
        )
    found = worst(model, shape, norm, xi)
    assert found == pytest.approx(expected, rel=1e-3)
    assert found <= expected * (1 + 1e-9)


# ---------------------------------------------------------------------------------------------------------
# "on a two-layer ReLU net the declared invariances hold to 1e-5 and the declared non-invariances move by the right
# power, checked on the scaled tensors only"
# ---------------------------------------------------------------------------------------------------------


def factor(text: str) -> float:
    """pac-bayes-sharpness searches on a ladder of powers of 4."""
    return 4.0 if text.startswith("pac-bayes-sharpness") else 3.0


def powers() -> Iterator[tuple[str, str, float]]:
    for text in ALL:
        for kind, power in declared(text).powers.items():
            yield text, kind, power


@pytest.mark.parametrize("kind", ["layers", "filters", "units"])
def test_rescalings_keep_the_function_and_the_net_is_awake(kind):
    net, other = rescaled(kind, 1.0, True), rescaled(kind, 3.0, True)
    x = examples_of(net, 200).x
    assert torch.allclose(net(x), other(x), rtol=0, atol=1e-12)
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert len(net(x).argmax(1).unique()) == 3
    doubled = rescaled("logits", 2.0, True)
    assert torch.allclose(doubled(x), 2 * rescaled("logits", 1.0, True)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("text", "kind", "power"), list(powers()))
def test_a_declared_rescaling_moves_the_value_by_its_power(text, kind, power):
    """0: with a last layer that moves, and takes its part in the value. Else only the scaled tensors move."""
    before, after = (value(text, kind, c, moving_head=power == 0) for c in (1.0, factor(text)))
    assert before != 0
    assert after == pytest.approx(before * factor(text) ** power, rel=1e-5)


UNDECLARED = [
    (text, kind)
    for text in ALL
    for kind in ("layers", "filters", "units", "logits")
    if kind not in declared(text).powers and "frozen" not in text and "reattack" not in text and "joint" not in text
]


@pytest.mark.parametrize(("text", "kind"), UNDECLARED)
def test_an_undeclared_rescaling_moves_the_value_by_no_fixed_power(text, kind):
    """So that no declaration is missing."""
    moving_head = kind in ("units", "logits")
    values = [value(text, kind, c, moving_head=moving_head) for c in (1.0, 2.0, 4.0)]
    assert values[2] / values[1] != pytest.approx(values[1] / values[0], rel=1e-5), values


# ---------------------------------------------------------------------------------------------------------
# "logit scaling changes exactly the measures that say so"
# ---------------------------------------------------------------------------------------------------------

NORMALISED = [
    name for name in REGISTRY.names("measure") if "normalised" in str(declared(name).params.model_fields.get("logits"))
]
ABSOLUTE = {"lpf", "sam-sharpness", "m-sharpness", "keskar", "hessian-lambda-max", "hessian-trace"}
ABSOLUTE |= {"pac-bayes-sharpness", "weight-gradient-norm", "soft-rank"}
"""Of which a last layer that moves shows its size."""


def clean(name: str, c: float, moving_head: bool, **changes: Any) -> float:
    return value(f"{name}(coupling=clean)", "logits", c, moving_head=moving_head, **changes)


def test_measures_that_read_a_loss_can_normalise_its_logits():
    assert len(NORMALISED) == 21
    assert set(NORMALISED) > ABSOLUTE


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_logits_hide_their_scale_and_plain_ones_do_not(name):
    """The last layer does not move, so its scale only scales the logits. Error rates do not depend on it."""
    plain = [clean(name, c, False) for c in (1.0, 3.0)]
    same = [clean(name, c, False, logits="normalised") for c in (1.0, 3.0)]
    assert same[1] == pytest.approx(same[0], rel=1e-5) != 0
    if name != "pac-bayes-sharpness":
        assert plain[1] != pytest.approx(plain[0], rel=1e-3)


@pytest.mark.parametrize("name", NORMALISED)
def test_a_last_layer_that_moves_shows_its_scale_in_absolute_measures_only(name):
    before, after = (clean(name, c, True, logits="normalised") for c in (1.0, 3.0))
    assert (after == pytest.approx(before, rel=1e-5)) == (name not in ABSOLUTE), (before, after)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("pac-bayes-sigma", {"coupling": "clean"}, lambda value, c: value),
        ("margin", {"kind": "logit", "coupling": "clean"}, lambda value, c: c * value),
        ("local-lipschitz", {}, lambda value, c: c * value),
        ("spectral-norm", {}, lambda value, c: value + math.log(c)),
    ],
)
def test_what_else_the_scale_of_logits_does(name, params, expected):
    before, after = (value(name, "logits", c, moving_head=False, **params) for c in (1.0, 3.0))
    assert after == pytest.approx(expected(before, 3.0), rel=1e-5)


def test_path_norm_adds_twice_the_logarithm_of_the_scale_of_logits():
    before, after = (value("path-norm", "logits", c, moving_head=True) for c in (1.0, 3.0))
    assert after == pytest.approx(before + 2 * math.log(3), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------
# "BN-folded and unfolded networks agree to 1e-5 in logits and input-space measures, and a folded engine draws in the
# unfolded parameters (weight-space values equal to 1e-10 in float64)"
# ---------------------------------------------------------------------------------------------------------

ENGINES = ("measures.oracle", "measures.flatness.worst_case", "attacks.pgd", "attacks.engine")


@pytest.fixture
def unfolded(monkeypatch):
    """unfolded(): from here on, no engine folds. How often one had done so is counted before."""
    counts = []

    def counting(model: nn.Module, x: Tensor) -> Any:
        counts.append(model)
        return folded(model, x)

    def replace(context: Any) -> None:
        for module in ENGINES:
            monkeypatch.setattr(f"robflat_bench.{module}.folded", context)

    replace(counting)

    def stop() -> int:
        replace(lambda model, x: nullcontext())
        return len(counts)

    return stop


@pytest.mark.parametrize(
    ("make", "shape", "left"),
    [
        (TwoLayers, (1, 4, 4), 0),
        (partial(residual, "resnet8"), (3, 16, 16), 0),
        (partial(residual, "preact"), (3, 16, 16), 9),
        (tangled, (2, 5, 5), 3),
    ],
    ids=["row", "resnet8", "preact", "tangled"],
)
@pytest.mark.parametrize("failing", [False, True])
def test_the_folded_context_keeps_logits_and_gives_every_parameter_back(make, shape, left, failing):
    model = make().double()
    x = torch.rand(5, *shape, generator=generator("fold"), dtype=torch.float64)
    own, bits = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        logits = model(x)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    context = pytest.raises(KeyError) if failing else nullcontext()
    with context, folded(model, x), torch.no_grad():
        assert torch.allclose(model(x), logits, rtol=1e-10, atol=1e-10)
        assert sum("forward" not in vars(module) for module in norms) == left
        if failing:
            raise KeyError("inside")
    assert dict(model.named_parameters()).keys() == own.keys()
    assert all(parameter is own[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(tensor, bits[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in norms)
    with torch.no_grad():
        assert torch.equal(model(x), logits)


@every_measure
def test_no_measure_sees_whether_its_engine_folds(text, unfolded):
    name, params = text.partition("(")[0], tight(text)
    model = rescaled("filters", 3.0, True)
    examples = examples_of(model)
    found = measured(model=model, examples=examples, place=HERE, **params)
    folds = unfolded()
    again = measured(model=model, examples=examples, place=HERE, **params)
    assert again.value == pytest.approx(found.value, rel=1e-10, abs=1e-10)
    if name in ("average-case", "worst-case", "lpf", "local-entropy", "pac-bayes-sigma", "basin-width"):
        assert folds > 1


@every_ball
@pytest.mark.parametrize("text", [text for text in ALL if text.startswith(("average-case", "worst-case"))])
def test_draws_and_ascents_of_every_ball_move_unfolded_parameters(text, shape, norm, unfolded):
    warm = {"warm": "true"} if "reattack" in text or "joint" in text else {}
    params = tight(text, ball=shape, norm=norm, xi=0.1, **warm)
    model = rescaled("filters", 3.0, True)
    before, examples = dict(model.named_parameters()), examples_of(model, 12)
    found = measured(model=model, examples=examples, place=HERE, **params)
    assert unfolded() > (0 if "worst-case(coupling=clean" in text else 1)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    again = measured(model=model, examples=examples, place=HERE, **params)
    assert found.arrays["losses"].mean() != pytest.approx(found.arrays["reference"].mean(), rel=1e-3)
    for key, array in found.arrays.items():
        assert again.arrays[key] == pytest.approx(array, rel=1e-10, abs=1e-10), key


@pytest.mark.parametrize("text", [text for text in ALL if text.startswith(("average-case", "worst-case"))])
def test_a_measure_that_fails_in_the_folded_network_gives_every_parameter_back(text):
    model, params, calls = TwoLayers(), tight(text), []
    before, examples = dict(model.named_parameters()), examples_of(model, 12)

    def fail_when_folded(module: Any, inputs: Any) -> None:
        calls.append(module.conv1.weight is not before["conv1.weight"])
        if calls[-1] and sum(calls) > 2:
            raise InterruptedError("a kill")

    handle = model.register_forward_pre_hook(fail_when_folded)
    never = "worst-case(coupling=clean" in text and not any(calls)
    with nullcontext() if never else pytest.raises(InterruptedError):
        measured(model=model, examples=examples, place=HERE, **params)
    handle.remove()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not any("forward" in vars(module) for module in model.modules())


# ---------------------------------------------------------------------------------------------------------
# "standard errors shrink as 1/sqrt(draws), and Student-t 95 % intervals of measures that are means of draws cover the
# truth in 92 to 98 % of 500 repetitions"
# ---------------------------------------------------------------------------------------------------------


def truth(name: str, params: dict[str, Any]) -> float:
    """On `Quadratic`, in closed form."""
    model = Quadratic()
    w, curvature = weights(model), model.hessian.diagonal().numpy()
    if name == "average-case":
        return float(variance("layer", "l2", w, params["xi"]) @ curvature) / 2
    if name == "adaptive-average":
        return float((params["rho"] * w) ** 2 @ curvature) / 2
    if name == "lpf":
        return params["std"] ** 2 * float(curvature.sum()) / 2
    return float(curvature.sum() if name == "hessian-trace" else w**2 @ curvature)


MEANS: dict[str, tuple[str, dict[str, Any]]] = {
    "average-case": ("draws", {"xi": 0.3}),
    "adaptive-average": ("draws", {"rho": 0.2}),
    "lpf": ("draws", {"std": 0.2}),
    "hessian-trace": ("probes", {}),
    "weighted-curvature": ("probes", {}),
}


@pytest.mark.parametrize("name", MEANS)
def test_standard_errors_shrink_with_the_root_of_draws(name):
    count, params = MEANS[name]
    found = [measured(name, Quadratic(), shares(), coupling="clean", **params, **{count: draws}) for draws in (60, 540)]
    errors = [one.standard_error for one in found]
    assert errors[0] / errors[1] == pytest.approx(3, rel=0.2)
    assert abs(found[1].value - truth(name, params)) <= 3 * errors[1]


@pytest.mark.parametrize("name", MEANS)
def test_student_intervals_cover_the_truth(name, monkeypatch):
    """Products with the Hessian, proved elsewhere, are those of its matrix here."""
    product = nullcontext(lambda v: model.hessian.numpy() @ v)
    monkeypatch.setattr(Hessian, "products", lambda *_: product)
    count, params = MEANS[name]
    draws, covered = 10 if count == "draws" else 30, 0
    reach, wanted, model = stats.t.ppf(0.975, draws - 1), truth(name, params), Quadratic()
    for seed in range(500):
        found = measured(name, model, shares()[:1], Workspace(seed=seed), coupling="clean", **params, **{count: draws})
        error = found.details.get("standard_error_draws", found.standard_error)
        covered += abs(found.value - wanted) <= reach * error
    assert 0.92 <= covered / 500 <= 0.98
