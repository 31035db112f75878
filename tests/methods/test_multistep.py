"""MART, ALP, SCORE, MMA, GAIRAT and self-adaptive training against naive implementations in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from helpers import naive
from helpers.naive import CLASSES, COUNT, EPSILON, STEP, batch, images, inner, network, training
from torch import Tensor, nn

from robflat_bench.config.cost import passes_per_image
from robflat_bench.core import Batch, Method
from robflat_bench.core.randomness import generator
from robflat_bench.methods.alp import ALP, ALPParams
from robflat_bench.methods.at import AT
from robflat_bench.methods.gairat import GAIRAT, GAIRATParams
from robflat_bench.methods.losses import mean_one
from robflat_bench.methods.mart import MART, MARTParams
from robflat_bench.methods.mma import MMA, MMAParams
from robflat_bench.methods.score import SCORE, SCOREParams
from robflat_bench.methods.self_adaptive import SelfAdaptive, SelfAdaptiveParams
from robflat_bench.methods.trades import TRADES, TRADESParams
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import weighted_mean

KINDS = [(False, False), (True, False), (True, True)]
"""Soft targets, weights."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return network()


@pytest.fixture
def trained() -> nn.Module:
    """A network that gives some labels, but not all, more than half of the probability."""
    model, given = network(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(given.x), given.y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def adversarial(given: Batch) -> Tensor:
    return (given.x + 0.1 * torch.sign(images(1) - 0.5)).clamp(0, 1)


def inputs_of(model: nn.Module, run) -> list[Tensor]:
    """All inputs of the network during `run()`."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    run()
    handle.remove()
    return seen


# ---------------------------------------------------------------------------------------------------------
# Losses without memory
# ---------------------------------------------------------------------------------------------------------

STATELESS: dict[str, Method] = {
    "mart": MART(MARTParams()),
    "alp": ALP(ALPParams()),
    "alp adversarial": ALP(ALPParams(weight=0.7, clean=False)),
    "score": SCORE(SCOREParams()),
}


def naive_loss(name: str, model: nn.Module, given: Batch, x_adv: Tensor, detached: bool = False) -> Tensor:
    clean, perturbed = model(given.x), model(x_adv)
    values = []
    for i in range(COUNT):
        p, q = naive.probabilities(clean[i]), naive.probabilities(perturbed[i])
        y, target = int(given.y[i]), given.target[i]
        if name == "mart":
            rival = max(q[k] for k in range(CLASSES) if k != y)
            doubt = 1.0000001 - (p[y].detach() if detached else p[y])
            value = naive.cross_entropy(q, target) - torch.log(1.0001 - rival) + 6 * naive.divergence(p, q) * doubt
        elif name == "score":
            value = 0
            for k in range(CLASSES):
                wanted = (1 - 10 * 0.1 / 9) * target[k] + 0.1 / 9
                value = value + (p[k] - wanted) ** 2 + 3 * (q[k] - p[k]) ** 2
        else:
            pairing = sum((clean[i, k] - perturbed[i, k]) ** 2 for k in range(CLASSES)) / CLASSES
            both = naive.cross_entropy(q, target), naive.cross_entropy(p, target)
            value = sum(both) / 2 + 0.5 * pairing if name == "alp" else both[0] + 0.7 * pairing
        values.append(value)
    return naive.mean(values, given)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_loss_gradient_and_statistics_equal_the_naive_implementation(trained, name, soft, weighted):
    given, twin = batch(soft, weighted), copy.deepcopy(trained)
    x_adv = adversarial(given)
    ours = weighted_mean(STATELESS[name].loss(trained, given, x_adv), given.weight)
    naive.assert_same_update(ours, trained, naive_loss(name, twin, given, x_adv), twin)


def test_mart_differentiates_its_weight_as_published(trained):
    """With a detached weight, the loss would be equal and its gradient different."""
    given, twin = batch(), copy.deepcopy(trained)
    x_adv = adversarial(given)
    STATELESS["mart"].loss(trained, given, x_adv).mean().backward()
    naive_loss("mart", twin, given, x_adv, detached=True).backward()
    pairs = zip(trained.parameters(), twin.parameters(), strict=True)
    assert max(float((one.grad - two.grad).abs().max()) for one, two in pairs) > 1e-3


class Fixed(nn.Module):
    """A network with the same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_mart_is_finite_if_a_wrong_class_is_certain():
    model, given = Fixed(500, *[0] * 9), batch()
    loss = STATELESS["mart"].loss(model, given, given.x)
    assert torch.allclose(loss, torch.tensor(500 - math.log(1e-4), dtype=torch.float64), rtol=0, atol=1e-6)
    loss.sum().backward()
    assert model.logits.grad.isfinite().all()


def test_mart_uses_the_label_in_margin_and_weight_if_the_target_is_noisy(trained):
    """Only the cross-entropy uses the target."""
    given = batch()
    noisy = replace(given, target=given.target.roll(1, dims=1))
    one, two = (STATELESS["mart"].loss(copy.deepcopy(trained), which, adversarial(given)) for which in (given, noisy))
    log_p = copy.deepcopy(trained)
    log_p(given.x)  # as in the loss, whose second forward normalises by its own batch anyway
    log_p = log_p(adversarial(given)).log_softmax(1)
    assert torch.allclose(two - one, (log_p * (given.target - noisy.target)).sum(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_score_leaves_one_minus_smoothing_to_the_label(smoothing):
    """Uniform predictions against t: 1 - s on the label, s shared by the others; the rows sum to 1."""
    given = batch()
    loss = SCORE(SCOREParams(smoothing=smoothing)).loss(Fixed(*[0.0] * 10), given, given.x)
    expected = (0.1 - (1 - smoothing)) ** 2 + 9 * (0.1 - smoothing / 9) ** 2
    assert loss.tolist() == pytest.approx([expected] * COUNT, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------
# The recipe's attack
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mart", "alp", "score", "gairat", "self-adaptive"])
def test_inner_attack_equals_the_naive_loop(model, name):
    given, twin = batch(soft=True), copy.deepcopy(model).eval()
    clean = [[p.detach() for p in naive.probabilities(row)] for row in twin(given.x)]

    def objective(i: int, logits: Tensor) -> Tensor:
        p = naive.probabilities(logits)
        if name == "score":
            return sum((a - b) ** 2 for a, b in zip(p, clean[i], strict=True))
        return naive.divergence(clean[i], p) if name == "self-adaptive" else -torch.log(p[int(given.y[i])])

    iterates, best = naive.pgd(model, given.x, naive.uniform_start(given.x), objective, steps=8)
    method = {"gairat": GAIRAT(GAIRATParams()), "self-adaptive": SelfAdaptive(SelfAdaptiveParams()), **STATELESS}[name]
    method.setup(training(model))
    found: list[Tensor] = []
    seen = inputs_of(model, lambda: found.append(method.attack(model, given, inner(8))))
    if name in ("score", "self-adaptive"):
        assert torch.equal(seen.pop(0), given.x), "the clean prediction comes first"
    assert len(seen) == len(iterates)
    for ours, reference in zip(seen, iterates, strict=True):
        assert torch.allclose(ours, reference, rtol=0, atol=1e-10)
    assert torch.allclose(found[0], best, rtol=0, atol=1e-10)
    taken = {next(t for t, x in enumerate(iterates) if torch.allclose(x[i], best[i])) for i in range(COUNT)}
    assert len(taken) > 1, "the best iterate of each example, not of the batch"


# ---------------------------------------------------------------------------------------------------------
# GAIRAT
# ---------------------------------------------------------------------------------------------------------


def still_right(model: nn.Module, given: Batch, steps: int) -> list[int]:
    """kappa of each example, from x_0 .. x_{T-1} of the naive loop."""

    def objective(i: int, logits: Tensor) -> Tensor:
        return naive.cross_entropy(naive.probabilities(logits), nn.functional.one_hot(given.y[i], CLASSES))

    iterates, _ = naive.pgd(model, given.x, naive.uniform_start(given.x), objective, steps)
    model = copy.deepcopy(model).eval()
    return [sum(int(model(x)[i].argmax()) == int(given.y[i]) for x in iterates[:steps]) for i in range(COUNT)]


def gentle(steps: int):
    """An attack of small steps, which fools the examples at different iterates."""
    attack = inner(steps)
    attack.step = EPSILON / 3
    return attack


@pytest.mark.parametrize(("soft", "weighted"), KINDS)
@pytest.mark.parametrize("lam", [-1.0, 2.0])
def test_gairat_weights_equal_the_naive_formula(trained, soft, weighted, lam, monkeypatch):
    monkeypatch.setattr(naive.pgd, "__defaults__", (EPSILON, EPSILON / 3))
    steps = 5
    given, twin = batch(soft, weighted, progress=0.5), copy.deepcopy(trained)
    kappa = still_right(trained, given, steps)
    assert len(set(kappa)) > 1, "otherwise weights show nothing"
    raw = [(1 + math.tanh(lam + 5 * (1 - 2 * k / steps))) / 2 for k in kappa]
    mean = float(naive.mean(raw, given))
    method = GAIRAT(GAIRATParams(lam=lam))
    x_adv = method.attack(trained, given, gentle(steps))
    ours = weighted_mean(method.loss(trained, given, x_adv), given.weight)
    logits = twin(x_adv)
    values = [
        raw[i] / mean * naive.cross_entropy(naive.probabilities(logits[i]), given.target[i]) for i in range(COUNT)
    ]
    naive.assert_same_update(ours, trained, naive.mean(values, given), twin)


def test_gairat_does_not_count_the_last_iterate():
    """Logits that are right at all iterates but the last give kappa = T; logits that are right only there give 0."""
    given = batch(progress=0.9)

    class Turning(nn.Module):
        def __init__(self, right: list[bool]) -> None:
            super().__init__()
            self.right = right

        def forward(self, x: Tensor) -> Tensor:
            sign = 1 if self.right.pop(0) else -1
            return sign * given.target + 0 * x.sum((1, 2, 3))[:, None]

    for right, share in (([True] * 4 + [False], 1.0), ([False] * 4 + [True], 0.0), ([True, False] * 2 + [True], 0.5)):
        method = GAIRAT(GAIRATParams())
        method.attack(Turning(right), given, inner(4))
        assert method.share.tolist() == [share] * COUNT


def test_gairat_is_at_until_its_warmup_is_over(trained):
    given = batch(soft=True, weighted=True, progress=0.49)
    method = GAIRAT(GAIRATParams())
    x_adv = method.attack(trained, given, inner())
    assert torch.equal(AT(None).attack(trained, given, inner()), x_adv)
    plain = AT(None).loss(copy.deepcopy(trained), given, x_adv)
    assert torch.equal(method.loss(copy.deepcopy(trained), given, x_adv), plain)
    method.share = torch.linspace(0, 1, COUNT).double()
    later = method.loss(copy.deepcopy(trained), naive.at(given, progress=0.5), x_adv)
    ratio = (later / plain).tolist()
    assert ratio == sorted(ratio, reverse=True), "the sooner fooled, the heavier"
    assert ratio[0] > 1 > ratio[-1]


def test_gairat_weights_are_finite_and_even_if_all_examples_have_the_smallest_weight(trained):
    """If no example is fooled, all weights are as small as possible; in float32 they still normalise to one."""
    given = batch(progress=0.9)
    method = GAIRAT(GAIRATParams(lam=-10))
    method.share = torch.ones(COUNT)
    plain = AT(None).loss(copy.deepcopy(trained), given, given.x)
    assert torch.allclose(method.loss(copy.deepcopy(trained), given, given.x), plain, rtol=1e-5)


def test_example_of_weight_zero_has_no_effect_on_the_others():
    values, weight = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 3.0, 0.0])
    assert mean_one(values, weight)[:2].tolist() == pytest.approx([0.4, 1.2])
    assert weighted_mean(mean_one(values, weight), weight).item() == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------
# Self-adaptive training
# ---------------------------------------------------------------------------------------------------------


class Labels:
    """t_i of each example, in a dictionary by index."""

    def __init__(self) -> None:
        self.held: dict[int, list[float]] = {}

    def move(self, model: nn.Module, given: Batch) -> list[list[float]]:
        logits, labels = copy.deepcopy(model).eval()(given.x), []
        for i, index in enumerate(given.index.tolist()):
            p, current = naive.probabilities(logits[i]), given.target[i].tolist()
            if index >= 0:
                current = self.held.get(index, current)
                current = [0.9 * t + 0.1 * a.item() for t, a in zip(current, p, strict=True)]
                self.held[index] = current
            labels.append(current)
        return labels


def naive_self_adaptive(model: nn.Module, given: Batch, x_adv: Tensor, labels: list[list[float]]) -> Tensor:
    clean, perturbed = model(given.x), model(x_adv)
    mean = float(naive.mean([max(row) for row in labels], given))
    values = []
    for i, row in enumerate(labels):
        p, q = naive.probabilities(clean[i]), naive.probabilities(perturbed[i])
        fit = -sum(t * torch.log(a) for t, a in zip(row, p, strict=True))
        values.append(max(row) / mean * fit + 6 * naive.divergence(p, q))
    return naive.mean(values, given)


def self_adaptive(model: nn.Module) -> SelfAdaptive:
    method = SelfAdaptive(SelfAdaptiveParams())
    method.setup(training(model))
    return method


@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_self_adaptive_labels_follow_the_predictions(trained, soft, weighted):
    """Three updates with different orders and one image from elsewhere; the loss is evaluated twice."""
    method, reference = self_adaptive(trained), Labels()
    rows = [[0, 1, 2, 3, 4, 5], [4, 2, -1, 0, 3, 1], [-1, 3, 5, 2, 0, 4]]
    for update, index in enumerate(rows):
        given = replace(batch(soft, weighted, progress=0.7 + update / 10), index=torch.tensor(index))
        labels = reference.move(trained, given)
        x_adv, twin = method.attack(trained, given, inner()), copy.deepcopy(trained)
        method.loss(copy.deepcopy(trained), given, x_adv)
        trained.zero_grad(set_to_none=True)
        ours = weighted_mean(method.loss(trained, given, x_adv), given.weight)
        naive.assert_same_update(ours, trained, naive_self_adaptive(twin, given, x_adv, labels), twin)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.sub_(0.1 * parameter.grad)
    held = torch.tensor([reference.held[i] for i in range(COUNT)], dtype=torch.float64)
    assert torch.allclose(method.state_dict()["labels"], held, rtol=0, atol=1e-12)


def test_self_adaptive_is_trades_until_its_start(trained):
    given = batch(soft=True, weighted=True, progress=0.69)
    method, trades = self_adaptive(trained), TRADES(TRADESParams())
    x_adv = method.attack(trained, given, inner())
    assert torch.equal(x_adv, trades.attack(trained, given, inner()))
    ours, theirs = (m.loss(copy.deepcopy(trained), given, x_adv) for m in (method, trades))
    assert torch.equal(ours, theirs)
    assert not method.state_dict()["labels"].any(), "nothing is averaged yet"
    assert torch.equal(method.attack(trained, naive.at(given, progress=0.7), inner()), x_adv)
    assert torch.allclose(method.state_dict()["labels"].sum(1), torch.ones(COUNT).double())


# ---------------------------------------------------------------------------------------------------------
# MMA
# ---------------------------------------------------------------------------------------------------------

MOST, STEPS, BISECTIONS = 0.06, 4, 5


def mma(model: nn.Module, most: float = MOST) -> MMA:
    method = MMA(MMAParams(max_margin=most, steps=STEPS, bisections=BISECTIONS))
    method.setup(training(model))
    return method


def soft_logit_margin(logits: Tensor, y: int) -> Tensor:
    return torch.log(sum(torch.exp(logits[k]) for k in range(CLASSES) if k != y)) - logits[y]


def naive_mma(model: nn.Module, given: Batch, last: dict[int, float], most: float = MOST):
    """Per example: all inputs of the network, the margin, x + delta, and whether it enters the loss."""
    noise = torch.rand(given.x.shape, generator=given.moment.random("mma start"), dtype=torch.float64) * 2 - 1
    frozen, found = copy.deepcopy(model).eval(), []
    for i, index in enumerate(given.index.tolist()):
        x, y = given.x[i : i + 1], int(given.y[i])
        radius = max(last[index], STEP / 40) if index in last else EPSILON
        radius = min(radius, most)
        shown, best = naive.pgd(
            model,
            x,
            x + radius * noise[i],
            lambda _, logits, y=y: soft_logit_margin(logits, y),
            STEPS,
            radius,
            2.5 * radius / STEPS,
        )
        direction = (best - x) / max(abs(v) for v in (best - x).flatten().tolist())

        def beyond(size: float, x=x, y=y, direction=direction, shown=shown) -> bool:
            shown.append((x + size * direction).clamp(0, 1))
            return soft_logit_margin(frozen(shown[-1])[0], y).item() >= 0

        wrong, reached = beyond(0.0), beyond(most)
        low, high = 0.0, most
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if beyond(middle) else (middle, high)
        margin = 0.0 if wrong else high
        found.append((shown, margin, (x + margin * direction).clamp(0, 1)[0], wrong, reached))
        if index >= 0:
            last[index] = margin
    return found


def small(steps: int = 3):
    """The recipe's attack with a step below the margins, so that remembered margins are used."""
    attack = inner(steps)
    attack.step = STEP / 40
    return attack


@pytest.mark.parametrize("most", [0.01, 0.02, 0.06])
def test_mma_finds_the_naive_margins_and_remembers_them(trained, most):
    """Three updates of a moving network, with images from elsewhere."""
    method, last = mma(trained, most), {}
    sizes = set()
    for update, index in enumerate([[0, 1, 2, 3, 4, 5], [4, -1, 3, 2, 1, 0], [1, 2, 3, 4, 5, -1]]):
        given = naive.at(replace(batch(), index=torch.tensor(index)), update=update)
        expected = naive_mma(trained, given, last, most)
        found: list[Tensor] = []
        seen = inputs_of(trained, lambda given=given, found=found: found.append(method.attack(trained, given, small())))
        assert len(seen) == len(expected[0][0])
        for number, shown in enumerate(seen):
            for i in range(COUNT):
                assert torch.allclose(shown[i], expected[i][0][number][0], rtol=0, atol=1e-10), (update, number, i)
        for i, (_, margin, point, wrong, reached) in enumerate(expected):
            assert torch.allclose(found[0][i], point, rtol=0, atol=1e-10)
            assert not wrong or torch.equal(found[0][i], given.x[i]), "wrong ones stay clean"
            assert method.counts[i] == (wrong or reached)
            sizes.add(margin)
        held = method.state_dict()["margins"]
        assert all(held[i].item() == pytest.approx(margin, abs=1e-10) for i, margin in last.items())
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.02)
        optimizer.zero_grad()
        method.loss(trained, given, found[0]).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert len(sizes) > 2


@pytest.mark.parametrize(("soft", "weighted"), KINDS)
def test_mma_loss_equals_the_naive_implementation(trained, soft, weighted):
    given, twin = batch(soft, weighted), copy.deepcopy(trained)
    most = 0.01
    found = naive_mma(trained, given, {}, most)
    kinds = {(wrong, reached) if not wrong else (True,) for _, _, _, wrong, reached in found}
    assert len(kinds) == 3, "wrong, right with a margin, right without one up to the largest"
    method = mma(trained, most)
    x_adv = method.attack(trained, given, small())
    ours = weighted_mean(method.loss(trained, given, x_adv), given.weight)
    clean, moved = twin(given.x), twin(torch.stack([point for _, _, point, _, _ in found]))
    values = []
    for i, (_, _, _, wrong, reached) in enumerate(found):
        value = naive.cross_entropy(naive.probabilities(clean[i]), given.target[i]) / 3
        if wrong or reached:
            value = value + 2 * naive.cross_entropy(naive.probabilities(moved[i]), given.target[i]) / 3
        values.append(value)
    naive.assert_same_update(ours, trained, naive.mean(values, given), twin)


def test_mma_examples_end_across_the_boundary_and_no_further_than_needed(trained):
    given, most = batch(), 0.15
    method = MMA(MMAParams(max_margin=most, steps=10, bisections=12))
    method.setup(training(trained))
    x_adv = method.attack(trained, given, small())
    frozen = copy.deepcopy(trained).eval()
    p = frozen(x_adv).softmax(1)[range(COUNT), given.y]
    clean = frozen(given.x).softmax(1)[range(COUNT), given.y]
    moved = (clean > 0.5) & (method.counts == 1)
    assert moved.sum() > 1
    assert ((p[moved] <= 0.5) & (p[moved] > 0.499)).all()
    distance = (x_adv - given.x).abs().amax((1, 2, 3))
    assert (distance <= method.radius(EPSILON) + 1e-12).all()


@pytest.mark.parametrize("text", ["mma(steps=1,bisections=2)", "mma(steps=3,bisections=1)"])
def test_mma_costs_what_its_parameters_say_whatever_the_recipe(registry, model, text):
    composed, given = compose(registry, text), batch()
    method = composed.method.build()
    method.setup(training(model))
    counter = PassCounter(model)
    method.loss(model, given, method.attack(model, given, inner(7))).mean().backward()
    counter.remove()
    assert (counter.forward, counter.backward) == tuple(COUNT * n for n in passes_per_image(composed, 7))


def test_mma_leaves_images_unchanged_if_the_gradient_vanishes(monkeypatch):
    """A network that ignores its input, attacked from the image itself: no NaN."""
    monkeypatch.setattr("robflat_bench.methods.mma.uniform_like", lambda x, source: torch.zeros_like(x))
    given = batch()

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 20 * given.target + 0 * x.sum((1, 2, 3))[:, None]

    method = mma(network())
    assert torch.equal(method.attack(Blind(), given, inner()), given.x)
    assert not method.counts.any()


# ---------------------------------------------------------------------------------------------------------
# Interruption
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mma, self_adaptive])
def test_resumed_method_remembers_margins_and_labels(trained, make):
    """A state saved after one update and loaded into a new method gives the same second update."""
    first, second = (naive.at(batch(progress=0.8), update=update) for update in (0, 1))
    method, resumed, fresh = make(trained), make(trained), make(trained)
    method.attack(trained, first, small())
    resumed.load_state_dict(copy.deepcopy(method.state_dict()))
    with torch.no_grad():
        next(trained.parameters()).add_(0.02 * torch.randn(1, generator=generator("move"), dtype=torch.float64))
    results = []
    for one in (method, resumed, fresh):
        x_adv = one.attack(trained, second, small())
        results.append((x_adv, one.loss(copy.deepcopy(trained), second, x_adv), *one.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.allclose(results[0][2], results[2][2], rtol=0, atol=1e-4)
