"""Training methods against naive implementations in float64: gradients, inner attacks, statistics, image passes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack, cross_entropy
from robflat_bench.backbones import ResNet8Params
from robflat_bench.backbones.parts import initialize
from robflat_bench.backbones.resnet import resnet8
from robflat_bench.base import Batch, ImageShape, Method, Params
from robflat_bench.methods import TRADESParams, robflat_bench_methods
from robflat_bench.methods.at import AT
from robflat_bench.methods.losses import soft_cross_entropy, weighted_mean
from robflat_bench.methods.standard import Standard
from robflat_bench.methods.trades import TRADES
from robflat_bench.passes import PassCounter
from robflat_bench.randomness import generator

COUNT, CLASSES = 6, 10
METHODS: dict[str, Callable[[], Method]] = {
    "standard": lambda: Standard(Params()),
    "at": lambda: AT(Params()),
    "trades": lambda: TRADES(TRADESParams(beta=4.5)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    """A float64 network in train mode whose running statistics have seen images."""
    shape = ImageShape(1, 8, CLASSES, (0.3,), (0.4,))
    net = resnet8(ResNet8Params(width=4), shape, "relu").double()
    initialize(net, generator(1, "init"))
    net.train()
    with torch.no_grad():
        for step in range(3):
            net(images(step + 10))
    return net


def images(seed: int) -> Tensor:
    return torch.rand(COUNT, 1, 8, 8, generator=generator("images", seed), dtype=torch.float64)


def batch(soft: bool = False, weighted: bool = False) -> Batch:
    """Six images, their labels, and what the loss sees: the labels as they are, or smoothed and weighted."""
    y = torch.tensor([3, 1, 4, 1, 5, 9])
    target = nn.functional.one_hot(y, CLASSES).double()
    if soft:
        target = 0.8 * target + 0.2 / CLASSES
    weight = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.0]) if weighted else torch.ones(COUNT)
    return Batch(torch.arange(COUNT), images(0), y, target, weight.double())


STEP = 0.2  # from one side of the ball to the other, so that the last iterate is often not the best


def inner(steps: int = 3, start: str = "uniform") -> TrainingAttack:
    return TrainingAttack(epsilon=0.1, step=STEP, steps=steps, start=start, bn="eval", source=generator("attack"))


# ---------------------------------------------------------------------------------------------------------
# The naive implementations: one example, one class at a time
# ---------------------------------------------------------------------------------------------------------


def probabilities(logits: Tensor) -> list[Tensor]:
    """p_1 .. p_K of one example."""
    total = sum(torch.exp(z) for z in logits)
    return [torch.exp(z) / total for z in logits]


def naive_divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True))


def naive_cross_entropy(p: list[Tensor], target: Tensor) -> Tensor:
    return -sum(t * torch.log(a) for a, t in zip(p, target, strict=True))


def naive_loss(name: str, model: nn.Module, given: Batch, x_adv: Tensor) -> Tensor:
    values = []
    clean = model(given.x) if name in ("standard", "trades") else None
    adversarial = model(x_adv) if name in ("at", "trades") else None
    for i in range(COUNT):
        if name == "at":
            value = naive_cross_entropy(probabilities(adversarial[i]), given.target[i])
        else:
            value = naive_cross_entropy(probabilities(clean[i]), given.target[i])
        if name == "trades":
            value = value + 4.5 * naive_divergence(probabilities(clean[i]), probabilities(adversarial[i]))
        values.append(given.weight[i] * value)
    return sum(values) / sum(given.weight)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (True, False), (True, True)])
def test_loss_gradient_and_statistics_equal_the_naive_implementation(model, name, soft, weighted):
    given = batch(soft, weighted)
    x_adv = (given.x + 0.1 * torch.sign(images(1) - 0.5)).clamp(0, 1)
    twin = copy.deepcopy(model)
    loss, expected = METHODS[name]().loss(model, given, x_adv), naive_loss(name, twin, given, x_adv)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    expected.backward()
    largest = 0.0
    for (key, ours), naive in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, naive.grad, rtol=0, atol=1e-8), key
        largest = max(largest, float(naive.grad.abs().max()))
    assert largest > 0.1
    for (key, ours), naive in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(ours, naive, rtol=0, atol=1e-12), key


def test_shared_losses_weigh_examples():
    given = batch(soft=True, weighted=True)
    values = torch.tensor([1.0, 2.0, 3.0, 1e9, 5.0, 6.0], dtype=torch.float64)
    assert weighted_mean(values, given).item() == pytest.approx((0.5 + 4 + 3 + 0 + 15 + 6) / 7.5)
    logits = torch.randn(COUNT, CLASSES, generator=generator("logits"), dtype=torch.float64)
    expected = sum(
        float(given.weight[i] * naive_cross_entropy(probabilities(logits[i]), given.target[i])) for i in range(COUNT)
    )
    assert soft_cross_entropy(logits, given).item() == pytest.approx(expected / 7.5, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Inner attacks
# ---------------------------------------------------------------------------------------------------------


def naive_attack(name: str, model: nn.Module, given: Batch, start: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
    """Every iterate of PGD in eval mode, and per example the one with the highest loss, start included."""
    model = copy.deepcopy(model).eval()
    clean = [[p.detach() for p in probabilities(row)] for row in model(given.x)]
    lower, upper = (given.x - 0.1).clamp(min=0), (given.x + 0.1).clamp(max=1)
    current = torch.minimum(torch.maximum(start, lower), upper)
    iterates, best, highest = [], current.clone(), [float("-inf")] * COUNT
    for _ in range(steps + 1):
        variable = current.clone().requires_grad_()
        logits = model(variable)
        losses = []
        for i in range(COUNT):
            adversarial = probabilities(logits[i])
            hard = nn.functional.one_hot(given.y[i], CLASSES)
            losses.append(
                naive_cross_entropy(adversarial, hard) if name == "at" else naive_divergence(clean[i], adversarial)
            )
            if losses[i].item() > highest[i]:
                highest[i] = losses[i].item()
                best[i] = current[i]
        sum(losses).backward()
        iterates.append(current)
        current = torch.minimum(torch.maximum(current + STEP * torch.sign(variable.grad), lower), upper)
    return iterates, best


@pytest.mark.parametrize("name", ["at", "trades"])
@pytest.mark.parametrize("start", ["uniform", "normal"])
def test_inner_attack_equals_the_naive_loop(model, name, start):
    given, source = batch(soft=True), generator("attack")
    if start == "uniform":
        first = given.x + 0.1 * (2 * torch.rand(given.x.shape, generator=source, dtype=torch.float64) - 1)
    else:
        first = given.x + 1e-3 * torch.randn(given.x.shape, generator=source, dtype=torch.float64)
    iterates, best = naive_attack(name, model, given, first, steps=8)
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    x_adv = METHODS[name]().attack(model, given, inner(8, start))
    handle.remove()
    if name == "trades":
        assert torch.equal(seen.pop(0), given.x), "the clean prediction comes first"
    assert len(seen) == len(iterates)
    for ours, naive in zip(seen, iterates, strict=True):
        assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)
    assert not torch.allclose(x_adv, iterates[-1], rtol=0, atol=1e-3), "somewhere an earlier iterate was best"


@pytest.mark.parametrize("name", METHODS)
def test_attack_leaves_the_model_in_train_mode_and_untouched(model, name):
    given, state = batch(), copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    x_adv = METHODS[name]().attack(model, given, inner())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not x_adv.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_standard_training_has_no_adversary(model):
    given = batch()
    assert torch.equal(Standard(Params()).attack(model, given, inner()), given.x)
    loss = Standard(Params()).loss(copy.deepcopy(model), given, x_adv=torch.full_like(given.x, torch.nan))
    assert loss.isfinite()


def test_at_attacks_the_label_and_learns_the_target(model):
    """Label noise and smoothing change the target only: the attack still knows the true label."""
    given = batch()
    noisy = Batch(given.index, given.x, given.y, given.target.roll(1, dims=1), given.weight)
    x_adv = AT(Params()).attack(model, given, inner())
    assert torch.equal(AT(Params()).attack(model, noisy, inner()), x_adv)
    assert torch.equal(inner()(model, given.x, cross_entropy(given.y)), x_adv)
    losses = [AT(Params()).loss(copy.deepcopy(model), which, x_adv).item() for which in (given, noisy)]
    assert abs(losses[0] - losses[1]) > 0.1


def test_trades_without_divergence_is_standard_training(model):
    given, x_adv = batch(), images(1)
    trades = TRADES(TRADESParams(beta=0)).loss(copy.deepcopy(model), given, x_adv)
    assert trades.item() == pytest.approx(Standard(Params()).loss(copy.deepcopy(model), given, x_adv).item())


# ---------------------------------------------------------------------------------------------------------
# Budget
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", robflat_bench_methods(), ids=lambda info: info.name)
@pytest.mark.parametrize("steps", [1, 4])
def test_a_step_costs_what_the_catalogue_says(model, info, steps):
    stated = re.match(r"(T\+)?(\d+) forward, (T\+)?(\d+) backward", info.passes)
    forward, backward = (
        int(constant) + (steps if grows else 0) for grows, constant in (stated.groups()[:2], stated.groups()[2:])
    )
    given, method = batch(), METHODS[info.name]()
    counter = PassCounter(model)
    x_adv = method.attack(model, given, inner(steps))
    method.loss(model, given, x_adv).backward()
    counter.remove()
    assert (counter.forward, counter.backward) == (forward * COUNT, backward * COUNT)
    model(given.x)
    assert counter.forward == forward * COUNT, "removed, it no longer counts"


def test_every_method_of_the_catalogue_is_tested_here():
    assert {info.name for info in robflat_bench_methods()} == METHODS.keys()
