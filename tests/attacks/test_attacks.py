"""Attacks against naive loops written from their formulas, and AutoAttack against its authors' own code."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np
import pyautoattack
import pytest
import torch
from helpers.naive import digits
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks import autoattack
from robflat_bench.attacks.autoattack import AutoAttack, AutoAttackParams
from robflat_bench.attacks.climbers import project
from robflat_bench.attacks.engine import (
    TrainingAttack,
    ascend,
    attacked,
    cross_entropy,
    divergence_from,
    frozen_statistics,
    margin,
)
from robflat_bench.attacks.fgsm import FGSM
from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.backbones.parts import initialize
from robflat_bench.backbones.resnet import ResNet8Params, resnet8
from robflat_bench.core import Examples, ImageShape, Journal, Params, Threat, UsageError, Workspace
from robflat_bench.core.randomness import generator, per_example_uniform
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.passes import PassCounter

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_net(dtype: torch.dtype = torch.float64, classes: int = 5) -> nn.Sequential:
    """Images [B,2,5,5] -> logits, with batch normalisation whose statistics are not the initial ones; eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, classes),
        )
        for norm in (net[1], net[4]):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.2, 0.6)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return net.to(dtype).eval()


def small_examples(count: int = 7, dtype: torch.dtype = torch.float64, classes: int = 5) -> Examples:
    """Random images, some pixels exactly at the ends of the box, with indices in no order."""
    x = torch.rand(count, 2, 5, 5, generator=seeded(1), dtype=torch.float64)
    x = torch.where(x < 0.15, 0.0, torch.where(x > 0.85, 1.0, x)).to(dtype)
    y = torch.randint(0, classes, (count,), generator=seeded(2))
    return Examples(x, y, torch.randperm(1000, generator=seeded(3))[:count])


class Recording(nn.Module):
    """Keeps every input of its network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.network(x)


class Wave(nn.Module):
    """Two classes from one pixel u: logits (cos(frequency u), 0). Not monotone, so a long step overshoots."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cos(self.frequency * x.flatten(1)[:, 0])
        return torch.stack([first, torch.zeros_like(first)], 1)


# ---------------------------------------------------------------------------------------------------------
# Objectives
# ---------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.3, 0.2], [-4.0, 5.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 0])


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def test_cross_entropy_is_minus_log_probability_of_the_label():
    expected = [-math.log(softmax(row)[label]) for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)]
    assert cross_entropy(LABELS)(LOGITS).tolist() == pytest.approx(expected, rel=1e-12)


def test_margin_is_best_wrong_logit_minus_the_labels():
    expected = [
        max(value for k, value in enumerate(row) if k != label) - row[label]
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    found = margin(LABELS)(LOGITS)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found > 0, LOGITS.argmax(1) != LABELS)


def test_divergence_goes_from_the_clean_prediction_which_is_fixed():
    clean = LOGITS.clone().requires_grad_()
    other = LOGITS.flip(0).clone().requires_grad_()
    expected = [
        sum(p * math.log(p / q) for p, q in zip(softmax(a), softmax(b), strict=True))
        for a, b in zip(clean.tolist(), other.tolist(), strict=True)
    ]
    found = divergence_from(clean)(other)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    found.sum().backward()
    assert clean.grad is None
    assert other.grad.abs().max() > 0.1


def test_projection_is_onto_ball_and_box():
    x = torch.tensor([0.5, 0.5, 0.5, 0.05, 0.95])
    moved = torch.tensor([0.55, 0.9, 0.1, -0.3, 1.4])
    assert project(moved, x, 0.1).tolist() == pytest.approx([0.55, 0.6, 0.4, 0.0, 1.0])


# ---------------------------------------------------------------------------------------------------------
# The engine
# ---------------------------------------------------------------------------------------------------------


def naive_pgd(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    epsilon: float,
    step: float,
    steps: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Every iterate, start included, and the objective at each, written as a plain loop."""

    def into(moved: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)

    model = copy.deepcopy(model)
    current = into(start)
    iterates, losses = [], []
    for _ in range(steps + 1):
        variable = current.clone().requires_grad_()
        loss = objective(model(variable))
        loss.sum().backward()
        iterates.append(current)
        losses.append(loss.detach())
        current = into(current + step * torch.sign(variable.grad))
    return iterates, losses


def highest(iterates: list[Tensor], losses: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Per example the iterate with the highest loss, the earliest of equals."""
    rows, values = [], []
    for example in range(len(iterates[0])):
        best = max(range(len(losses)), key=lambda t: (float(losses[t][example]), -t))
        rows.append(iterates[best][example])
        values.append(losses[best][example])
    return torch.stack(rows), torch.stack(values)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_every_iterate_equals_the_naive_loop(objective):
    model, examples = Recording(small_net()), small_examples()
    start = examples.x + 0.2 * (2 * torch.rand(examples.x.shape, generator=seeded(4), dtype=torch.float64) - 1)
    settings = {"epsilon": 0.1, "step": 0.04, "steps": 6}
    with attacked(model):
        found = ascend(model, examples.x, start, objective(examples.y), **settings)
    iterates, losses = naive_pgd(model.network, examples.x, start, objective(examples.y), **settings)
    assert len(model.seen) == len(iterates) == 7
    for ours, naive in zip(model.seen, iterates, strict=True):
        assert torch.allclose(ours, naive, rtol=0, atol=1e-10)
    best_x, best_loss = highest(iterates, losses)
    assert torch.allclose(found.x, best_x, rtol=0, atol=1e-10)
    assert torch.allclose(found.loss, best_loss, rtol=0, atol=1e-10)


def test_each_example_keeps_its_own_best_iterate():
    x = torch.linspace(0.05, 0.9, 12, dtype=torch.float64).reshape(12, 1, 1, 1)
    y = torch.zeros(12, dtype=torch.int64)
    model = Recording(Wave(frequency=6.0))
    with attacked(model):
        found = ascend(model, x, x, cross_entropy(y), epsilon=0.3, step=0.05, steps=5)
    seen = torch.stack(model.seen)
    losses = torch.stack([cross_entropy(y)(model.network(iterate)) for iterate in seen])
    where = losses.argmax(0)
    assert torch.equal(found.loss, losses.amax(0))
    assert torch.equal(found.x, seen[where, torch.arange(12)])
    assert {0, 5} < set(where.tolist()), "starts, middles and ends are all somewhere best"


def test_starts_outside_the_ball_are_projected_before_they_count():
    examples = small_examples()
    with attacked(model := small_net()):
        found = ascend(model, examples.x, examples.x + 5, cross_entropy(examples.y), epsilon=0.1, step=1e-9, steps=1)
    assert (found.x - examples.x).abs().max() <= 0.1 + 1e-12
    assert found.x.max() <= 1


ATTACKS = {
    "fgsm": lambda threat: FGSM(Params(), threat),
    "pgd": lambda threat: PGD(PGDParams(steps=4, restarts=2), threat),
    "pgd, long steps": lambda threat: PGD(PGDParams(steps=3, step=1.0), threat),
    "pgd, margin from zero": lambda threat: PGD(PGDParams(steps=4, loss="margin", init="zero"), threat),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attacks_stay_in_ball_and_box_and_use_them(name, dtype):
    examples, model = small_examples(dtype=dtype), small_net(dtype)
    x_adv = ATTACKS[name](Threat(0.1)).perturb(model, examples, 0)
    assert x_adv.dtype == dtype
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    distance = (x_adv - examples.x).abs().flatten(1).amax(1)
    assert distance.max() <= 0.1 + (1e-7 if dtype == torch.float32 else 1e-15)
    assert distance.min() > 0.09, "every image has pixels at the border of its ball"
    with torch.no_grad():
        before, after = (cross_entropy(examples.y)(model(x)).mean() for x in (examples.x, x_adv))
    assert after > before + 0.05


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_change_neither_model_nor_images_nor_random_state(name):
    examples, model = small_examples(), small_net()
    model[0].train()
    model[3].weight.requires_grad_(False)
    images, weights = examples.x.clone(), copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    ATTACKS[name](Threat(0.1)).perturb(model, examples, 0)
    assert torch.equal(examples.x, images)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model] == [True] + [False] * 7
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["3.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------------------------------------------------
# The model as an attack sees it
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_attacked_puts_everything_back_even_after_an_error(bn):
    model = nn.Sequential(small_net(), nn.Dropout(0.5)).train()
    model[0][4].eval()
    model[0][0].bias.requires_grad_(False)
    model[0][1].track_running_stats = False
    modes = [module.training for module in model.modules()]

    def stop_within() -> None:
        with attacked(model, bn):
            assert not any(p.requires_grad for p in model.parameters())
            assert not model[1].training, "only batch normalisation may be in train mode"
            assert model[0][4].training == (bn == "train")
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        stop_within()
    assert [module.training for module in model.modules()] == modes
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["0.0.bias"]
    assert [model[0][1].track_running_stats, model[0][4].track_running_stats] == [False, True]


def test_train_mode_normalises_by_the_batch_and_moves_no_statistics():
    norm = nn.BatchNorm2d(2, eps=1e-3).double()
    norm.running_mean.fill_(5.0)
    norm.running_var.fill_(9.0)
    before = copy.deepcopy(norm.state_dict())
    x = small_examples().x
    with attacked(norm, "train"):
        by_batch = norm(x)
    with attacked(norm, "eval"):
        by_running = norm(x)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    assert torch.allclose(by_batch, (x - mean) / (variance + 1e-3).sqrt(), rtol=0, atol=1e-12)
    assert torch.allclose(by_running, (x - 5) / math.sqrt(9 + 1e-3), rtol=0, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_frozen_statistics_do_not_move_whichever_layer_runs_them(kind):
    model = nn.Sequential(kind(2, track_running_stats=True), kind(2)).double()
    before, x = copy.deepcopy(model.state_dict()), small_examples().x
    with frozen_statistics(model):
        still = model(x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(still, model(x)), "they are normalised as in training"
    assert not torch.equal(model.state_dict()["0.running_mean"], before["0.running_mean"]), "and move again"


# ---------------------------------------------------------------------------------------------------------
# The training attack
# ---------------------------------------------------------------------------------------------------------


def training_attack(start: str, bn: str = "eval", steps: int = 3) -> TrainingAttack:
    return TrainingAttack(epsilon=0.1, step=0.04, steps=steps, start=start, bn=bn, source=generator("step"))


@pytest.mark.parametrize("start", ["uniform", "normal", "zero"])
def test_training_attack_begins_where_its_start_says(start):
    model, x = Recording(small_net()), small_examples().x
    y = small_examples().y
    training_attack(start)(model, x, cross_entropy(y))
    source = generator("step")
    expected = {
        "uniform": lambda: x + 0.1 * (2 * torch.rand(x.shape, generator=source, dtype=torch.float64) - 1),
        "normal": lambda: x + 1e-3 * torch.randn(x.shape, generator=source, dtype=torch.float64),
        "zero": lambda: x,
    }[start]()
    seen = [images for images in model.seen if len(images) == len(x)]  # folding looks at the structure with one image
    assert torch.allclose(seen[0], expected.clamp(0, 1), rtol=0, atol=1e-12)
    assert len(seen) == 4, "T steps are T+1 forward passes"


def test_training_attack_in_train_mode_climbs_on_batch_statistics():
    model, examples = small_net().train(), small_examples()
    before = copy.deepcopy(model.state_dict())
    x_adv = training_attack("zero", "train")(model, examples.x, cross_entropy(examples.y))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    settings = {"epsilon": 0.1, "step": 0.04, "steps": 3}
    expected, _ = highest(*naive_pgd(model, examples.x, examples.x, cross_entropy(examples.y), **settings))
    assert torch.allclose(x_adv, expected, rtol=0, atol=1e-10)
    by_running = training_attack("zero", "eval")(model, examples.x, cross_entropy(examples.y))
    assert not torch.allclose(x_adv, by_running, rtol=0, atol=1e-3)


def test_training_attack_gives_parameters_no_gradient_and_draws_nothing_globally():
    model, examples = small_net().train(), small_examples()
    random_state = torch.get_rng_state()
    training_attack("uniform")(model, examples.x, cross_entropy(examples.y))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# ---------------------------------------------------------------------------------------------------------
# FGSM and PGD
# ---------------------------------------------------------------------------------------------------------


def test_fgsm_is_one_full_step_along_the_sign():
    model, examples = small_net(), small_examples()
    variable = examples.x.clone().requires_grad_()
    F.cross_entropy(copy.deepcopy(model)(variable), examples.y).backward()
    expected = (examples.x + 0.1 * variable.grad.sign()).clamp(0, 1)
    found = FGSM(Params(), Threat(0.1)).perturb(model, examples, 0)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_fgsm_returns_its_step_where_the_loss_falls():
    x = torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64)
    examples = Examples(x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    model = Wave(frequency=6.0)  # cos(2.4) < 0, and uphill is towards pi, but the step lands at cos(5.4) > 0
    x_adv = FGSM(Params(), Threat(0.5)).perturb(model, examples, 0)
    assert x_adv.item() == pytest.approx(0.9)
    assert model(x_adv)[0, 0] > 0 > model(x)[0, 0]


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("init", ["uniform", "zero"])
def test_pgd_with_restarts_equals_the_naive_loop(loss, init):
    model, examples = small_net(), small_examples()
    objective = {"ce": cross_entropy, "margin": margin}[loss](examples.y)
    iterates: list[Tensor] = []
    losses: list[Tensor] = []
    for restart in range(3):
        start = examples.x
        if init == "uniform":
            start = start + 0.1 * per_example_uniform(start, examples.index, 7, "pgd", restart)
        found = naive_pgd(model, examples.x, start, objective, epsilon=0.1, step=0.025, steps=5)
        iterates += found[0]
        losses += found[1]
    best_x, best_loss = highest(iterates, losses)
    pgd = PGD(PGDParams(steps=5, restarts=3, loss=loss, init=init), Threat(0.1))
    ascent = pgd.maximise(model, examples, 7)
    assert torch.allclose(ascent.x, best_x, rtol=0, atol=1e-10)
    assert torch.allclose(ascent.loss, best_loss, rtol=0, atol=1e-10)
    assert torch.equal(pgd.perturb(model, examples, 7), ascent.x)


def test_pgd_default_step_is_a_quarter_of_epsilon():
    model, examples = small_net(), small_examples()
    found = [
        PGD(PGDParams(steps=3, step=step), Threat(0.1)).perturb(model, examples, 0) for step in (None, 0.025, 0.02)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_more_restarts_never_lower_the_loss():
    model, examples = small_net(), small_examples(40)
    one, five = (
        PGD(PGDParams(steps=2, restarts=restarts), Threat(0.1)).maximise(model, examples, 0).loss for restarts in (1, 5)
    )
    assert (five >= one).all()
    assert (five > one).any()


def test_pgd_starts_depend_on_the_index_of_an_example_not_on_its_position():
    model, examples = small_net(), small_examples(20)
    pgd = PGD(PGDParams(steps=1, restarts=2), Threat(0.1))
    found = pgd.maximise(model, examples, 0)
    order = torch.randperm(20, generator=seeded(9))
    permuted = pgd.maximise(model, examples[order], 0)
    assert torch.allclose(permuted.x, found.x[order], rtol=0, atol=1e-12)
    assert torch.allclose(permuted.loss, found.loss[order], rtol=0, atol=1e-12)
    some = pgd.maximise(model, examples[5:9], 0)
    assert torch.allclose(some.x, found.x[5:9], rtol=0, atol=1e-12)
    renamed = Examples(examples.x, examples.y, examples.index + 1)
    assert not torch.allclose(pgd.perturb(model, renamed, 0), found.x, rtol=0, atol=1e-3)
    assert not torch.allclose(pgd.perturb(model, examples, 1), found.x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [1, 6, 20, 64])
def test_memory_batch_does_not_change_pgd(batch):
    model, examples = small_net(), small_examples(20)
    pgd = PGD(PGDParams(steps=3, restarts=2), Threat(0.1))
    found = pgd.run(model, examples, Workspace(batch=batch, seed=5))
    assert torch.allclose(found, pgd.perturb(model, examples, 5), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# AutoAttack
# ---------------------------------------------------------------------------------------------------------


class Remembering(Journal):
    """Keeps units in a dictionary, and raises an error after a number of computed units."""

    def __init__(self, lives: float = math.inf, kept: dict[str, Mapping[str, np.ndarray]] | None = None) -> None:
        self.lives = lives
        self.kept = {} if kept is None else kept
        self.computed: list[str] = []

    def unit(self, name, compute):
        if name not in self.kept:
            if self.lives == 0:
                raise InterruptedError(name)
            self.lives -= 1
            self.kept[name] = dict(compute())
            self.computed.append(name)
        return self.kept[name]


class Coarse(nn.Module):
    """Rounds images to 8 grey levels: no gradient reaches the pixels, so only queries and random starts break it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x * 8).round() / 8 + 0 * x)


class Sharp(nn.Module):
    """Has logits so large that the cross-entropy has hardly any gradient: later stages find what the first missed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.network(x)


@pytest.fixture(scope="module")
def perceptron() -> nn.Module:
    """A small float32 network that classifies most digits correctly, about half of them also at epsilon 0.1."""
    examples = digits(0, 600)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        for _ in range(150):
            noisy = examples.x + 0.1 * (2 * torch.rand_like(examples.x) - 1)
            optimizer.zero_grad()
            F.cross_entropy(model(noisy), examples.y).backward()
            optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def original(model: nn.Module, examples: Examples, epsilon: float, version: str, batch: int, seed: int = 0):
    """x_adv and flags (still standing) of the authors' own evaluation."""
    with torch.random.fork_rng():
        suite = pyautoattack.AutoAttack(model, norm="Linf", eps=epsilon, seed=seed, version="standard")
        suite.logger.setLevel("CRITICAL")
        if version == "apgd":
            suite.attacks_to_run = ["apgd-ce", "apgd-t"]
        x_adv, predicted = suite.run_standard_evaluation(examples.x, examples.y, batch_size=batch)
    return x_adv, predicted == examples.y


def flags(model: nn.Module, x_adv: Tensor, examples: Examples) -> Tensor:
    with torch.no_grad():
        return model(x_adv).argmax(1) == examples.y


@pytest.fixture
def small_budgets(monkeypatch):
    """The original with fewer iterations and queries, in the adapter and in the reference."""
    set_version = pyautoattack.AutoAttack._set_version

    def smaller(self, version="standard"):
        set_version(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = 2
        self.apgd_targeted.n_target_classes = 1
        self.fab.n_iter = 10
        self.square.n_queries = 200

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", smaller)


def test_apgd_tier_equals_the_authors_code_with_unbroken_examples_regrouped(perceptron):
    examples, journal = digits(1000, 1034), Remembering()
    ours = AutoAttack(AutoAttackParams(version="apgd", batch=12), Threat(0.1))
    weights, random_state = copy.deepcopy(perceptron.state_dict()), torch.get_rng_state()
    x_adv = ours.run(perceptron, examples, Workspace(journal=journal))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[key]) for key, value in perceptron.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in perceptron.parameters())
    expected, standing = original(perceptron, examples, 0.1, "apgd", 12)
    assert torch.equal(x_adv, expected)
    assert torch.equal(flags(perceptron, x_adv, examples), standing)
    broken = {name: int(arrays["broken"].sum()) for name, arrays in journal.kept.items()}
    sizes = {name: len(arrays["broken"]) for name, arrays in journal.kept.items()}
    assert sizes["apgd-ce-0"] == sizes["apgd-ce-1"] == sizes["apgd-t-0"] == 12, "full batches of survivors"
    assert broken["apgd-ce-0"] > 0 < broken["apgd-ce-1"]
    assert 0 < standing.sum() < 34


@pytest.mark.parametrize("epsilon", [0.03, 0.1, 0.5])
def test_where_only_errors_are_read_apgd_breaks_the_same_images_with_fewer_passes(perceptron, epsilon):
    examples, counter = digits(1000, 1034), PassCounter(perceptron)
    _, standing = original(perceptron, examples, epsilon, "apgd", 12)
    whole, counter.forward = counter.forward, 0
    attack = AutoAttack(AutoAttackParams(version="apgd", batch=12), Threat(epsilon))
    x_adv = attack.run(perceptron, examples, Workspace(errors_only=True))
    counter.remove()
    assert torch.equal(flags(perceptron, x_adv, examples), standing)
    assert counter.forward < {0.03: 1, 0.1: 0.95, 0.5: 0.05}[epsilon] * whole
    moved = (x_adv != examples.x).flatten(1).any(1)
    assert torch.equal(moved, ~standing & flags(perceptron, examples.x, examples))
    assert (x_adv - examples.x).abs().max() <= epsilon + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


@pytest.mark.usefixtures("small_budgets")
def test_autoattack_without_fast_is_the_original_where_only_errors_are_read(perceptron):
    attack = AutoAttack(AutoAttackParams(version="apgd", fast=False), Threat(0.1))
    x_adv = attack.run(perceptron, digits(1000, 1034), Workspace(errors_only=True))
    assert torch.equal(x_adv, original(perceptron, digits(1000, 1034), 0.1, "apgd", 250)[0])


@pytest.mark.usefixtures("small_budgets")
def test_apgd_tier_draws_with_the_given_seed(perceptron):
    examples, attack = digits(1000, 1034), AutoAttack(AutoAttackParams(version="apgd", seed=3), Threat(0.1))
    x_adv = attack.run(perceptron, examples, Workspace())
    assert torch.equal(x_adv, original(perceptron, examples, 0.1, "apgd", 250, seed=3)[0])


def check_standard_version(model: nn.Module, examples: Examples, epsilon: float, batch: int) -> dict[str, int]:
    """Compare the adapter with the original; return how many examples each stage broke."""
    journal = Remembering()
    ours = AutoAttack(AutoAttackParams(batch=batch), Threat(epsilon))
    random_state = torch.get_rng_state()
    x_adv = ours.run(model, examples, Workspace(journal=journal))
    assert torch.equal(torch.get_rng_state(), random_state)
    expected, standing = original(model, examples, epsilon, "standard", batch)
    assert torch.equal(x_adv, expected)
    assert torch.equal(flags(model, x_adv, examples), standing)
    assert [name.rpartition("-")[0] for name in journal.computed] == sorted(
        (name.rpartition("-")[0] for name in journal.computed),
        key=["apgd-ce", "apgd-t", "fab-t", "square"].index,
    )
    broken = dict.fromkeys(["apgd-ce", "apgd-t", "fab-t", "square"], 0)
    for name, arrays in journal.kept.items():
        broken[name.rpartition("-")[0]] += int(arrays["broken"].sum())
    assert ours.notes == {"only_square": broken["square"]}
    return broken


@pytest.mark.usefixtures("small_budgets")
def test_standard_version_equals_the_authors_code(perceptron):
    broken = check_standard_version(Sharp(perceptron).eval(), digits(1000, 1030), 0.1, batch=30)
    assert broken["apgd-ce"] > 0 < broken["apgd-t"]
    assert broken["fab-t"] > 0, "it tries classes that the shortened apgd-t left out"


@pytest.mark.usefixtures("small_budgets")
def test_standard_version_equals_the_authors_code_where_gradients_are_masked(perceptron):
    broken = check_standard_version(Coarse(perceptron).eval(), digits(1000, 1014), 0.17, batch=6)
    assert broken["apgd-ce"] > 0, "by its random start"
    assert broken["square"] > 0, "the one stage that needs no gradient"


@pytest.mark.slow
def test_standard_version_equals_the_authors_code_at_full_budget(perceptron):
    broken = check_standard_version(perceptron, digits(1000, 1012), 0.12, batch=6)
    assert broken["apgd-ce"] > 0


@pytest.mark.usefixtures("small_budgets")
def test_folding_changes_at_most_one_flag_and_without_folding_none_changes(monkeypatch):
    """On a network with batch normalisation: plain is the authors' code, pixel for pixel; fast rounds differently."""
    model = residual()
    examples = digits(1000, 1060)
    plain, fast = (
        AutoAttack(AutoAttackParams(batch=30, version="apgd", fast=fast), Threat(0.1)).run(model, examples, Workspace())
        for fast in (False, True)
    )
    expected, standing = original(model, examples, 0.1, "apgd", 30)
    assert torch.equal(plain, expected)
    assert 0 < standing.sum() < 60
    assert (flags(model, fast, examples) != standing).sum() <= 1
    used: list[nn.Module] = []
    monkeypatch.setattr(autoattack, "folded", lambda model, x: used.append(model) or folded(model, x))
    AutoAttack(AutoAttackParams(version="apgd", fast=False), Threat(0.1)).run(model, examples[:4], Workspace())
    assert used == []
    AutoAttack(AutoAttackParams(version="apgd"), Threat(0.1)).run(model, examples[:4], Workspace())
    assert used == [model]


def residual() -> nn.Module:
    """resnet8(width=4) in float32, trained on digits for a few steps."""
    model = resnet8(ResNet8Params(width=4), ImageShape(1, 8, 10, (0.3,), (0.37,)), "relu")
    initialize(model, generator(2, "init"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(40):
        part = digits(50 * (step % 10), 50 * (step % 10) + 50)
        optimizer.zero_grad()
        F.cross_entropy(model(part.x), part.y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def test_autoattack_moves_exactly_the_images_it_breaks(perceptron):
    examples = digits(1000, 1030)
    wrong_labels = torch.arange(30) % 5 == 0
    y = torch.where(wrong_labels, (perceptron(examples.x).argmax(1) + 1) % 10, perceptron(examples.x).argmax(1))
    examples = Examples(examples.x, y, examples.index)
    x_adv = AutoAttack(AutoAttackParams(version="apgd"), Threat(0.1)).run(perceptron, examples, Workspace())
    moved = (x_adv != examples.x).flatten(1).any(1)
    assert not moved[wrong_labels].any(), "images that are wrong already stay as they are"
    assert torch.equal(moved, ~flags(perceptron, x_adv, examples) & ~wrong_labels)
    assert 0 < moved.sum() < 24
    assert (x_adv - examples.x).abs().max() <= 0.1 + 1e-6


@pytest.mark.usefixtures("small_budgets")
@pytest.mark.parametrize("lives", [0, 2, 4])
def test_autoattack_resumes_bit_for_bit(perceptron, lives):
    examples, undisturbed, dying = digits(1000, 1034), Remembering(), Remembering(lives)
    attack = AutoAttack(AutoAttackParams(version="apgd", batch=12), Threat(0.1))
    x_adv = attack.run(perceptron, examples, Workspace(journal=undisturbed))
    assert len(undisturbed.computed) > 4
    with pytest.raises(InterruptedError):
        attack.run(perceptron, examples, Workspace(journal=dying))
    torch.rand(5)  # another process meets another global state
    second = Remembering(kept=dying.kept)
    assert torch.equal(attack.run(perceptron, examples, Workspace(journal=second)), x_adv)
    assert dying.computed + second.computed == undisturbed.computed, "nothing twice, nothing left out"


def test_autoattack_returns_the_images_if_all_are_misclassified(perceptron):
    examples = digits(1000, 1010)
    wrong = Examples(examples.x, (perceptron(examples.x).argmax(1) + 1) % 10, examples.index)
    x_adv = AutoAttack(AutoAttackParams(), Threat(0.1)).run(perceptron, wrong, Workspace())
    assert torch.equal(x_adv, examples.x)


def test_autoattack_refuses_fewer_than_ten_classes():
    examples = small_examples()
    examples = Examples(examples.x.float(), examples.y, examples.index)
    with pytest.raises(UsageError, match="this model has 5"):
        AutoAttack(AutoAttackParams(), Threat(0.1)).run(small_net().float(), examples, Workspace())


def test_autoattack_refuses_float64():
    with pytest.raises(UsageError, match="float32 only"):
        AutoAttack(AutoAttackParams(), Threat(0.1)).run(small_net(), small_examples(), Workspace())


def test_autoattack_versions_name_the_originals_stages():
    suite = pyautoattack.AutoAttack(nn.Identity(), eps=0.1, seed=0)
    assert list(autoattack.VERSIONS["standard"]) == suite.attacks_to_run
    assert autoattack.VERSIONS["apgd"] == autoattack.VERSIONS["standard"][:2]
    assert inspect.signature(suite.run_standard_evaluation).parameters["batch_size"].default == 250
    assert AutoAttackParams().batch == 250
