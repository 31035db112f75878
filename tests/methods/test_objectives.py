"""IKL and SORA against naive implementations, and what they remember from update to update."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import naive
from helpers.naive import CLASSES, COUNT, EPSILON, batch, images, inner, network, training
from torch import Tensor, nn

from robflat_bench.core import Batch, Method, Moment
from robflat_bench.core.randomness import generator
from robflat_bench.methods.ikl import weighted_variance
from robflat_bench.methods.sora import SORA, SORAParams, alignment
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition, weighted_mean

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return network()


def composed(registry, text: str, model: nn.Module) -> Composition:
    composition = Composition(compose(registry, text))
    composition.setup(training(model))
    return composition


def drawn(purpose: str) -> Tensor:
    """U(0,1), keyed by the moment of `batch()`."""
    return torch.rand(COUNT, 1, 8, 8, generator=generator(7, purpose, 2, 3), dtype=torch.float64)


def positive(rows: int, classes: int) -> Tensor:
    return torch.rand(rows, classes, generator=generator("weights", classes), dtype=torch.float64) + 0.01


# ---------------------------------------------------------------------------------------------------------
# IKL: the loss
# ---------------------------------------------------------------------------------------------------------


def pairwise(difference: Tensor, weights: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k (d_j - d_k)^2 / sum_jk w_j w_k of one example, pair by pair."""
    pairs = [(j, k) for j in range(len(weights)) for k in range(len(weights))]
    total = sum(weights[j] * weights[k] for j, k in pairs)
    return sum(weights[j] * weights[k] * (difference[j] - difference[k]) ** 2 for j, k in pairs) / total / 4


@pytest.mark.parametrize("classes", [2, 10, 40])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_half_the_weighted_variance_is_the_sum_over_all_pairs(classes, offset):
    """Logits are defined up to a constant, and a large one must not cancel the digits."""
    weights = positive(3, classes)
    difference = torch.randn(3, classes, generator=generator("difference"), dtype=torch.float64)
    ours = weighted_variance(difference + offset, weights) / 2
    expected = torch.stack([pairwise(d, w) for d, w in zip(difference, weights, strict=True)])
    assert torch.allclose(ours, expected, rtol=1e-9 if offset else 1e-13, atol=0)
    assert torch.equal(weighted_variance(difference, 4 * weights) / 2, weighted_variance(difference, weights) / 2)


def naive_ikl(twin: nn.Module, given: Batch, x_adv: Tensor, weights: Tensor) -> list[Tensor]:
    """alpha 3, beta 7, gamma 0.5, T 2; the class weights of a label are a row of `weights`."""
    clean, adversarial = twin(given.x), twin(x_adv)
    values = []
    for i in range(COUNT):
        z, z_adv = clean[i], adversarial[i]
        squares = pairwise(z - z_adv, torch.sqrt(weights[int(given.y[i])]))
        fixed = [p.detach() for p in naive.probabilities(z / 2)]
        soft = -sum(p * torch.log(q) for p, q in zip(fixed, naive.probabilities(z_adv / 2), strict=True))
        values.append(naive.cross_entropy(naive.probabilities(z), given.target[i]) + 7 * squares + 3 * soft)
    return values


@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (True, True)])
def test_ikl_loss_gradient_and_statistics_equal_the_naive_implementation(registry, model, soft, weighted):
    given = batch(soft, weighted)
    method = composed(registry, "ikl(alpha=3, beta=7, gamma=0.5, temperature=2)", model).method
    method.weights = positive(CLASSES, CLASSES)
    x_adv = (given.x + EPSILON * torch.sign(images(1) - 0.5)).clamp(0, 1)
    twin = copy.deepcopy(model)
    expected = naive.mean(naive_ikl(twin, given, x_adv, method.weights), given)
    again = method.loss(copy.deepcopy(model), given, x_adv)
    ours = method.loss(model, given, x_adv)
    assert torch.equal(again, ours), "the loss may be evaluated repeatedly"
    naive.assert_same_update(weighted_mean(ours, given.weight), model, expected, twin)


def test_ikl_of_equal_logits_is_cross_entropy_and_entropy(registry, model):
    """No differences are left, and the soft cross-entropy of a prediction with itself is its entropy."""
    given, method = batch(), composed(registry, "ikl", model).method
    twin = copy.deepcopy(model)
    ours = method.loss(model, given, given.x)
    for i, z in enumerate(twin(given.x).detach()):
        p = naive.probabilities(z / 4)
        expected = naive.cross_entropy(naive.probabilities(z), given.target[i]) - 4 * sum(q * torch.log(q) for q in p)
        assert ours[i].item() == pytest.approx(expected.item(), rel=1e-12)


# ---------------------------------------------------------------------------------------------------------
# IKL: attack and class weights
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "progress", "share"), [("ikl", 0.25, 0.25), ("ikl(ramp=0.5)", 0.25, 0.5)])
def test_ikl_attacks_the_divergence_within_a_growing_radius(registry, model, text, progress, share):
    given = batch(progress=progress)
    method = composed(registry, text, model).method
    clean = [[p.detach() for p in naive.probabilities(row)] for row in copy.deepcopy(model).eval()(given.x)]
    start = given.x + share * (naive.uniform_start(given.x) - given.x)
    _, best = naive.pgd(
        model,
        given.x,
        start,
        lambda i, logits: naive.divergence(clean[i], naive.probabilities(logits)),
        steps=3,
        epsilon=share * EPSILON,
    )
    x_adv = method.attack(model, given, inner(3))
    assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)
    assert (x_adv - given.x).abs().max() == pytest.approx(share * EPSILON)


@pytest.mark.parametrize(
    ("text", "progress", "share"), [("ikl", 0.0, 0.0), ("ikl(ramp=0)", 0.0, 1.0), ("ikl(ramp=0.5)", 0.9, 1.0)]
)
def test_ikl_radius_at_the_ends_of_its_ramp(registry, model, text, progress, share):
    given, method = batch(progress=progress), composed(registry, text, model).method
    distance = (method.attack(model, given, inner()) - given.x).abs().max()
    assert distance.item() == pytest.approx(share * EPSILON)


def labelled(seed: int, labels: list[int], epoch: int, update: int) -> Batch:
    y = torch.tensor(labels)
    target = nn.functional.one_hot(y, CLASSES).double()
    moment = Moment(7, epoch, update, 0.5)
    return Batch(torch.arange(len(y)), images(seed, len(y)), y, target, torch.ones(len(y)).double(), moment)


EPOCHS = [
    [labelled(1, [3, 1, 3, 0], 0, 0), labelled(2, [3, 0, 5, 9], 0, 1)],
    [labelled(3, [3, 3, 2, 0], 1, 0), labelled(4, [2, 0, 0, 0], 1, 1)],
    [labelled(5, [7, 7, 7, 7], 2, 0)],
]


def naive_weights(model: nn.Module, epoch: list[Batch], before: list[list[float]]) -> list[list[float]]:
    """The mean of softmax(z / 4) over an epoch's images of each label, image by image; others keep their row."""
    model = copy.deepcopy(model).eval()
    rows: dict[int, list[list[float]]] = {}
    for given in epoch:
        for x, label in zip(given.x, given.y.tolist(), strict=True):
            rows.setdefault(label, []).append([float(p) for p in naive.probabilities(model(x[None])[0].detach() / 4)])
    means = {label: [sum(column) / len(found) for column in zip(*found, strict=True)] for label, found in rows.items()}
    return [means.get(label, before[label]) for label in range(CLASSES)]


def test_ikl_class_weights_are_the_mean_predictions_of_the_last_epoch(registry, model):
    method = composed(registry, "ikl", model).method
    expected = [[1 / CLASSES] * CLASSES] * CLASSES
    for number, epoch in enumerate(EPOCHS):
        for given in epoch:
            method.attack(model, given, inner(1))
            assert torch.allclose(method.weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12), (
                number
            )
        expected = naive_weights(model, epoch, expected)
    assert method.weights[3].sum().item() == pytest.approx(1), "label 3 is in the second epoch"
    assert torch.equal(method.weights[4], torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)), "never seen"
    assert not torch.allclose(method.weights[5], method.weights[4]), "label 5 keeps its row of the first epoch"


def test_ikl_interrupted_within_an_epoch_has_the_same_class_weights(registry, model):
    plan = [given for epoch in EPOCHS for given in epoch]
    for stop in (1, 2, 3):
        whole, first, second = (composed(registry, "ikl", model) for _ in range(3))
        for given in plan:
            whole.method.attack(model, given, inner(1))
        for given in plan[:stop]:
            first.method.attack(model, given, inner(1))
        second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
        for given in plan[stop:]:
            second.method.attack(model, given, inner(1))
        assert torch.equal(whole.method.weights, second.method.weights)


def test_ikl_with_weight_perturbation_counts_each_image_once(registry, model):
    """AWP evaluates the loss twice; the class weights come from the attack, which is made once."""
    composition = composed(registry, "ikl+awp", model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    composition.update(model, batch(progress=0.5), inner(1), optimizer)
    assert composition.method.sums.sum().item() == pytest.approx(COUNT)


# ---------------------------------------------------------------------------------------------------------
# SORA
# ---------------------------------------------------------------------------------------------------------


def between(value: Tensor, lower: float, upper: float) -> Tensor:
    return torch.minimum(torch.maximum(value, torch.full_like(value, lower)), torch.full_like(value, upper))


def input_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the sum of the cross-entropies, in train mode, which couples the images of a batch."""
    variable = x.clone().requires_grad_()
    logits = copy.deepcopy(model)(variable)
    sum(-torch.log(naive.probabilities(z)[int(label)]) for z, label in zip(logits, y, strict=True)).backward()
    return variable.grad


@pytest.mark.parametrize(("text", "c", "length"), [("sora", 0.99, 2.0), ("sora(largest=3, initial=0.9)", 0.9, 0.6)])
def test_sora_step_equals_the_naive_step(registry, model, text, c, length):
    given, method = batch(soft=True), composed(registry, text, model).method
    assert length == pytest.approx((3 if "3" in text else 2) * min(1, 0.02 / (1 - c)))
    start = between(given.x + EPSILON * (2 * drawn("start") - 1), 0.0, 1.0)
    signs = torch.sign(input_gradients(model, start, given.y))
    expected = between(start + length * EPSILON * drawn("length") * signs, 0.0, 1.0)
    x_adv = method.attack(model, given, inner()).detach()
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    if text == "sora":
        distance = (x_adv - given.x).abs()
        assert EPSILON < distance.max() <= method.radius(EPSILON) + 1e-12
        assert method.radius(EPSILON) == pytest.approx(3 * EPSILON)
        assert x_adv.min() == 0
        assert x_adv.max() == 1


def test_soras_attack_leaves_the_running_statistics_alone(registry, model):
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    composed(registry, "sora", model).method.attack(model, batch(), inner())
    assert norms
    for norm, kept in zip(norms, before, strict=True):
        assert all(map(torch.equal, norm.buffers(), kept))


@pytest.mark.parametrize("c", [1.0, 0.99, 0.98, 0.9, 0.0, -1.0])
def test_sora_length_of_the_step_follows_the_alignment(model, c):
    method = SORA(SORAParams(initial=c))
    method.setup(training(model))
    expected = 2 * (1 if c == 1 else min(1, 0.02 / (1 - c)))
    assert method._step().item() == pytest.approx(expected, rel=1e-12)


def test_sora_alignment_is_the_naive_mean_and_moves_with_the_update(registry, model):
    given = batch(weighted=True)
    composition = composed(registry, "sora(rate=0.25)", model)
    method = composition.method
    start = between(given.x + EPSILON * (2 * drawn("start") - 1), 0.0, 1.0)
    first = input_gradients(model, start, given.y)
    x_adv = copy.deepcopy(method).attack(copy.deepcopy(model), given, inner()).detach().requires_grad_()
    logits = copy.deepcopy(model)(x_adv)
    losses = [naive.cross_entropy(naive.probabilities(z), t) for z, t in zip(logits, given.target, strict=True)]
    (later,) = torch.autograd.grad(naive.mean(losses, given), x_adv)
    expected = 0.0
    for g, h in zip(first.flatten(1).tolist(), later.flatten(1).tolist(), strict=True):
        expected += sum(math.copysign(1, a) * b for a, b in zip(g, h, strict=True) if a) / sum(abs(a) for a in g)
    assert 0.01 < abs(expected) < 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    composition.update(model, given, inner(), optimizer)
    assert method.alignment.item() == pytest.approx(0.75 * 0.99 + 0.25 * expected, rel=1e-9)
    assert method._step().item() < 2, "the next step is shorter"


def test_alignment_of_known_gradients():
    """Equal gradients give 1, opposite ones -1, a gradient of zero adds 0, and the second gradient carries the 1/B."""
    one = torch.tensor([[1.0, -2.0], [3.0, 1.0], [0.0, 0.0], [1e-30, 0.0]], dtype=torch.float64)[:, None, None]
    two = torch.stack([one[0], -one[1], torch.ones(1, 1, 2).double(), 3 * one[3]])
    assert alignment(one, one / 4).item() == pytest.approx(3 / 4)
    assert alignment(one, two / 4).item() == pytest.approx((1 - 1 + 0 + 3) / 4)
    assert alignment(one.float(), two.float() / 4).item() == pytest.approx(3 / 4)


@pytest.mark.parametrize(("scale", "clipped"), [(50.0, 1.0), (-50.0, -1.0)])
def test_sora_clips_what_one_update_finds(registry, model, scale, clipped):
    given, method = batch(), composed(registry, "sora", model).method
    x_adv = method.attack(model, given, inner())
    start = between(given.x + EPSILON * (2 * drawn("start") - 1), 0.0, 1.0)
    signs = torch.sign(input_gradients(model, start, given.y))
    (scale * (x_adv * signs).sum()).backward()
    assert method.alignment.item() == pytest.approx(0.95 * 0.99 + 0.05 * clipped, rel=1e-12)


def test_sora_moves_its_alignment_only_with_the_backward_pass_that_reaches_the_images(registry, model):
    given, method = batch(), composed(registry, "sora", model).method
    x_adv = method.attack(model, given, inner())
    twin = copy.deepcopy(model)
    torch.autograd.grad(method.loss(twin, given, x_adv).mean(), list(twin.parameters()))
    assert method.alignment.item() == 0.99
    for seed in (1, 2):
        method.loss(network(seed), given, x_adv).mean().backward()
        found = method.alignment.item()
        assert found != 0.99
    again = composed(registry, "sora", model).method
    x_adv = again.attack(model, given, inner())
    again.loss(network(2), given, x_adv).mean().backward()
    assert again.alignment.item() == found, "of two backward passes the last one counts, from the same c"


def test_sora_draws_noise_and_length_of_their_own_in_each_update(registry, model):
    given, method = batch(), composed(registry, "sora", model).method
    one, two = (method.attack(model, naive.at(given, update=update), inner()) for update in (3, 4))
    assert not torch.allclose(one, two)
    assert torch.equal(one, method.attack(model, given, inner()))
    assert not torch.allclose(drawn("start"), drawn("length"))


def test_resumed_sora_continues_with_the_same_alignment(registry, model):
    def run(composition: Composition, net: nn.Module, updates: range) -> Method:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for update in updates:
            composition.update(net, replace(batch(), moment=Moment(7, 0, update, 0.0)), inner(), optimizer)
        return composition.method

    whole = run(composed(registry, "sora", model), model, range(4))
    halves = network()
    first = composed(registry, "sora", halves)
    run(first, halves, range(2))
    second = composed(registry, "sora", halves)
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    resumed = run(second, halves, range(2, 4))
    assert torch.equal(whole.alignment, resumed.alignment)
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), halves.state_dict().values(), strict=True)
    )
