"""ReBAT, KD, temporal ensembling and LBGAT against naive implementations in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import naive
from helpers.naive import CLASSES, COUNT, at, batch, images, inner, network, training
from torch import Tensor, nn

from robflat_bench.core import Batch, Method, Moment
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.passes import PassCounter, counted_copy
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition, weighted_mean

KINDS = [(False, False), (True, True)]
"""Soft targets, weights."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return network()


def composed(registry, text: str, model: nn.Module, **changes: object) -> Composition:
    made = Composition(compose(registry, text))
    made.setup(training(model, **changes))
    return made


def adversarial(given: Batch) -> Tensor:
    return (given.x + 0.1 * torch.sign(images(1) - 0.5)).clamp(0, 1)


def error(logits: Tensor, given: Batch, i: int) -> Tensor:
    return naive.cross_entropy(naive.probabilities(logits[i]), given.target[i])


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)
    model.zero_grad(set_to_none=True)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# ---------------------------------------------------------------------------------------------------------
# ReBAT
# ---------------------------------------------------------------------------------------------------------


def naive_average(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    counts = {name: tensor for name, tensor in current.items() if not tensor.is_floating_point()}
    return {name: decay * average[name] + (1 - decay) * current[name] for name in current} | counts


@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_rebat_loss_and_average_equal_the_naive_implementation(registry, model, soft, weighted):
    """Four updates around the start; the loss is evaluated twice in each."""
    method = composed(registry, "rebat(beta=2, decay=0.7, start=0.5)", model).method
    average = tensors(model)
    for update, progress in enumerate((0.4, 0.5, 0.6, 0.7)):
        given = at(batch(soft, weighted, progress), update=update)
        x_adv, twin, other = adversarial(given), copy.deepcopy(model), network()
        other.load_state_dict(average)
        method.loss(copy.deepcopy(model), given, x_adv)
        ours = weighted_mean(method.loss(model, given, x_adv), given.weight)
        logits, held = twin(x_adv), other.eval()(x_adv).detach()
        values = []
        for i in range(COUNT):
            p, q = naive.probabilities(held[i]), naive.probabilities(logits[i])
            divergence = naive.divergence(p, q) if progress >= 0.5 else 0
            values.append(error(logits, given, i) + 2 * divergence)
        naive.assert_same_update(ours, model, naive.mean(values, given), twin)
        descend(model)
        method.after_step(model, given.moment)
        average = naive_average(average, tensors(model), 0.7 if progress >= 0.5 else 0.0)
        found = method.evaluated(tensors(model))
        assert found.keys() == average.keys()
        assert all(torch.allclose(found[name], average[name], rtol=0, atol=1e-12) for name in average)
    apart = (float((average[name] - tensor.detach()).abs().max()) for name, tensor in model.named_parameters())
    assert max(apart) > 1e-3, "the average is not the network itself"


def test_rebat_is_at_until_its_start_and_evaluates_the_network(registry, model):
    twin = copy.deepcopy(model)
    results = []
    for text, net in (("rebat", model), ("at", twin)):
        composition = composed(registry, text, net)
        optimizer = torch.optim.SGD(composition.parameters(net), lr=0.1)
        losses = [composition.update(net, at(batch(progress=0.52), update=u), inner(), optimizer) for u in range(2)]
        results.append((losses, composition.evaluated(net, Moment())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(tensor, results[1][1][name]) for name, tensor in results[0][1].items())


def test_rebat_averages_after_each_update_with_its_modifiers(registry, model):
    """0.25 w_0 + 0.25 w_1 + 0.5 w_2, of weights that are clipped already."""
    composition = composed(registry, "rebat(start=0, decay=0.5)+weight-clipping(limit=0.05)", model)
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1)
    states = [tensors(model)]
    for update in range(2):
        composition.update(model, at(batch(), update=update), inner(), optimizer)
        states.append(tensors(model))
    found = composition.evaluated(model, Moment())
    for name, parameter in model.named_parameters():
        expected = sum(factor * state[name] for factor, state in zip((0.25, 0.25, 0.5), states, strict=True))
        assert torch.allclose(found[name], expected, rtol=0, atol=1e-12)
        if parameter.ndim > 1:
            assert float(states[1][name].abs().max()) <= 0.05 < float(states[0][name].abs().max())


def test_resumed_rebat_has_the_same_average(registry, model):
    one, other = (composed(registry, "rebat(start=0)", net) for net in (model, network(2)))
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    one.method.after_step(model, Moment())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    found, expected = (each.evaluated(model, Moment()) for each in (other, one))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_passes_of_a_counted_copy_are_the_networks(model):
    early = PassCounter(model)
    other = counted_copy(model)
    late = PassCounter(model)
    other(images(0)).sum().backward()
    assert (early.forward, early.backward) == (late.forward, late.backward) == (COUNT, COUNT)
    early.remove(), late.remove()
    other(images(0))
    assert early.forward == late.forward == COUNT
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------
# KD
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_kd_equals_the_naive_implementation(registry, model, soft, weighted):
    teachers = {name: network(seed).eval() for seed, name in ((5, "standard"), (6, "robust"))}
    text = "kd(labels=0.4, standard=0.2, robust=0.9, temperature=3)"
    method = composed(registry, text, model, helpers=teachers).method
    given, twin = batch(soft, weighted), copy.deepcopy(model)
    x_adv = adversarial(given)
    ours = weighted_mean(method.loss(model, given, x_adv), given.weight)
    logits, values = twin(x_adv), []
    for i in range(COUNT):
        value, p = 0.4 * error(logits, given, i), naive.probabilities(logits[i] / 3)
        for weight, teacher in ((0.2, teachers["standard"]), (0.9, teachers["robust"])):
            taught = naive.probabilities(teacher(x_adv)[i].detach() / 3)
            value = value + weight * 9 * naive.divergence(taught, p)
        values.append(value)
    naive.assert_same_update(ours, model, naive.mean(values, given), twin)


# ---------------------------------------------------------------------------------------------------------
# Temporal ensembling
# ---------------------------------------------------------------------------------------------------------


class Ensemble:
    """t_i of each image in a dictionary by index, and the penalty's weight."""

    def __init__(self, start: float, ramp: float) -> None:
        self.start, self.ramp, self.held = start, ramp, {}

    def move(self, model: nn.Module, given: Batch) -> list[list[float]]:
        """s_i of a batch."""
        logits, wanted = copy.deepcopy(model).eval()(given.x).detach(), []
        for i, index in enumerate(given.index.tolist()):
            before = self.held.get(index, [0.0] * CLASSES)
            p = [float(value) for value in naive.probabilities(logits[i])]
            moved = [0.9 * t + 0.1 * a for t, a in zip(before, p, strict=True)]
            if index >= 0:
                self.held[index] = moved
            wanted.append([t / sum(moved) for t in moved])
        return wanted

    def penalty(self, logits: Tensor, wanted: list[float], progress: float) -> Tensor:
        phase = 1 - min(1, (progress - self.start) / self.ramp)
        p = naive.probabilities(logits)
        return 300 * math.exp(-5 * phase * phase) * sum((a - s) ** 2 for a, s in zip(p, wanted, strict=True)) / CLASSES


ROWS = [[0, 1, 2, 3, 4, 5], [4, 2, -1, 0, 3, 1], [-1, 3, 5, 2, 0, 4]]


@pytest.mark.parametrize("name", ["te", "te-trades"])
@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_temporal_ensembling_equals_the_naive_implementation(registry, model, name, soft, weighted):
    """Attack and loss of three updates with other orders and one image from elsewhere: at the start, in the ramp and
    after it."""
    method, reference = composed(registry, name, model).method, Ensemble(0.45, 0.3)
    for progress, index in zip((0.45, 0.6, 0.8), ROWS, strict=True):
        given = replace(batch(soft, weighted, progress), index=torch.tensor(index))
        wanted, clean = reference.move(model, given), copy.deepcopy(model).eval()(given.x).detach()

        def objective(i: int, logits: Tensor, given=given, wanted=wanted, clean=clean, progress=progress) -> Tensor:
            p = naive.probabilities(logits)
            change = 6 * naive.divergence(naive.probabilities(clean[i]), p)
            climbed = -torch.log(p[int(given.y[i])]) if name == "te" else change
            return climbed + reference.penalty(logits, wanted[i], progress)

        _, best = naive.pgd(model, given.x, naive.uniform_start(given.x), objective, 3)
        x_adv, twin = method.attack(model, given, inner()), copy.deepcopy(model)
        assert torch.allclose(x_adv, best, rtol=0, atol=1e-12)
        method.loss(copy.deepcopy(model), given, x_adv)
        ours = weighted_mean(method.loss(model, given, x_adv), given.weight)
        plain, values = twin(given.x) if name == "te-trades" else None, []
        perturbed = twin(x_adv)
        fitted = perturbed if plain is None else plain
        for i in range(COUNT):
            value = error(fitted, given, i) + reference.penalty(fitted[i], wanted[i], progress)
            if plain is not None:
                p, q = naive.probabilities(plain[i]), naive.probabilities(perturbed[i])
                value = value + 6 * naive.divergence(p, q)
            values.append(value)
        naive.assert_same_update(ours, model, naive.mean(values, given), twin)
        descend(model)
    held = torch.tensor([reference.held[i] for i in range(COUNT)], dtype=torch.float64)
    assert torch.allclose(method.state_dict()["labels"], held, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "base"), [("te", "at"), ("te-trades", "trades")])
def test_temporal_ensembling_is_its_base_until_its_start(registry, model, name, base):
    given = batch(soft=True, weighted=True, progress=0.44)
    method, plain = (composed(registry, text, model).method for text in (name, base))
    x_adv = method.attack(model, given, inner())
    assert torch.equal(x_adv, plain.attack(model, given, inner()))
    losses = [one.loss(copy.deepcopy(model), given, x_adv) for one in (method, plain)]
    assert torch.equal(*losses)
    assert not method.labels.any()


@pytest.mark.parametrize("name", ["te(start=0)", "te-trades(start=0)"])
def test_resumed_temporal_ensembling_remembers_predictions(registry, model, name):
    first, second = (at(batch(progress=0.8), update=update) for update in (0, 1))
    method, resumed, fresh = (composed(registry, name, model).method for _ in range(3))
    method.attack(model, first, inner())
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    with torch.no_grad():
        next(model.parameters()).add_(0.2 * torch.randn(1, generator=generator("move"), dtype=torch.float64))
    results: list[Tensor] = []
    for one in (method, resumed, fresh):
        x_adv = one.attack(model, second, inner())
        results.append(one.loss(copy.deepcopy(model), second, x_adv))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------
# LBGAT
# ---------------------------------------------------------------------------------------------------------


def guide_of(method: Method) -> nn.Module:
    (guide,) = method.parts().values()
    return guide


@pytest.mark.parametrize("beta", [0, 6])
def test_lbgat_equals_the_naive_implementation(registry, model, beta):
    method = composed(registry, f"lbgat(beta={beta})", model).method
    given, twin, guide = batch(soft=True, weighted=True), copy.deepcopy(model), copy.deepcopy(guide_of(method))
    x_adv = adversarial(given)
    ours = weighted_mean(method.loss(model, given, x_adv), given.weight)
    perturbed, clean, wanted, values = twin(x_adv), twin(given.x), guide(given.x), []
    for i in range(COUNT):
        distance = sum((perturbed[i, k] - wanted[i, k]) ** 2 for k in range(CLASSES)) / CLASSES
        p, q = naive.probabilities(clean[i]), naive.probabilities(perturbed[i])
        values.append(distance + error(wanted, given, i) + beta * naive.divergence(p, q))
    both = [nn.ModuleList([one, other]) for one, other in ((model, guide_of(method)), (twin, guide))]
    naive.assert_same_update(ours, both[0], naive.mean(values, given), both[1])


def test_the_guide_of_lbgat_begins_apart_and_depends_on_the_seed(registry, model):
    guides = [guide_of(composed(registry, "lbgat", model, seed=seed).method) for seed in (0, 0, 1)]
    weights = [net.network.head.weight for net in (model, *guides)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
