"""Single-step, free, gradient-aligned, helper, consistency and loss-scaled training against naive implementations."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import naive
from helpers.naive import CLASSES, COUNT, EPSILON, batch, images, inner, network, training
from torch import Tensor, nn

from robflat_bench.core import Batch, Method, Moment, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.methods.cons_at import jensen_shannon
from robflat_bench.methods.gradalign import misalignment
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition, weighted_mean

pytestmark = pytest.mark.usefixtures("one_thread")

TAU = 3.0  # a loss between those of the examples


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def build(registry, model):
    """Builds a method from its text and sets it up; its helper is a network of another seed."""

    def make(text: str) -> Method:
        composed = compose(registry, text)
        helpers = {name: network(5).eval().requires_grad_(False) for name in composed.helpers}
        composition = Composition(composed)
        composition.setup(training(model, helpers=helpers))
        return composition.method

    return make


def draw(purpose: str, count: int = COUNT) -> Tensor:
    """U(-1,1), keyed by the moment of `batch()`."""
    source = generator(7, purpose, 2, 3)
    return 1 - 2 * (1 - torch.rand(count, 1, 8, 8, generator=source, dtype=torch.float64))


def between(value: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    lower, upper = (torch.as_tensor(bound, dtype=value.dtype).expand_as(value) for bound in (lower, upper))
    return torch.minimum(torch.maximum(value, lower), upper)


# ---------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------


def naive_hat(twin: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    helper = network(5).eval().requires_grad_(False)
    beyond = between(given.x + 3 * x_adv - 3 * given.x, 0.0, 1.0)
    assert not torch.allclose(beyond, given.x + 3 * (x_adv - given.x)), "the clip matters"
    clean, adversarial, helped = twin(given.x), twin(x_adv), twin(beyond)
    values = []
    for i in range(COUNT):
        p, q, r = (naive.probabilities(logits[i]) for logits in (clean, adversarial, helped))
        label = max(range(CLASSES), key=lambda k: float(helper(x_adv[i : i + 1])[0, k]))
        values.append(
            naive.cross_entropy(p, given.target[i]) + 1.5 * naive.divergence(p, q) - 0.7 * torch.log(r[label])
        )
    return values


def naive_cons_at(twin: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    logits = twin(torch.cat([x_adv, images(2)]))
    values = []
    for i in range(COUNT):
        one, two = logits[i], logits[COUNT + i]
        p, q = naive.probabilities(one / 0.4), naive.probabilities(two / 0.4)
        mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        classes = [naive.cross_entropy(naive.probabilities(z), given.target[i]) for z in (one, two)]
        values.append(sum(classes) / 2 + 3 * (naive.divergence(p, mean) + naive.divergence(q, mean)) / 2)
    return values


def naive_losses(twin: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    logits = twin(x_adv)
    return [naive.cross_entropy(naive.probabilities(logits[i]), given.target[i]) for i in range(COUNT)]


def naive_mlcat(form: str, twin: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    losses = naive_losses(twin, given, x_adv)
    assert 0 < sum(loss.item() < TAU for loss in losses) < COUNT, "examples on both sides of the threshold"
    values = []
    for loss in losses:
        scale = TAU / (loss if form == "as-released" else loss.item())
        values.append(loss * scale if loss.item() < TAU else loss)
    return values


def naive_gradalign(twin: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    """Both gradients by second-order autograd; running statistics are restored by hand."""
    values = naive_losses(twin, given, x_adv)
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    gradients = []
    for point in (given.x, between(given.x + EPSILON * draw("alignment"), 0.0, 1.0)):
        variable = point.clone().requires_grad_()
        logits = twin(variable)
        total = -sum(torch.log(naive.probabilities(logits[i])[int(given.y[i])]) for i in range(COUNT))
        gradients.append(torch.autograd.grad(total, variable, create_graph=True)[0])
    for norm, buffers in zip(norms, statistics, strict=True):
        for name, buffer in buffers.items():
            setattr(norm, name, buffer)
    fixed, moving = gradients[0].detach(), gradients[1]
    for i in range(COUNT):
        pairs = list(zip(fixed[i].flatten(), moving[i].flatten(), strict=True))
        lengths = [torch.sqrt(sum(pair[which] ** 2 for pair in pairs)) for which in (0, 1)]
        cosine = sum(a * b for a, b in pairs) / (lengths[0] * lengths[1])
        assert cosine < 0.9
        values[i] = values[i] + 0.9 * (1 - cosine)
    return values


LOSSES = {
    "fgsm-rs": naive_losses,
    "n-fgsm": naive_losses,
    "free-at": naive_losses,
    "gradalign(weight=0.9)": naive_gradalign,
    "hat(h=3, beta=1.5, gamma=0.7)": naive_hat,
    "cons-at(weight=3, temperature=0.4)": naive_cons_at,
    f"mlcat(threshold={TAU})": lambda *given: naive_mlcat("scaled", *given),
    f"mlcat(threshold={TAU}, form=as-released)": lambda *given: naive_mlcat("as-released", *given),
}


@pytest.mark.parametrize("text", LOSSES)
@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (True, True)])
def test_loss_gradient_and_statistics_equal_the_naive_implementation(model, build, text, soft, weighted):
    given, method = batch(soft, weighted), build(text)
    x_adv = (given.x + EPSILON * torch.sign(images(1) - 0.5)).clamp(0, 1)
    if text.startswith("cons-at"):
        method.second = images(2)
    twin = copy.deepcopy(model)
    expected = naive.mean(LOSSES[text](twin, given, x_adv), given)
    again = method.loss(copy.deepcopy(model), given, x_adv)
    ours = method.loss(model, given, x_adv)
    assert torch.equal(again, ours), "the loss may be evaluated repeatedly"
    naive.assert_same_update(weighted_mean(ours, given.weight), model, expected, twin)


# ---------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------


def naive_step(model: nn.Module, given: Batch, start: Tensor, size: float) -> Tensor:
    """One sign step in eval mode, one example at a time."""
    model = copy.deepcopy(model).eval()
    rows = []
    for x, y in zip(start, given.y, strict=True):
        variable = x[None].clone().requires_grad_()
        (-torch.log(naive.probabilities(model(variable)[0])[int(y)])).backward()
        rows.append(x + size * EPSILON * torch.sign(variable.grad[0]))
    return torch.stack(rows)


def watched(method: Method, model: nn.Module, given: Batch, steps: int = 3) -> tuple[Tensor, list[Tensor]]:
    """x_adv, and the images that the attack passed through the network."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    x_adv = method.attack(model, given, inner(steps))
    handle.remove()
    return x_adv, seen


@pytest.mark.parametrize(
    ("text", "random", "alpha"),
    [
        ("fgsm-rs", True, 1.25),
        ("fgsm-rs(alpha=0.5)", True, 0.5),
        ("gradalign", False, 1.25),
        ("gradalign(alpha=0.5)", False, 0.5),
        ("gradalign(start=uniform, alpha=0.5)", True, 0.5),
    ],
)
def test_one_step_in_the_ball_equals_the_naive_step(model, build, text, random, alpha):
    given = batch(soft=True)
    start = between(given.x + EPSILON * draw("start"), 0.0, 1.0) if random else given.x
    moved = naive_step(model, given, start, alpha) - given.x
    expected = between(given.x + between(moved, -EPSILON, EPSILON), 0.0, 1.0)
    x_adv, seen = watched(build(text), model, given)
    assert len(seen) == 1
    assert torch.allclose(seen[0], start, rtol=0, atol=1e-12)
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-12)
    distance = (x_adv - given.x).abs()
    assert distance.max() <= EPSILON + 1e-12
    assert distance.max() > 0.99 * min(alpha, 1) * EPSILON


@pytest.mark.parametrize(("text", "k", "alpha"), [("n-fgsm", 2.0, 1.0), ("n-fgsm(k=0.5, alpha=1.5)", 0.5, 1.5)])
def test_n_fgsm_leaves_the_ball_as_far_as_its_radius(model, build, text, k, alpha):
    given, method = batch(soft=True), build(text)
    start = given.x + k * EPSILON * draw("noise")
    x_adv, seen = watched(method, model, given)
    assert len(seen) == 1
    assert torch.allclose(seen[0], start, rtol=0, atol=1e-12)
    assert torch.allclose(x_adv, between(naive_step(model, given, start, alpha), 0.0, 1.0), rtol=0, atol=1e-12)
    radius = method.radius(EPSILON)
    assert radius == pytest.approx((k + alpha) * EPSILON)
    distance = (x_adv - given.x).abs()
    assert distance.max() <= radius + 1e-12
    assert distance.max() > 0.9 * radius
    assert (distance > EPSILON).double().mean() > 0.3
    assert x_adv.min() == 0
    assert x_adv.max() == 1


@pytest.mark.parametrize("text", ["fgsm-rs", "n-fgsm", "gradalign(start=uniform)"])
def test_each_update_draws_its_own_noise(model, build, text):
    given, method = batch(), build(text)
    one, two = (method.attack(model, naive.at(given, update=update), inner()) for update in (3, 4))
    assert not torch.allclose(one, two)
    assert torch.equal(one, method.attack(model, given, inner()))


@pytest.mark.parametrize("name", ["hat", "mlcat"])
def test_inner_attack_equals_the_naive_loop(model, build, name):
    given = batch(soft=True)
    clean = [[p.detach() for p in naive.probabilities(row)] for row in copy.deepcopy(model).eval()(given.x)]

    def objective(i: int, logits: Tensor) -> Tensor:
        p = naive.probabilities(logits)
        return -torch.log(p[int(given.y[i])]) if name == "mlcat" else naive.divergence(clean[i], p)

    iterates, best = naive.pgd(model, given.x, naive.uniform_start(given.x), objective, steps=5)
    x_adv, seen = watched(build(name), model, given, steps=5)
    seen = seen[1:] if name == "hat" else seen
    assert len(seen) == len(iterates)
    assert all(torch.allclose(*pair, rtol=0, atol=1e-10) for pair in zip(seen, iterates, strict=True))
    assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Cons-AT: two views
# ---------------------------------------------------------------------------------------------------------


def test_cons_at_attacks_both_views(model, build):
    given, method = replace(batch(soft=True), views=lambda number: images(20 + number)), build("cons-at")
    both = torch.cat([given.x, images(21)])
    label = given.y.tolist() * 2

    def objective(i: int, logits: Tensor) -> Tensor:
        return -torch.log(naive.probabilities(logits)[label[i]])

    iterates, best = naive.pgd(model, both, naive.uniform_start(both), objective, steps=5)
    x_adv, seen = watched(method, model, given, steps=5)
    pairs = [torch.cat(pair) for pair in zip(seen[:6], seen[6:], strict=True)]
    assert all(torch.allclose(*pair, rtol=0, atol=1e-10) for pair in zip(pairs, iterates, strict=True))
    assert torch.allclose(torch.cat([x_adv, method.second]), best, rtol=0, atol=1e-10)


def test_cons_at_without_augmentation_compares_two_attacks_of_one_image(model, build):
    given, method = batch(), build("cons-at")
    x_adv = method.attack(model, given, inner())
    assert (method.second - given.x).abs().max() <= EPSILON + 1e-12
    assert not torch.allclose(method.second, x_adv)


@pytest.mark.parametrize("modifier", ["ignore-incorrect", "pgd-tau", "cutmix", "unlabeled"])
def test_cons_at_refuses_modifiers_that_would_change_only_one_view(registry, modifier):
    with pytest.raises(UsageError, match="cons-at has its own"):
        compose(registry, f"cons-at+{modifier}")


def test_jensen_shannon_is_symmetric_bounded_and_zero_for_equal_predictions():
    one, two = (50 * torch.randn(COUNT, CLASSES, generator=generator("logits", k), dtype=torch.float64) for k in (1, 2))
    value = jensen_shannon(one, two)
    assert torch.allclose(value, jensen_shannon(two, one), rtol=0, atol=1e-12)
    assert torch.allclose(jensen_shannon(one, one + 3), torch.zeros(COUNT).double(), rtol=0, atol=1e-12)
    assert value.max() <= math.log(2)
    assert value.max() > 0.6


# ---------------------------------------------------------------------------------------------------------
# Free AT: what is carried over
# ---------------------------------------------------------------------------------------------------------


def numbered(seed: int, count: int) -> Batch:
    """A weighted batch of `count` examples."""
    y = torch.arange(count) % CLASSES
    weight = 1.0 + torch.arange(count) % 3
    moment = Moment(7, 0, seed, 0.0)
    return Batch(
        torch.arange(count), images(seed, count), y, nn.functional.one_hot(y, CLASSES).double(), weight, moment
    )


def run_free(composition: Composition, model: nn.Module, plan: list[Batch]) -> list[Tensor]:
    """The perturbation after each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    deltas = []
    for given in plan:
        composition.update(model, given, inner(), optimizer)
        deltas.append(composition.method.delta)
    return deltas


def free(registry, model: nn.Module, text: str = "free-at(repeats=2)") -> Composition:
    composition = Composition(compose(registry, text))
    composition.setup(training(model))
    return composition


# Batches of six, six, four and eight, each replayed once.
PLAN = [numbered(seed, count) for seed, count in ((1, 6), (2, 6), (3, 4), (4, 8)) for _ in range(2)]


def test_free_at_equals_the_naive_updates_over_batches_of_all_sizes(registry, model):
    twin, composition = copy.deepcopy(model), free(registry, model)
    assert composition.repeats == 2
    ours = run_free(composition, model, PLAN)
    perturbation: dict[int, Tensor] = {}
    for given, delta in zip(PLAN, ours, strict=True):
        rows = [perturbation.get(i, torch.zeros(1, 8, 8, dtype=torch.float64)) for i in range(len(given.y))]
        x_adv = torch.stack([between(x + d, 0.0, 1.0) for x, d in zip(given.x, rows, strict=True)]).requires_grad_()
        logits = twin(x_adv)
        losses = [naive.cross_entropy(naive.probabilities(z), t) for z, t in zip(logits, given.target, strict=True)]
        twin.zero_grad()
        naive.mean(losses, given).backward()
        for i, row in enumerate(rows):
            perturbation[i] = between(row + EPSILON * torch.sign(x_adv.grad[i]), -EPSILON, EPSILON)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter -= 0.05 * parameter.grad
        expected = torch.stack([perturbation[i] for i in sorted(perturbation)])
        assert torch.allclose(delta, expected, rtol=0, atol=1e-12)
    for mine, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-9)


def test_free_at_carries_its_perturbation_over(registry, model):
    """From update to update, from batch to batch, and across a smaller batch, which does not touch the other rows."""
    composition = free(registry, model)
    assert torch.equal(composition.method.attack(model, PLAN[0], inner()), PLAN[0].x), "it starts at the images"
    deltas = run_free(composition, model, PLAN[:5])
    assert deltas[0].abs().max() == pytest.approx(EPSILON)
    assert not torch.equal(deltas[1], deltas[0])
    assert torch.equal(deltas[4][4:], deltas[3][4:])
    assert not torch.equal(deltas[4][:4], deltas[3][:4])
    x_adv = composition.method.attack(model, PLAN[2], inner())
    assert torch.allclose(x_adv, between(PLAN[2].x + deltas[4], 0.0, 1.0), rtol=0, atol=1e-12)


def test_free_at_moves_once_per_update_and_only_with_the_backward_pass(registry, model):
    """Gradients with respect to weights do not move the perturbation; of two backward passes the last one does."""
    composition, given = free(registry, model), PLAN[2]
    run_free(composition, model, PLAN[:2])
    method = composition.method
    before = method.delta.clone()
    x_adv = method.attack(model, given, inner())
    torch.autograd.grad(method.loss(model, given, x_adv).mean(), list(model.parameters()))
    assert torch.equal(method.delta, before)
    gradients = []
    for seed in (1, 2):
        x_adv.grad = None
        method.loss(network(seed), given, x_adv).mean().backward()
        gradients.append(torch.sign(x_adv.grad))
    assert not torch.equal(*gradients)
    assert torch.equal(method.delta, between(before + EPSILON * gradients[1], -EPSILON, EPSILON))


def test_free_at_with_weight_perturbation_follows_the_gradient_there(registry, model):
    composition, given = free(registry, model, "free-at+awp(gamma=0.3)"), PLAN[0]
    plain = free(registry, copy.deepcopy(model), "free-at")
    seen: list[Tensor] = []
    composition.method.attack, attack = lambda *args: seen.append(attack(*args)) or seen[-1], composition.method.attack
    (delta,) = run_free(composition, model, [given])
    (other,) = run_free(plain, network(), [given])
    assert torch.equal(delta, EPSILON * torch.sign(seen[0].grad))
    assert not torch.equal(delta, other)


def test_resumed_free_at_continues_with_the_same_perturbation(registry, model):
    composition = free(registry, model)
    run_free(composition, model, PLAN[:3])
    state = {name: tensor.clone() for name, tensor in composition.state_dict().items()}
    other = copy.deepcopy(model)
    resumed = free(registry, other)
    resumed.load_state_dict(state)
    for mine, theirs in zip(run_free(composition, model, PLAN[3:]), run_free(resumed, other, PLAN[3:]), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


# ---------------------------------------------------------------------------------------------------------
# GradAlign: gradients that vanish
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_misalignment_of_known_gradients(dtype):
    """Parallel, opposite, orthogonal, at 60 degrees, opposite but tiny, and with one gradient zero or nearly zero."""
    one = torch.tensor([[2, 0], [2, 0], [2, 0], [2, 0], [1e-15, 0], [0, 0], [1, 1], [1e-40, 0]], dtype=dtype)
    two = torch.tensor([[3, 0], [-1, 0], [0, 9], [1, 3**0.5], [-1e-15, 0], [1, 1], [0, 0], [0, 1]], dtype=dtype)
    expected = torch.tensor([0, 2, 1, 0.5, 2, 0, 0, 0 if dtype == torch.float32 else 1], dtype=dtype)
    moving = two.requires_grad_()
    value = misalignment(one[:, None], moving[:, None])
    assert torch.allclose(value, expected, rtol=0, atol=1e-6)
    value.sum().backward()
    assert moving.grad.isfinite().all()


def test_gradalign_of_a_network_that_ignores_its_input_is_at(model, build):
    given, twin = batch(), copy.deepcopy(model)
    for net in (model, twin):
        first = next(parameter for parameter in net.parameters() if parameter.ndim == 4)
        nn.init.zeros_(first)
    x_adv = images(1)
    ours = build("gradalign(weight=5)").loss(model, given, x_adv)
    expected = build("fgsm-rs").loss(twin, given, x_adv)
    assert torch.equal(ours, expected)
    ours.mean().backward()
    expected.mean().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_gradalign_draws_noise_anew_for_each_update(model, build):
    given, method = batch(), build("gradalign(weight=5)")
    one, two = (method.loss(copy.deepcopy(model), naive.at(given, update=k), given.x) for k in (3, 4))
    assert not torch.allclose(one, two)


# ---------------------------------------------------------------------------------------------------------
# MLCAT: two forms
# ---------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """Logits that are parameters."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def test_mlcat_forms_have_equal_values_and_the_derived_gradients(build):
    """d l_i / d logits = p_i - target_i, times threshold / l_i below the threshold, or times zero as released."""
    given = batch()
    logits = 3 * torch.randn(COUNT, CLASSES, generator=generator("logits"), dtype=torch.float64)
    logits[0, 3] += 20  # surely below
    p = logits.softmax(1)
    loss = -torch.log(p[range(COUNT), given.y])
    below = loss < TAU
    assert 1 < below.sum() < COUNT
    for form, factor in (("scaled", TAU / loss), ("as-released", torch.zeros(COUNT))):
        net = Constant(logits.clone())
        values = build(f"mlcat(threshold={TAU}, form={form})").loss(net, given, given.x)
        assert torch.allclose(values, torch.where(below, TAU, loss), rtol=0, atol=1e-7)
        values.sum().backward()
        expected = torch.where(below, factor, 1.0)[:, None] * (p - given.target)
        assert torch.allclose(net.logits.grad, expected, rtol=0, atol=1e-6)
        assert bool((net.logits.grad[below] == 0).all()) == (form == "as-released")


@pytest.mark.parametrize("form", ["scaled", "as-released"])
def test_mlcat_survives_a_loss_of_zero(build, form):
    given = batch()
    net = Constant(1e4 * given.target)
    build(f"mlcat(threshold=9, form={form})").loss(net, given, given.x).sum().backward()
    assert torch.equal(net.logits.grad, torch.zeros_like(net.logits))
