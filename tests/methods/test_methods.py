"""Standard training, AT and TRADES against naive implementations in float64, and checks of every method."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import naive
from helpers.naive import COUNT, batch, images, inner, network, training
from torch import Tensor, nn

from robflat_bench.attacks.climbers import Objective
from robflat_bench.attacks.engine import TrainingAttack, cross_entropy
from robflat_bench.config.cost import passes_per_image
from robflat_bench.config.protocol import load
from robflat_bench.config.spec import DatasetRef, make_spec
from robflat_bench.core import Batch, Method, Params, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.methods import robflat_bench_methods
from robflat_bench.methods.at import AT
from robflat_bench.methods.losses import divergence, soft_cross_entropy
from robflat_bench.methods.standard import Standard
from robflat_bench.methods.trades import TRADES, TRADESParams
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition, weighted_mean

METHODS = {
    "standard": lambda: Standard(Params()),
    "at": lambda: AT(Params()),
    "trades": lambda: TRADES(TRADESParams(beta=4.5)),
}
DATA = DatasetRef(name="digits", checksum="a" * 64, canonical=True, origin="a test")
EVERY = [info.name for info in robflat_bench_methods()]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return network()


def build(registry, name: str, model: nn.Module) -> tuple[Method, list[nn.Module]]:
    """The method of this name, set up, and its helpers: networks of other seeds."""
    composed = compose(registry, name)
    helpers = {key: network(seed).eval() for seed, key in enumerate(composed.helpers, start=5)}
    composition = Composition(composed)
    composition.setup(training(model, helpers=helpers))
    return composition.method, list(helpers.values())


# ---------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------


def naive_loss(name: str, model: nn.Module, given: Batch, x_adv: Tensor) -> Tensor:
    values = []
    clean = model(given.x) if name in ("standard", "trades") else None
    adversarial = model(x_adv) if name in ("at", "trades") else None
    for i in range(COUNT):
        if name == "at":
            value = naive.cross_entropy(naive.probabilities(adversarial[i]), given.target[i])
        else:
            value = naive.cross_entropy(naive.probabilities(clean[i]), given.target[i])
        if name == "trades":
            p, q = naive.probabilities(clean[i]), naive.probabilities(adversarial[i])
            value = value + 4.5 * naive.divergence(p, q)
        values.append(value)
    return naive.mean(values, given)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (True, False), (True, True)])
def test_loss_gradient_and_statistics_equal_the_naive_implementation(model, name, soft, weighted):
    given = batch(soft, weighted)
    x_adv = (given.x + 0.1 * torch.sign(images(1) - 0.5)).clamp(0, 1)
    twin = copy.deepcopy(model)
    ours = weighted_mean(METHODS[name]().loss(model, given, x_adv), given.weight)
    naive.assert_same_update(ours, model, naive_loss(name, twin, given, x_adv), twin)


def test_shared_losses_equal_sums_over_classes():
    given = batch(soft=True, weighted=True)
    values = torch.tensor([1.0, 2.0, 3.0, 1e9, 5.0, 6.0], dtype=torch.float64)
    assert weighted_mean(values, given.weight).item() == pytest.approx((0.5 + 4 + 3 + 0 + 15 + 6) / 7.5)
    one, two = (torch.randn(COUNT, 10, generator=generator("logits", k), dtype=torch.float64) for k in (1, 2))
    p, q = ([naive.probabilities(row) for row in logits] for logits in (one, two))
    expected = [float(naive.cross_entropy(p[i], given.target[i])) for i in range(COUNT)]
    assert soft_cross_entropy(one, given.target).tolist() == pytest.approx(expected, rel=1e-12)
    expected = [float(naive.divergence(p[i], q[i])) for i in range(COUNT)]
    assert divergence(one, two).tolist() == pytest.approx(expected, rel=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Inner attacks
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["at", "trades"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_inner_attack_equals_the_naive_loop(model, name, start):
    given = batch(soft=True)
    first = naive.uniform_start(given.x)
    if start == "normal":
        first = given.x + 1e-3 * torch.randn(given.x.shape, generator=generator("attack"), dtype=torch.float64)
    twin = copy.deepcopy(model).eval()
    clean = [[p.detach() for p in naive.probabilities(row)] for row in twin(given.x)]

    def objective(i: int, logits: Tensor) -> Tensor:
        p = naive.probabilities(logits)
        return -torch.log(p[int(given.y[i])]) if name == "at" else naive.divergence(clean[i], p)

    iterates, best = naive.pgd(model, given.x, first, objective, steps=8)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    x_adv = METHODS[name]().attack(model, given, inner(8, start))
    handle.remove()
    if name == "trades":
        assert torch.equal(seen.pop(0), given.x), "the clean prediction comes first"
    assert len(seen) == len(iterates)
    for ours, reference in zip(seen, iterates, strict=True):
        assert torch.allclose(ours, reference, rtol=0, atol=1e-10)
    assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)
    assert not torch.allclose(x_adv, iterates[-1], rtol=0, atol=1e-3), "somewhere an earlier iterate was best"


def test_standard_training_has_no_adversary(model):
    given = batch()
    assert torch.equal(Standard(Params()).attack(model, given, inner()), given.x)
    loss = Standard(Params()).loss(copy.deepcopy(model), given, x_adv=torch.full_like(given.x, torch.nan))
    assert loss.isfinite().all()


def test_at_attacks_the_label_and_learns_the_target(model):
    """Label noise and smoothing change only the target: the attack keeps the true label."""
    given = batch()
    noisy = Batch(given.index, given.x, given.y, given.target.roll(1, dims=1), given.weight)
    x_adv = AT(Params()).attack(model, given, inner())
    assert torch.equal(AT(Params()).attack(model, noisy, inner()), x_adv)
    assert torch.equal(inner()(model, given.x, cross_entropy(given.y)), x_adv)
    losses = [AT(Params()).loss(copy.deepcopy(model), which, x_adv).mean().item() for which in (given, noisy)]
    assert abs(losses[0] - losses[1]) > 0.1


def test_trades_without_divergence_is_standard_training(model):
    given, x_adv = batch(), images(1)
    trades = TRADES(TRADESParams(beta=0)).loss(copy.deepcopy(model), given, x_adv)
    assert torch.allclose(trades, Standard(Params()).loss(copy.deepcopy(model), given, x_adv))


# ---------------------------------------------------------------------------------------------------------
# What every method of the catalogue promises
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_attack_leaves_the_model_in_train_mode_and_untouched(registry, model, name):
    given, (method, _) = batch(), build(registry, name, model)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x_adv = method.attack(model, given, inner())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert x_adv.is_leaf
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 4])
def test_update_costs_the_declared_passes(registry, model, name, steps):
    given, (method, helpers) = batch(progress=0.9), build(registry, name, model)  # late, when all terms are there
    counter = PassCounter(model, *helpers)
    x_adv = method.attack(model, given, inner(steps))
    method.loss(model, given, x_adv).mean().backward()
    counter.remove()
    forward, backward = passes_per_image(compose(registry, name), steps)
    assert (counter.forward, counter.backward) == (forward * COUNT, backward * COUNT)
    model(given.x)
    assert counter.forward == forward * COUNT, "removed, it no longer counts"


# ---------------------------------------------------------------------------------------------------------
# Starts
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_methods_whose_objective_is_stationary_at_the_images_say_so(registry, model, name, monkeypatch):
    """Elsewhere its gradient differs from zero: a divergence from the clean prediction is smallest at the image."""
    slopes: list[float] = []

    def probe(attack: TrainingAttack, network: nn.Module, x: Tensor, objective: Objective) -> Tensor:
        slopes.append(float(attack.gradient(network, x, objective).abs().max()))
        return x

    monkeypatch.setattr(TrainingAttack, "__call__", probe)
    method, _ = build(registry, name, model)
    method.attack(model, batch(progress=0.9), inner())
    stationary = bool(slopes) and max(slopes) < 1e-12
    assert stationary == compose(registry, name).method.info.random_start, slopes


@pytest.mark.parametrize("text", ["trades", "hat", "score", "self-adaptive", "lbgat", "te-trades", "trades+awp"])
def test_a_start_where_the_gradient_is_zero_is_refused_before_training(registry, tiny, text):
    protocol = load(registry, str(tiny), ("recipe.attack_start=zero",))
    with pytest.raises(UsageError, match="start at random"):
        make_spec(registry, protocol, compose(registry, text), DATA, 1)
    make_spec(registry, protocol, compose(registry, "at"), DATA, 1)
