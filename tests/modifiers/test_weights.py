"""Modifiers that act on weights, against naive implementations in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import pytest
import torch
from helpers import naive
from helpers.naive import COUNT, EPSILON, batch, images, inner, network, training
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robflat_bench.attacks.engine import cross_entropy
from robflat_bench.core import Batch, Examples, Loss, Moment, Threat, Workspace
from robflat_bench.core.randomness import generator
from robflat_bench.measures.flatness.average_case import AverageCase, AverageCaseParams
from robflat_bench.modifiers.entropy_sgd import EntropySGD, EntropySGDParams
from robflat_bench.modifiers.sam import SAM, SAMParams
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")

PERTURBATIONS = ["awp", "awp(steps=3)", "random-wp", "rwp(threshold=3.0)", "sam", "asam"]
Weights = dict[str, Tensor]


@pytest.fixture
def model() -> nn.Module:
    """Biases away from zero: at zero, a relative perturbation would not move them."""
    net = network()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator(name), dtype=torch.float64)
    return net


def weights_of(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def statistics_of(model: nn.Module) -> Weights:
    return {name: b.clone() for name, b in model.named_buffers()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: Weights, other: Weights, tolerance: float) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one
    )


@dataclass
class Updates:
    """AT with a modifier; records the weights of each training forward pass and how it changed the statistics."""

    registry: object
    text: str
    model: nn.Module
    rate: float = 1.0
    seen: list[Weights] = field(default_factory=list)
    tracked: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.composition = Composition(compose(self.registry, self.text))
        self.composition.setup(training(self.model))
        self.optimizer = torch.optim.SGD(self.composition.parameters(self.model), lr=self.rate)
        self.model.register_forward_pre_hook(self._look)

    def _look(self, module: nn.Module, inputs: object) -> None:
        if module.training:
            self.seen.append(weights_of(module))
            self.tracked.append(all(m.track_running_stats for m in module.modules() if isinstance(m, _BatchNorm)))

    def step(self, given: Batch) -> float:
        return self.composition.update(self.model, self.composition.prepare(given), inner(), self.optimizer)

    @property
    def modifier(self):
        (modifier,) = self.composition.modifiers.values()
        return modifier


def losses(model: nn.Module, given: Batch, x_adv: Tensor) -> list[Tensor]:
    logits = model(x_adv)
    return [naive.cross_entropy(naive.probabilities(logits[i]), given.target[i]) for i in range(COUNT)]


def adversarial(model: nn.Module, given: Batch) -> Tensor:
    return inner()(copy.deepcopy(model), given.x, cross_entropy(given.y))


def gradient(model: nn.Module, value: Tensor) -> Weights:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def displaced(model: nn.Module, nu: Weights) -> nn.Module:
    """A copy of the model at w + nu, with running statistics of its own."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in nu:
                parameter += nu[name]
    return other


def length(*tensors: Tensor) -> float:
    return math.sqrt(sum(value.item() ** 2 for tensor in tensors for value in tensor.detach().flatten()))


def matrices(model: nn.Module) -> Weights:
    """Convolution and linear weights: parameters of more than one dimension."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1}


def assert_descended(ours: Updates, before: nn.Module, at: nn.Module, value: Tensor) -> None:
    """SGD of rate 1 moved the weights by the gradient of `value`, the loss of the network `at`."""
    expected = gradient(at, value)
    moved = {name: p - weights_of(ours.model)[name] for name, p in weights_of(before).items()}
    assert close(moved, expected, 1e-8)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.05


# ---------------------------------------------------------------------------------------------------------
# AWP
# ---------------------------------------------------------------------------------------------------------


def naive_awp(model: nn.Module, given: Batch, x_adv: Tensor, gamma: float, size: float, steps: int) -> list[Weights]:
    """nu after 0, 1, ... steps."""
    nu = {name: torch.zeros_like(p) for name, p in matrices(model).items()}
    trail = [nu]
    for _ in range(steps):
        there = displaced(model, nu)
        slope = gradient(there, naive.mean(losses(there, given, x_adv), given))
        following = {}
        for name, p in matrices(model).items():
            step = nu[name] + size * length(p) * slope[name] / length(slope[name])
            excess = length(step) / (gamma * length(p))
            following[name] = step / excess if excess > 1 else step
        nu = following
        trail.append(nu)
    return trail


@pytest.mark.parametrize(
    ("text", "gamma", "size", "steps"),
    [
        ("awp", 0.01, 0.01, 1),
        ("awp(gamma=0.05, steps=3)", 0.05, 0.05, 3),
        ("awp(gamma=0.05, steps=4, step=0.02)", 0.05, 0.02, 4),
    ],
)
def test_awp_equals_the_naive_perturbation(registry, model, text, gamma, size, steps):
    given, before = batch(soft=True, weighted=True), copy.deepcopy(model)
    x_adv = adversarial(model, given)
    ours = Updates(registry, f"at+{text}", model)
    returned = ours.step(given)
    trail = naive_awp(before, given, x_adv, gamma, size, steps)
    assert len(ours.seen) == len(trail) == steps + 1
    for seen, nu in zip(ours.seen, trail, strict=True):
        assert close(seen, weights_of(displaced(before, nu)), 1e-10)
    there = displaced(before, trail[-1])
    value = naive.mean(losses(there, given, x_adv), given)
    assert returned == pytest.approx(value.item(), rel=1e-10)
    assert_descended(ours, before, there, value)
    assert close(statistics_of(model), statistics_of(there), 1e-10), "moved by the last forward, and by it alone"


def test_awp_of_one_step_perturbs(registry, model):
    """The one-step attack of the released code returned its input."""
    given, before = batch(), weights_of(model)
    ours = Updates(registry, "at+awp(gamma=0.03)", model)
    ours.step(given)
    at_w, perturbed = ours.seen
    assert same(at_w, before)
    for name, p in before.items():
        distance = length(perturbed[name] - p)
        assert distance == pytest.approx(0.03 * length(p) if p.ndim > 1 else 0, rel=1e-9), name
    plain = Updates(registry, "at", network())
    plain.step(given)
    assert not close(weights_of(model), weights_of(plain.model), 1e-4)


def test_awp_steps_smaller_than_the_radius_are_projected_only_at_its_edge(registry, model):
    before = weights_of(model)
    ours = Updates(registry, "at+awp(gamma=0.05, steps=4, step=0.02)", model)
    ours.step(batch())
    name = max(matrices(model), key=lambda key: model.get_parameter(key).numel())
    reached = [length(seen[name] - before[name]) / length(before[name]) for seen in ours.seen]
    assert reached[1] == pytest.approx(0.02)
    assert 0.02 < reached[2] < 0.05
    assert reached[4] <= 0.05 + 1e-12


def test_awp_does_not_perturb_during_warmup(registry):
    plain = Updates(registry, "at", network())
    early, late = (Updates(registry, "at+awp(warmup=0.5)", network()) for _ in range(2))
    for run, progress in ((plain, 0.4), (early, 0.4), (late, 0.5)):
        run.step(batch(progress=progress))
    assert len(early.seen) == 1
    assert same(early.model.state_dict(), plain.model.state_dict())
    assert len(late.seen) == 2


# ---------------------------------------------------------------------------------------------------------
# Random weight perturbation
# ---------------------------------------------------------------------------------------------------------


def test_random_wp_equals_the_naive_perturbation(registry, model):
    given, before = batch(soft=True, weighted=True), copy.deepcopy(model)
    x_adv = adversarial(model, given)
    ours = Updates(registry, "at+random-wp(xi=0.3)", model)
    returned = ours.step(given)
    nu = {}
    for name, p in matrices(before).items():
        source = generator(7, "random-wp", 2, 3, name, *p.shape)  # seed, epoch and update of the batch
        draw = torch.randn(p.shape, generator=source, dtype=torch.float64)
        nu[name] = 0.3 * length(p) * draw / length(draw)
    there = displaced(before, nu)
    (seen,) = ours.seen
    assert close(seen, weights_of(there), 1e-12)
    value = naive.mean(losses(there, given, x_adv), given)
    assert returned == pytest.approx(value.item(), rel=1e-10)
    assert_descended(ours, before, there, value)
    assert close(statistics_of(model), statistics_of(there), 1e-10)


def test_random_wp_draws_anew_in_each_update_and_epoch(registry):
    seen = []
    for moment in ({"update": 0}, {"update": 0}, {"update": 1}, {"epoch": 1, "update": 0}, {"seed": 8, "update": 0}):
        ours = Updates(registry, "at+random-wp", network())
        ours.step(naive.at(batch(), **{"epoch": 0, **moment}))
        seen += ours.seen
    assert same(seen[0], seen[1])
    name = next(iter(matrices(network())))
    assert len({float(weights[name].flatten()[0]) for weights in seen}) == 4


# ---------------------------------------------------------------------------------------------------------
# RWP
# ---------------------------------------------------------------------------------------------------------


def naive_rwp(
    model: nn.Module, given: Batch, x_adv: Tensor, gamma: float, steps: int, threshold: float, raw: bool = False
):
    """nu after 0, 1, ... steps, and how many examples were below the threshold at each."""
    radius = gamma * length(*matrices(model).values())
    nu = {name: torch.zeros_like(p) for name, p in matrices(model).items()}
    trail, counts, total = [nu], [], nu
    for _ in range(steps):
        there = displaced(model, nu)
        kept = [(w, v) for w, v in zip(given.weight, losses(there, given, x_adv), strict=True) if v < threshold]
        counts.append(len(kept))
        if kept:
            slope = gradient(there, sum(w * v for w, v in kept))
            scale = length(*(slope[name] for name in nu))
            total = {name: total[name] + slope[name] for name in nu}
            nu = {name: nu[name] + radius * slope[name] / scale for name in nu}
            if raw:
                nu = {name: radius * total[name] / length(*total.values()) for name in nu}
            reached = length(*nu.values())
            nu = {name: value * min(1.0, radius / reached) for name, value in nu.items()}
        trail.append(nu)
    return trail, counts


@pytest.mark.parametrize("gradients", ["normalised", "raw"])
@pytest.mark.parametrize(("rank", "gamma", "steps"), [(2, 0.02, 3), (3, 0.1, 5), (5, 0.02, 2)])
def test_rwp_equals_the_naive_perturbation(registry, model, rank, gamma, steps, gradients):
    """The threshold lies between the losses of two examples."""
    given, before = batch(soft=True, weighted=True), copy.deepcopy(model)
    x_adv = adversarial(model, given)
    values = sorted(v.item() for v in losses(copy.deepcopy(model), given, x_adv))
    threshold = (values[rank - 1] + values[rank]) / 2
    text = f"at+rwp(gamma={gamma}, steps={steps}, threshold={threshold!r}, gradients={gradients})"
    ours = Updates(registry, text, model)
    returned = ours.step(given)
    trail, counts = naive_rwp(before, given, x_adv, gamma, steps, threshold, raw=gradients == "raw")
    assert counts[0] == rank
    assert rank == 5 or len(set(counts)) > 1, "who is below depends on the weights"
    assert len(ours.seen) == steps + 1
    for seen, nu in zip(ours.seen, trail, strict=True):
        assert close(seen, weights_of(displaced(before, nu)), 1e-9)
    there = displaced(before, trail[-1])
    value = naive.mean(losses(there, given, x_adv), given)
    assert returned == pytest.approx(value.item(), rel=1e-10)
    assert_descended(ours, before, there, value)
    assert close(statistics_of(model), statistics_of(there), 1e-10)


def test_rwp_of_one_step_without_threshold_reaches_the_radius_over_all_layers(registry, model):
    before = matrices(model)
    ours = Updates(registry, "at+rwp(gamma=0.03, steps=1, threshold=1e9)", model)
    ours.step(batch())
    distance = length(*(ours.seen[1][name] - p for name, p in before.items()))
    assert distance == pytest.approx(0.03 * length(*before.values()), rel=1e-9)
    shares = [length(ours.seen[1][name] - p) / length(p) for name, p in before.items()]
    assert max(shares) > 2 * min(shares), "one ball for all layers, not one for each"


def test_rwp_does_not_perturb_if_no_example_is_learned(registry):
    plain = Updates(registry, "at", network())
    ours = Updates(registry, "at+rwp(steps=3, threshold=1e-6)", network())
    assert ours.step(batch()) == plain.step(batch())
    assert len(ours.seen) == 4
    assert all(same(seen, ours.seen[0]) for seen in ours.seen)
    assert same(ours.model.state_dict(), plain.model.state_dict())


def test_a_loss_can_be_restricted_to_examples(registry, model, monkeypatch):
    """Factors scale the examples' losses; the mean still divides by the sum of all weights."""
    given, found = batch(soft=True, weighted=True), {}
    expected = losses(copy.deepcopy(model), given, adversarial(model, given))
    ours = Updates(registry, "at+rwp", model)

    def backward(loss: Loss, model: nn.Module, optimizer: object, batch: Batch) -> Tensor:
        found["plain"] = loss()
        found["some"] = loss(keep=lambda values: found.setdefault("values", values) * 0 + factors)
        return found["plain"].detach()

    factors = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    monkeypatch.setattr(ours.modifier, "backward", backward)
    ours.step(given)
    assert found["values"].tolist() == pytest.approx([v.item() for v in expected], rel=1e-10)
    assert not found["values"].requires_grad
    assert found["plain"].item() == pytest.approx(naive.mean(expected, given).item(), rel=1e-10)
    restricted = (0.5 * expected[0] + 1.0 * expected[2] + 3.0 * 0.5 * expected[4]) / 7.5
    assert found["some"].item() == pytest.approx(restricted.item(), rel=1e-10)


# ---------------------------------------------------------------------------------------------------------
# SAM and ASAM
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "rho", "eta"), [("sam(rho=0.2)", 0.2, None), ("asam(rho=0.7, eta=0.1)", 0.7, 0.1)])
def test_sam_equals_the_naive_perturbation(registry, model, text, rho, eta):
    given, before = batch(soft=True, weighted=True), copy.deepcopy(model)
    x_adv = adversarial(model, given)
    ours = Updates(registry, f"at+{text}", model)
    returned = ours.step(given)
    here = copy.deepcopy(before)
    value = naive.mean(losses(here, given, x_adv), given)
    slope = gradient(here, value)
    scale = {}
    for name, p in weights_of(before).items():
        scale[name] = p.abs() + eta if eta is not None and p.ndim > 1 else torch.ones_like(p)
    size = length(*(scale[name] * slope[name] for name in slope))
    there = displaced(before, {name: rho * scale[name] ** 2 * slope[name] / size for name in slope})
    assert same(ours.seen[0], weights_of(before))
    assert close(ours.seen[1], weights_of(there), 1e-10)
    assert all(not torch.equal(p, ours.seen[1][name]) for name, p in ours.seen[0].items()), "biases and scales, too"
    assert len(ours.seen) == 2
    assert close(statistics_of(model), statistics_of(here), 1e-10), "moved by the first forward, and by it alone"
    assert returned == pytest.approx(value.item(), rel=1e-10)
    assert_descended(ours, before, there, naive.mean(losses(there, given, x_adv), given))


def test_sam_radius_covers_all_trained_parameters_and_skips_those_without_gradient(model):
    head, unused = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([5.0]))
    optimizer = torch.optim.SGD([*model.parameters(), head, unused], lr=0.1, weight_decay=0.5)
    seen = []

    def loss(*, frozen: bool = False, keep: object = None) -> Tensor:
        seen.append(head.item())
        return 2 * head.square().sum() + 0 * model(images(0)).sum()

    SAM(SAMParams(rho=0.05)).backward(loss, model, optimizer, batch())
    assert seen == pytest.approx([3.0, 3.05])
    assert head.item() == pytest.approx(3 - 0.1 * (4 * 3.05 + 0.5 * 3))
    assert unused.item() == 5.0


# ---------------------------------------------------------------------------------------------------------
# What every weight perturbation promises
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PERTURBATIONS)
def test_perturbed_weights_are_restored_bit_for_bit(registry, model, text):
    before = weights_of(model)
    ours = Updates(registry, f"at+{text}", model, rate=0.0)
    ours.step(batch())
    assert same(weights_of(model), before)
    assert not same(ours.seen[-1], before)


@pytest.mark.parametrize("text", PERTURBATIONS)
def test_statistics_move_once_per_update(registry, model, text):
    before = statistics_of(model)
    ours = Updates(registry, f"at+{text}", model)
    for _ in range(2):
        ours.step(batch())
    counted = {name: value for name, value in statistics_of(model).items() if name.endswith("num_batches_tracked")}
    assert counted
    assert all(value == before[name] + 2 for name, value in counted.items())
    assert sum(ours.tracked) == 2
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, _BatchNorm))


# ---------------------------------------------------------------------------------------------------------
# Entropy-SGD
# ---------------------------------------------------------------------------------------------------------

ENTROPY = EntropySGDParams(steps=3, rate=0.05, gamma=0.3, noise=0.02, scoping=0.5, averaging=0.6)
MOMENTUM, DECAY = 0.9, 0.01


def entropy_batch(update: int) -> Batch:
    given = naive.at(batch(soft=True, weighted=True), update=update)
    given.x = images(100 + update)
    return given


@dataclass
class Walk:
    """Entropy-SGD on a network and an extra head that the loss knows, with a schedule that decays at each update."""

    model: nn.Module
    head: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.tensor([2.0], dtype=torch.float64)))

    def __post_init__(self) -> None:
        parameters = [*self.model.parameters(), self.head]
        self.optimizer = torch.optim.SGD(parameters, lr=0.8, momentum=MOMENTUM, weight_decay=DECAY)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.modifier = EntropySGD(ENTROPY)
        self.modifier.setup(training(self.model))

    def step(self, update: int) -> float:
        given = entropy_batch(update)

        def loss(*, frozen: bool = False, keep: object = None) -> Tensor:
            return naive.mean(losses(self.model, given, given.x), given) + self.head.square().sum()

        self.optimizer.zero_grad()
        value = self.modifier.backward(loss, self.model, self.optimizer, given)
        self.schedule.step()
        return value.item()

    def evaluated(self) -> Weights:
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return self.modifier.model(self.model, state, Moment(progress=1.0))


def naive_walk(model: nn.Module, cycles: int):
    """After each update: w, w', the head's w', the loss before; and the network, for its running statistics."""
    net, p = copy.deepcopy(model), ENTROPY
    names = [name for name, _ in net.named_parameters()]
    outer = {**weights_of(net), "head": torch.tensor([2.0], dtype=torch.float64)}
    velocity: Weights | None = None
    rows = []
    for cycle in range(cycles):
        walker, average = dict(outer), dict(outer)
        for position in range(p.steps):
            update = cycle * p.steps + position
            given = entropy_batch(update)
            net.load_state_dict({**net.state_dict(), **{name: walker[name] for name in names}})
            value = naive.mean(losses(net, given, given.x), given) + walker["head"].square().sum()
            slope = {**gradient(net, value), "head": 2 * walker["head"]}
            source = generator(7, "entropy-sgd", 2, update)
            for name in outer:
                noise = torch.randn(outer[name].shape, generator=source, dtype=torch.float64)
                drift = slope[name] + DECAY * walker[name]
                drift = drift + p.gamma * (1 + p.scoping) ** cycle * (walker[name] - outer[name])
                drift = drift + p.noise / math.sqrt(0.5 * p.rate) * noise
                walker[name] = walker[name] - p.rate * drift
                average[name] = p.averaging * average[name] + (1 - p.averaging) * walker[name]
            if position == p.steps - 1:
                pull = {name: outer[name] - average[name] + DECAY * outer[name] for name in outer}
                kept = {name: MOMENTUM * velocity[name] for name in outer} if velocity else dict.fromkeys(outer, 0.0)
                velocity = {name: kept[name] + pull[name] for name in outer}
                outer = {name: outer[name] - 0.8 * 0.9**update * velocity[name] for name in outer}
                walker = dict(outer)
            rows.append((dict(outer), dict(walker), value.item()))
    return rows, net


def test_entropy_sgd_equals_its_recursion_over_two_cycles(model):
    rows, net = naive_walk(model, cycles=2)
    ours = Walk(model)
    names = [name for name, _ in model.named_parameters()]
    for update, (outer, walker, value) in enumerate(rows):
        assert ours.step(update) == pytest.approx(value, rel=1e-9)
        held = {**weights_of(model), "head": ours.head.detach()}
        assert close(held, walker, 1e-9)
        evaluated = ours.evaluated()
        assert close({name: evaluated[name] for name in names}, {name: outer[name] for name in names}, 1e-9)
        assert evaluated.keys() == model.state_dict().keys()
    assert close(statistics_of(model), statistics_of(net), 1e-9)
    assert not close(rows[2][0], rows[5][0], 1e-3)


@pytest.mark.parametrize("interrupted", [0, 1, 2, 3, 5])
def test_entropy_sgd_resumes_in_the_middle_of_a_cycle(model, interrupted):
    one = Walk(model)
    for update in range(interrupted):
        one.step(update)
    other = Walk(copy.deepcopy(model), copy.deepcopy(one.head))
    other.optimizer.load_state_dict(copy.deepcopy(one.optimizer.state_dict()))
    other.schedule.load_state_dict(one.schedule.state_dict())
    other.modifier.load_state_dict(copy.deepcopy(one.modifier.state_dict()))
    for update in range(interrupted, 8):
        assert one.step(update) == other.step(update)
    assert same(one.evaluated(), other.evaluated())
    assert same(model.state_dict(), other.model.state_dict())


def test_entropy_sgd_evaluates_clipped_weights_with_weight_clipping(registry, model):
    ours = Updates(registry, "at+entropy-sgd(steps=2)+weight-clipping(limit=0.02)", model)
    for update in range(4):
        ours.step(naive.at(batch(), update=update))
        if update:
            evaluated = ours.composition.evaluated(model, Moment())
            assert max(float(evaluated[name].abs().max()) for name in matrices(model)) <= 0.02


# ---------------------------------------------------------------------------------------------------------
# Averages
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_equals_its_closed_form(registry, model, warmup):
    """w_0 prod d_j + sum_k (1 - d_k) w_k prod_{j>k} d_j."""
    history = [weights_of(model)]
    ours = Updates(registry, f"at+ema(decay=0.3, warmup={str(warmup).lower()})", model, rate=0.1)
    for update in range(6):
        ours.step(naive.at(batch(), update=update))
        history.append(weights_of(model))
    decays = [0.3] * 7
    if warmup:
        decays = [0.0, *(min(0.3, (1 + k) / (10 + k)) for k in range(1, 7))]
        assert decays[1] == 2 / 11
        assert decays[1] < decays[2] < decays[3] == decays[6]
    factors = [(1 - decays[k] if k else 1.0) * math.prod(decays[k + 1 :]) for k in range(7)]
    assert sum(factors) == pytest.approx(1)
    evaluated = ours.composition.evaluated(model, Moment())
    expected = {name: sum(f * w[name] for f, w in zip(factors, history, strict=True)) for name in history[0]}
    assert close({name: evaluated[name] for name in expected}, expected, 1e-12)
    assert same({name: evaluated[name] for name in statistics_of(model)}, statistics_of(model))
    assert same(weights_of(model), history[-1])


def epochs_of(registry, text: str, epochs: int) -> tuple[Updates, list[Weights], list[Weights]]:
    """A run of two updates per epoch, and for each epoch the final state and the evaluated weights."""
    ours = Updates(registry, text, network(), rate=0.1)
    states, evaluated = [], []
    for epoch in range(epochs):
        for update in range(2):
            ours.step(naive.at(batch(), epoch=epoch, update=update))
        states.append({name: tensor.clone() for name, tensor in ours.model.state_dict().items()})
        ended = Moment(7, epoch, 2, (epoch + 1) / epochs)
        evaluated.append(ours.composition.evaluated(ours.model, ended))
    return ours, states, evaluated


def test_swa_is_the_equal_average_of_late_epochs(registry):
    ours, states, evaluated = epochs_of(registry, "at+swa(start=0.5, calibrate=false)", 4)
    names = [name for name, _ in ours.model.named_parameters()]
    assert same(evaluated[0], states[0])
    for last in (1, 2, 3):
        late = states[1 : last + 1]
        expected = states[last] | {name: sum(s[name] for s in late) / len(late) for name in names}
        assert close(evaluated[last], expected, 1e-12)
    assert not close(evaluated[3], states[3], 1e-4)


def test_swa_averages_the_averages_of_ema(registry):
    _, states, alone = epochs_of(registry, "at+ema(decay=0.9)", 4)
    for text in ("at+ema(decay=0.9)+swa(calibrate=false)", "at+swa(calibrate=false)+ema(decay=0.9)"):
        ours, _, both = epochs_of(registry, text, 4)
        assert same(both[0], alone[0])
        names = [name for name, _ in ours.model.named_parameters()]
        expected = states[3] | {name: (alone[1][name] + alone[2][name] + alone[3][name]) / 3 for name in names}
        assert close(both[3], expected, 1e-12)


def test_swa_calibrates_statistics_on_the_clean_training_images(registry):
    _, _, plain = epochs_of(registry, "at+swa(start=0.5, calibrate=false)", 2)
    ours, states, calibrated = epochs_of(registry, "at+swa(start=0.5)", 2)
    assert same(ours.model.state_dict(), states[1]), "the model itself is as it was"
    assert all(module.training for module in ours.model.modules())
    net = network()
    net.load_state_dict(plain[1])
    inputs: dict[str, list[Tensor]] = {}
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(
                lambda _, given, name=name: inputs.setdefault(name, []).append(given[0].detach())
            )
    with torch.no_grad():
        net(images(0)), net(images(1))  # the images of naive.training
    expected = dict(plain[1])
    for name, batches in inputs.items():
        channels = [given.transpose(0, 1).flatten(1) for given in batches]
        means = [[float(row.mean()) for row in given] for given in channels]
        variances = [[float(((row - row.mean()) ** 2).sum() / (len(row) - 1)) for row in given] for given in channels]
        for key, (one, two) in (("running_mean", means), ("running_var", variances)):
            mean = [(a + b) / 2 for a, b in zip(one, two, strict=True)]
            expected[f"{name}.{key}"] = torch.tensor(mean, dtype=torch.float64)
        expected[f"{name}.num_batches_tracked"] = torch.tensor(2)
    assert close(calibrated[1], expected, 1e-10)
    assert not close(calibrated[1], plain[1], 1e-3)


def test_swa_calibrates_only_averages_and_its_passes_are_counted(registry, model):
    ours = Updates(registry, "at+swa", model)
    counter = PassCounter(model)
    for progress, passes in ((0.49, 0), (0.5, 2 * COUNT), (1.0, 4 * COUNT)):
        ours.composition.evaluated(model, Moment(progress=progress))
        assert (counter.forward, counter.backward) == (passes, 0)


@pytest.mark.parametrize("text", ["ema(decay=0.9)", "ema(warmup=false)", "swa(start=0.2)", "entropy-sgd(steps=3)"])
def test_resumed_modifier_continues_with_the_same_weights(registry, model, text):
    def go_on(run: Updates) -> list[Weights]:
        evaluated = []
        for update in (2, 3, 4):
            run.step(naive.at(batch(), update=update))
            evaluated.append(run.composition.evaluated(run.model, Moment(progress=0.3)))
        return evaluated

    one = Updates(registry, f"at+{text}", model, rate=0.1)
    for update in (0, 1):
        one.step(naive.at(batch(), update=update))
        one.composition.evaluated(model, Moment(progress=0.3))
    saved = copy.deepcopy((one.composition.state_dict(), model.state_dict()))
    expected = go_on(one)
    other = Updates(registry, f"at+{text}", network(seed=2), rate=0.1)
    other.composition.load_state_dict(saved[0])
    other.model.load_state_dict(saved[1])
    assert all(same(a, b) for a, b in zip(go_on(other), expected, strict=True))


def test_end_of_an_epoch_counts_the_epoch_as_done(command, tiny, tmp_path, monkeypatch):
    moments: list[Moment] = []
    evaluated = Composition.evaluated

    def looking(self, model: nn.Module, moment: Moment) -> Weights:
        moments.append(moment)
        return evaluated(self, model, moment)

    monkeypatch.setattr(Composition, "evaluated", looking)
    done = command("run", "--method", "standard+swa", "--protocol", tiny, "--store", tmp_path)
    assert done.code == 0, done.err
    assert moments == [Moment(1, 0, 3, 0.5), Moment(1, 1, 3, 1.0)]


# ---------------------------------------------------------------------------------------------------------
# Weight clipping
# ---------------------------------------------------------------------------------------------------------


def clipped(weights: Weights, limit: float) -> Weights:
    """Clips number by number; in this network, a one-dimensional "weight" is a scale."""
    result = {}
    for name, tensor in weights.items():
        center = 1.0 if name.endswith("weight") and tensor.ndim == 1 else 0.0
        values = [min(max(float(v), center - limit), center + limit) for v in tensor.flatten()]
        result[name] = torch.tensor(values, dtype=tensor.dtype).reshape(tensor.shape)
    return result


def test_weight_clipping_projects_every_parameter_after_each_update(registry):
    plain, ours = Updates(registry, "at", network()), Updates(registry, "at+weight-clipping(limit=0.03)", network())
    for run in (plain, ours):
        run.step(batch())
    expected = clipped(weights_of(plain.model), 0.03)
    assert same(weights_of(ours.model), expected)
    for name, parameter in expected.items():
        assert not torch.equal(parameter, weights_of(plain.model)[name]), f"{name} would have left the box"
    assert same(statistics_of(ours.model), statistics_of(plain.model))


@pytest.mark.parametrize("text", ["at+ema+weight-clipping(limit=0.03)", "at+weight-clipping(limit=0.03)+ema"])
def test_ema_averages_clipped_weights_whatever_the_written_order(registry, model, text):
    before = weights_of(model)
    ours = Updates(registry, text, model)
    ours.step(batch())
    average = ours.composition.evaluated(model, Moment())
    expected = {name: 2 / 11 * p + 9 / 11 * weights_of(model)[name] for name, p in before.items()}
    assert same(weights_of(model), clipped(weights_of(model), 0.03))
    assert close({name: average[name] for name in expected}, expected, 1e-12)


def test_flatness_measures_do_not_clip_perturbed_weights(registry, model):
    """The released code also clipped the perturbed weights of clipped networks."""
    ours = Updates(registry, "at+weight-clipping(limit=0.005)", model, rate=0.1)
    for update in range(3):
        ours.step(naive.at(batch(), update=update))
    model.load_state_dict(ours.composition.evaluated(model, Moment(progress=1.0)))
    before = weights_of(model)
    space = WeightSpace(model.eval())
    nu = space.on_sphere(0.5, 0, "test")
    with space.moved(nu):
        model(images(0))
        for name, parameter in matrices(model).items():
            assert torch.equal(parameter, before[name] + nu[name])
            assert float(parameter.abs().max()) > 0.005
            assert float(before[name].abs().max()) <= 0.005
    examples = Examples(images(0), batch().y, torch.arange(COUNT))
    measure = AverageCase(AverageCaseParams(draws=2, steps=2), Threat(EPSILON))
    fresh = network()
    fresh.load_state_dict(model.state_dict())
    values = [measure.measure(net.eval(), examples, Workspace()).value for net in (model, fresh)]
    assert values[0] == values[1]
