"""Modifiers that act on images, targets, attacks and losses, against formulas written out one example at a time."""

from __future__ import annotations

import copy
import itertools
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import naive
from helpers.naive import CLASSES, COUNT, EPSILON, SHAPE, at, batch, images, inner, network, training
from scipy.stats import binom
from torch import Tensor, nn

from robflat_bench.attacks.engine import TrainingAttack, cross_entropy
from robflat_bench.core import Batch, ImageShape, Method, Modifier, Moment, Params, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.methods.at import AT
from robflat_bench.methods.trades import TRADES, TRADESParams
from robflat_bench.modifiers.autoaugment import AutoAugment
from robflat_bench.modifiers.cutmix import CutMix, CutMixParams
from robflat_bench.modifiers.cutout import Cutout, CutoutParams
from robflat_bench.modifiers.ignore_incorrect import IgnoreIncorrect
from robflat_bench.modifiers.label_noise import LabelNoise, LabelNoiseParams
from robflat_bench.modifiers.label_smoothing import LabelSmoothing, LabelSmoothingParams
from robflat_bench.modifiers.pgd_tau import PGDTau, PGDTauParams, moving
from robflat_bench.modifiers.prevent_label_leaking import PreventLabelLeaking
from robflat_bench.modifiers.self_supervision import SelfSupervision, SelfSupervisionParams
from robflat_bench.modifiers.unlabeled import Unlabeled, UnlabeledParams
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition, weighted_mean
from robflat_bench.training.inputs import TrainingInputs

pytestmark = pytest.mark.usefixtures("one_thread")

COLOUR = ImageShape(3, 32, CLASSES, (0.4914, 0.4822, 0.4465), (0.25, 0.25, 0.25))
MEAN = {SHAPE: [76], COLOUR: [125, 123, 114]}  # 0.3 * 255 = 76.5 rounds to even


@pytest.fixture
def model() -> nn.Module:
    return network()


def bytes_of(shape: ImageShape, count: int = COUNT) -> Tensor:
    size = (count, shape.channels, shape.size, shape.size)
    return torch.randint(256, size, generator=generator("bytes"), dtype=torch.uint8)


def composed(registry, text: str, model: nn.Module) -> Composition:
    composition = Composition(compose(registry, text))
    composition.setup(training(model))
    return composition


# ---------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_equals_the_sum_over_classes(soft):
    given = batch(soft)
    target = LabelSmoothing(LabelSmoothingParams(tau=0.3)).target(given)
    for i, k in itertools.product(range(COUNT), range(CLASSES)):
        expected = 0.7 * float(given.target[i, k]) + 0.03
        assert float(target[i, k]) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(given.target, batch(soft).target)


def many(classes: int, count: int) -> Batch:
    """One big batch whose labels are the classes in turn."""
    y = torch.arange(count) % classes
    target = nn.functional.one_hot(y, classes).double()
    return Batch(torch.arange(count), images(0, 1), y, target, torch.ones(count), Moment(7, 2, 3))


@pytest.mark.parametrize(("classes", "tau"), [(10, 0.1), (10, 1.0), (3, 0.4)])
def test_label_noise_draws_labels_with_probability_tau_and_uniformly_over_classes(classes, tau):
    given = many(classes, 30_000)
    target = LabelNoise(LabelNoiseParams(tau=tau)).target(given)
    assert torch.equal(target.sum(1), torch.ones(len(target)).double())
    assert torch.equal(target.amax(1), torch.ones(len(target)).double())
    flipped = target.argmax(1) != given.y
    low, high = binom.interval(0.999, len(target), tau * (1 - 1 / classes))
    assert low <= int(flipped.sum()) <= high
    for true, drawn in itertools.permutations(range(classes), 2):
        count = int((target[given.y == true].argmax(1) == drawn).sum())
        low, high = binom.interval(1 - 1e-5, len(target) // classes, tau / classes)
        assert low <= count <= high


def test_label_noise_is_drawn_anew_in_each_update_and_replaces_whole_soft_targets():
    given, noise = batch(soft=True), LabelNoise(LabelNoiseParams(tau=0.5))
    drawn = [noise.target(at(given, update=update)) for update in range(4)]
    assert torch.equal(drawn[0], noise.target(at(given, update=0)))
    assert len({tuple(target.argmax(1).tolist()) for target in drawn}) == 4
    rows = torch.cat(drawn)
    kept = (rows == given.target.repeat(4, 1)).all(1)
    assert 0 < int(kept.sum()) < len(rows)
    assert (rows[~kept].amax(1) == 1).all()
    assert torch.equal(LabelNoise(LabelNoiseParams(tau=0)).target(given), given.target)


@pytest.mark.parametrize(
    "text", ["label-noise(tau=1)+label-smoothing(tau=0.2)", "label-smoothing(tau=0.2)+label-noise(tau=1)"]
)
def test_label_noise_acts_before_smoothing_and_the_attack_sees_neither(registry, model, text):
    given = at(batch(), update=1)
    prepared = composed(registry, f"at+{text}", model).prepare(given)
    noisy = LabelNoise(LabelNoiseParams(tau=1)).target(given)
    assert not torch.equal(noisy, given.target)
    assert torch.allclose(prepared.target, 0.8 * noisy + 0.02)
    assert torch.equal(prepared.y, batch().y)
    assert torch.equal(AT(Params()).attack(model, prepared, inner()), AT(Params()).attack(model, given, inner()))


# ---------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------


def augmenting(modifier: Modifier, shape: ImageShape) -> Modifier:
    modifier.setup(replace(training(nn.Identity()), shape=shape))
    return modifier


@pytest.mark.parametrize("shape", [SHAPE, COLOUR], ids=["gray", "colour"])
@pytest.mark.parametrize("fraction", [0.5, 0.4, 1.0])
def test_cutout_equals_the_loop_over_pixels(shape, fraction):
    given = bytes_of(shape)
    made = augmenting(Cutout(CutoutParams(fraction=fraction)), shape).augment(given, generator("cutout"))
    source, size = generator("cutout"), shape.size
    rows, columns = (torch.randint(size, (COUNT,), generator=source).tolist() for _ in range(2))
    side = {0.5: size // 2, 0.4: {8: 3, 32: 13}[size], 1.0: size}[fraction]
    expected = given.clone()
    for i, (row, column) in enumerate(zip(rows, columns, strict=True)):
        for down, right in itertools.product(range(side), repeat=2):
            h, w = row - math.floor(side / 2) + down, column - math.floor(side / 2) + right
            if 0 <= h < size and 0 <= w < size:
                expected[i, :, h, w] = torch.tensor(MEAN[shape], dtype=torch.uint8)
    assert torch.equal(made, expected)
    assert not torch.equal(made, given)
    assert torch.equal(given, bytes_of(shape)), "the images it was given are untouched"


def test_cutout_centres_are_uniform_over_all_pixels():
    """Each pixel is covered as often as the number of centres within reach predicts."""
    count = 20_000
    given = torch.full((count, 1, 8, 8), 200, dtype=torch.uint8)
    made = augmenting(Cutout(CutoutParams()), SHAPE).augment(given, generator("centres"))
    reach = [sum(centre - 2 <= position < centre + 2 for centre in range(8)) / 8 for position in range(8)]
    assert reach[0] < reach[3] == 0.5
    for h, w in itertools.product(range(8), repeat=2):
        low, high = binom.interval(1 - 1e-5, count, reach[h] * reach[w])
        assert low <= int((made[:, 0, h, w] != 200).sum()) <= high


@pytest.mark.parametrize("shape", [SHAPE, COLOUR], ids=["gray", "colour"])
def test_autoaugment_is_torchvisions_policy_image_by_image(shape):
    from torchvision.transforms import v2

    given, state = bytes_of(shape, 40), torch.get_rng_state()
    auto = augmenting(AutoAugment(Params()), shape)
    made = auto.augment(given, generator("auto"))
    assert torch.equal(torch.get_rng_state(), state)
    assert made.shape == given.shape
    assert made.dtype == torch.uint8
    assert torch.equal(given, bytes_of(shape, 40))
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=MEAN[shape])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator("auto"))))
        for image, ours in zip(given, made, strict=True):
            assert torch.equal(policy(image), ours)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(auto.augment(given, generator("auto")), made), "the global state plays no part"
    assert not torch.equal(auto.augment(given, generator("other")), made)


@pytest.mark.parametrize("shape", [SHAPE, COLOUR], ids=["gray", "colour"])
def test_autoaugment_treats_each_image_by_itself_and_fills_with_the_mean(shape):
    given = torch.full((200, shape.channels, shape.size, shape.size), 255, dtype=torch.uint8)
    made = augmenting(AutoAugment(Params()), shape).augment(given, generator("fill"))
    assert len({image.numpy().tobytes() for image in made}) > 10
    fill = torch.tensor(MEAN[shape], dtype=torch.uint8)[:, None, None]
    moved = (made == fill).all(1).flatten(1)
    assert (moved.any(1) & ~moved.all(1)).sum() > 10


@pytest.mark.parametrize("text", ["at+autoaugment+cutout", "at+cutout+autoaugment"])
def test_autoaugment_acts_before_cutout(registry, model, text):
    given, source = bytes_of(SHAPE, 30), generator("both")
    made = composed(registry, text, model).augment(given, generator("both"))
    middle = augmenting(AutoAugment(Params()), SHAPE).augment(given, source)
    assert torch.equal(made, augmenting(Cutout(CutoutParams()), SHAPE).augment(middle, source))
    assert not torch.equal(made, middle)


# ---------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------


def test_cutmix_pastes_one_box_of_the_example_before_and_mixes_targets_by_its_area():
    given, state, areas, relabelled = batch(weighted=True), torch.get_rng_state(), set(), 0
    for update in range(40):
        mixed = CutMix(CutMixParams()).batch(replace(at(given, update=update), views=lambda _: given.x))
        changed = [
            [(h, w) for h in range(8) for w in range(8) if mixed.x[i, 0, h, w] != given.x[i, 0, h, w]]
            for i in range(COUNT)
        ]
        box = changed[0]
        rows, columns = {h for h, _ in box}, {w for _, w in box}
        assert box == sorted(itertools.product(rows, columns))
        assert rows == set(range(min(rows, default=0), max(rows, default=-1) + 1))
        assert columns == set(range(min(columns, default=0), max(columns, default=-1) + 1))
        for i in range(COUNT):
            assert changed[i] == box
            for h, w in box:
                assert mixed.x[i, 0, h, w] == given.x[i - 1, 0, h, w]
            share = len(box) / 64
            expected = [0.0] * CLASSES
            expected[int(given.y[i])] += 1 - share
            expected[int(given.y[i - 1])] += share
            assert mixed.target[i].tolist() == pytest.approx(expected, abs=1e-7)
            if share != 0.5:
                assert int(mixed.y[i]) == int(given.y[i - 1] if share > 0.5 else given.y[i])
                relabelled += share > 0.5
        assert (mixed.index == -1).all(), "a mixture is none of the training examples"
        assert torch.equal(mixed.weight, given.weight)
        assert mixed.view(1) is mixed.x
        areas.add(len(box))
    assert len(areas) > 8
    assert relabelled
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(given.x, images(0))
    twice = [CutMix(CutMixParams()).batch(at(given, update=5)).x for _ in range(2)]
    assert torch.equal(*twice)


def test_cutmix_areas_follow_the_beta_distribution():
    """Beta(500, 500) is always close to 1/2: no box exceeds half of the image's area, with sides rounded down."""
    given = batch()
    share = [
        float(((mixed := CutMix(CutMixParams(alpha=500)).batch(at(given, update=u))).x != given.x).double().mean())
        for u in range(30)
    ]
    assert max(share) == 16 / 64
    assert mixed.x.dtype == torch.float64


def unlabeled(ratio: float, count: int = 300, augment=None) -> tuple[Unlabeled, nn.Module, Tensor]:
    spare = bytes_of(SHAPE, count)
    helper = network(5).eval().requires_grad_(False)
    modifier = Unlabeled(UnlabeledParams(ratio=ratio))
    modifier.setup(training(network(), helpers={"standard": helper}, spare=lambda: spare))
    return modifier, helper, spare


@pytest.mark.parametrize(("ratio", "own"), [(0.7, 2), (0.5, 3), (0.1, 6)])
def test_unlabeled_images_carry_the_labels_that_the_helper_predicts(ratio, own):
    given = batch(weighted=True)
    modifier, helper, spare = unlabeled(ratio)
    made = modifier.batch(given)
    for name in ("index", "x", "y", "target"):
        assert torch.equal(getattr(made, name)[:own], getattr(given, name)[:own])
        assert len(getattr(made, name)) == COUNT
    assert torch.equal(made.weight, given.weight)
    seen = set()
    for i in range(own, COUNT):
        (position,) = [m for m in range(len(spare)) if torch.equal(spare[m].double() / 255, made.x[i])]
        logits = helper(spare[position : position + 1].double() / 255)[0].tolist()
        label = logits.index(max(logits))
        assert int(made.y[i]) == label
        assert made.target[i].tolist() == [float(k == label) for k in range(CLASSES)]
        assert int(made.index[i]) == -1
        seen.add(position)
    others = modifier.batch(at(given, update=9))
    assert torch.equal(made.x, modifier.batch(given).x)
    assert own == COUNT or not torch.equal(others.x, made.x)
    for name, tensor in vars(batch(weighted=True)).items():
        assert not isinstance(tensor, Tensor) or torch.equal(getattr(given, name), tensor)


def test_unlabeled_images_are_drawn_from_all_spare_images_with_replacement():
    modifier, helper, spare = unlabeled(0.7, count=3)
    predicted = {int(k) for k in helper(spare.double() / 255).argmax(1)}
    drawn = [modifier.batch(at(batch(), update=update)).x[2:] for update in range(20)]
    assert len({image.numpy().tobytes() for image in torch.cat(drawn)}) == 3
    assert {int(k) for k in modifier.batch(batch()).y[2:]} <= predicted
    assert any(len({image.numpy().tobytes() for image in part}) < 3 for part in drawn)


def test_unlabeled_images_are_augmented_as_training_images():
    modifier, _, _ = unlabeled(0.5)
    asked: list[str] = []

    def augment(given: Tensor, purpose: str) -> Tensor:
        asked.append(purpose)
        return 0.25 + 0 * given.double()

    made = modifier.batch(replace(batch(), views=lambda number: images(number), augment=augment))
    assert torch.equal(made.x[:3], images(0)[:3])
    assert (made.x[3:] == 0.25).all()
    assert asked == ["augment unlabeled"]
    assert made.views is None, "a view of the labelled images alone would not be one of this batch"


def test_unlabeled_leaves_a_batch_of_one_labelled():
    given = batch()
    one = replace(given, **{name: getattr(given, name)[:1] for name in ("index", "x", "y", "target", "weight")})
    assert torch.equal(unlabeled(0.7)[0].batch(one).x, one.x)


def test_cutmix_acts_after_unlabeled(registry, model):
    """All images of the batch are mixed, labelled and unlabelled ones."""
    for text in ("at+cutmix+unlabeled", "at+unlabeled+cutmix"):
        composition = Composition(compose(registry, text))
        helpers = {"standard": network(5).eval()}
        composition.setup(training(model, helpers=helpers, spare=lambda: bytes_of(SHAPE, 20)))
        given = at(batch(), update=4)
        made = composition.prepare(given)
        expected = CutMix(CutMixParams()).batch(composition.modifiers["unlabeled"].batch(given))
        assert torch.equal(made.x, expected.x)
        assert torch.equal(made.y, expected.y)
        assert torch.equal(made.target, expected.target)


def test_images_from_elsewhere_are_augmented_with_random_numbers_of_their_own():
    composition = SimpleNamespace(augment=lambda given, source: given, replaces_augmentation=False)
    inputs = SimpleNamespace(
        seed=3,
        recipe=SimpleNamespace(augmentation="crop-flip"),
        composition=composition,
        splits=SimpleNamespace(shape=SHAPE),
        dtype=torch.float64,
        device="cpu",
    )
    x, rows = bytes_of(SHAPE, 9), torch.tensor([4, 1, 7])
    made = TrainingInputs.batch(inputs, x, torch.arange(9), rows, 2, Moment(3, 1, 2))
    assert torch.equal(made.augmented(x[rows], "augment"), made.x)
    assert torch.equal(made.augmented(x[rows], "augment 2"), made.view(2))
    assert not torch.equal(made.augmented(x[rows], "other"), made.x)
    assert not torch.equal(made.view(1), made.view(2))


# ---------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------

METHODS = {"at": lambda: AT(Params()), "trades": lambda: TRADES(TRADESParams(beta=2))}


def slow(steps: int = 8, bn: str = "eval") -> TrainingAttack:
    """An attack of small steps, which fools the examples at different iterates."""
    return TrainingAttack(epsilon=EPSILON, step=0.004, steps=steps, start="normal", bn=bn, source=generator("attack"))


def labelled(model: nn.Module, wrong: tuple[int, ...] = (2,)) -> Batch:
    """The batch with the model's predictions as labels, except for the examples `wrong`."""
    given = batch()
    y = copy.deepcopy(model).eval()(given.x).argmax(1)
    y[list(wrong)] = (y[list(wrong)] + 1) % CLASSES
    return replace(given, y=y, target=nn.functional.one_hot(y, CLASSES).double())


def recorded(model: nn.Module, attack) -> tuple[list[Tensor], Tensor]:
    """The model's inputs during the attack, and x_adv."""
    seen: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    x_adv = attack()
    handle.remove()
    return seen, x_adv


def balance(model: nn.Module, given: Batch) -> None:
    """Move the biases so that the model does not predict one class for all."""
    with torch.no_grad():
        model.network.head.bias -= copy.deepcopy(model).eval()(given.x).median(0).values


def objective_of(name: str, model: nn.Module, given: Batch):
    twin = copy.deepcopy(model).eval()
    clean = [[p.detach() for p in naive.probabilities(row)] for row in twin(given.x)]

    def objective(i: int, logits: Tensor) -> Tensor:
        p = naive.probabilities(logits)
        return -torch.log(p[int(given.y[i])]) if name == "at" else naive.divergence(clean[i], p)

    return objective


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tau", [0, 1, 3])
def test_pgd_tau_stops_each_example_at_its_misclassified_iterate_number_tau_plus_one(model, name, tau):
    balance(model, batch())
    given, steps = labelled(model), 8
    start = given.x + 1e-3 * torch.randn(given.x.shape, generator=generator("attack"), dtype=torch.float64)
    iterates, _ = naive.pgd(model, given.x, start, objective_of(name, model, given), steps, step=0.004)
    twin, first, stops = copy.deepcopy(model).eval(), [], []
    for i in range(COUNT):
        wrong = [t for t in range(steps + 1) if int(twin(iterates[t])[i].argmax()) != int(given.y[i])]
        first.append(wrong[0] if wrong else None)
        stops.append(wrong[tau] if len(wrong) > tau else steps)
    assert 0 in first, "one is misclassified from the start"
    assert None in first, "one is never fooled"
    assert {*first} & {1, 2, 3, 4}, "one is fooled on the way"
    method: Method = METHODS[name]()
    modifier = PGDTau(PGDTauParams(tau=tau))
    seen, x_adv = recorded(model, lambda: modifier.attack(method.attack, model, given, slow(steps)))
    seen = seen[-(steps + 1) :]
    for t, i in itertools.product(range(steps + 1), range(COUNT)):
        assert torch.allclose(seen[t][i], iterates[min(t, stops[i])][i], rtol=0, atol=1e-10)
    for i in range(COUNT):
        assert torch.allclose(x_adv[i], iterates[stops[i]][i], rtol=0, atol=1e-10)
    never = first.index(None)
    assert not torch.allclose(x_adv[never], given.x[never], atol=1e-3), "never fooled, it is not left clean"


@pytest.mark.parametrize(("tau", "expected"), [(0, 0), (1, 3), (2, 4), (3, 5), (4, 6)])
def test_pgd_tau_counts_misclassified_iterates(tau, expected):
    """Iterates wrong, right, right, wrong, wrong, wrong. The reference is the published loop, for one example."""
    pattern = [True, False, False, True, True, True]

    def published() -> int:
        left, at = tau, 0
        for wrong in pattern:
            if wrong and left == 0:
                break
            left -= wrong
            at += 1
        return at

    moves, at = moving(torch.tensor([0, 0]), tau), 0
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for _ in pattern:
        asked = moves(torch.stack([wrong if pattern[at] else right, right]))
        at += int(asked[0])  # an example that does not move keeps its iterate
        assert bool(asked[1]), "one that is never misclassified goes on"
    assert at == published() == expected


def prediction(model: nn.Module, x: Tensor, bn: str) -> list[int]:
    twin = copy.deepcopy(model).train(bn == "train")
    return [int(row.argmax()) for row in twin(x)]


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_ignore_incorrect_leaves_only_misclassified_examples_clean(model, bn):
    given = batch()
    predicted = prediction(model, given.x, bn)
    given = replace(given, y=torch.tensor([k if i % 2 else (k + 1) % CLASSES for i, k in enumerate(predicted)]))
    state = copy.deepcopy(model.state_dict())
    seen, x_adv = recorded(
        model, lambda: IgnoreIncorrect(Params()).attack(AT(Params()).attack, model, given, inner(bn=bn))
    )
    attacked = AT(Params()).attack(model, given, inner(bn=bn))
    assert torch.equal(seen[0], given.x)
    for i in range(COUNT):
        assert torch.equal(x_adv[i], attacked[i] if i % 2 else given.x[i])
        assert not torch.equal(attacked[i], given.x[i])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_prevent_label_leaking_attacks_the_prediction(model, bn):
    given = batch()
    predicted = prediction(model, given.x, bn)
    assert predicted != given.y.tolist()
    modifier, state = PreventLabelLeaking(Params()), copy.deepcopy(model.state_dict())
    seen, x_adv = recorded(model, lambda: modifier.attack(AT(Params()).attack, model, given, inner(8, bn=bn)))
    assert torch.equal(seen[0], given.x)
    if bn == "eval":
        start = naive.uniform_start(given.x)
        iterates, best = naive.pgd(
            model, given.x, start, lambda i, logits: -torch.log(naive.probabilities(logits)[predicted[i]]), steps=8
        )
        for ours, reference in zip(seen[1:], iterates, strict=True):
            assert torch.allclose(ours, reference, rtol=0, atol=1e-10)
        assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)
    expected = inner(8, bn=bn)(model, given.x, cross_entropy(torch.tensor(predicted)))
    assert torch.equal(x_adv, expected)
    assert not torch.equal(x_adv, AT(Params()).attack(model, given, inner(8, bn=bn)))
    assert torch.equal(given.y, batch().y)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["pgd-tau", "ignore-incorrect", "prevent-label-leaking"])
def test_attack_modifiers_leave_the_target_of_the_loss(registry, model, name):
    given, twin = batch(soft=True), copy.deepcopy(model)
    composition = composed(registry, f"at+{name}", model)
    modifier = composition.modifiers[name]
    x_adv = modifier.attack(AT(Params()).attack, twin, given, inner())
    expected = weighted_mean(AT(Params()).loss(twin, given, x_adv), given.weight)
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1)
    assert composition.update(model, given, inner(), optimizer) == pytest.approx(expected.item(), rel=1e-12)
    with pytest.raises(UsageError, match=r"standard has .* own"):
        compose(registry, f"standard+{name}")


# ---------------------------------------------------------------------------------------------------------
# Self-supervision
# ---------------------------------------------------------------------------------------------------------


class Rotations(nn.Module):
    """The network's features and the head, layer by layer."""

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, x: Tensor) -> Tensor:
        features = (x - self.model.mean) / self.model.std
        for layer in list(self.model.network)[:-1]:
            features = layer(features)
        return self.head(features)


def turned(x: Tensor, turns: int) -> Tensor:
    """[C,8,8] turned by 90 degrees to the left, pixel by pixel."""
    for _ in range(turns):
        result = torch.empty_like(x)
        for h, w in itertools.product(range(8), repeat=2):
            result[:, 7 - w, h] = x[:, h, w]
        x = result
    return x


def supervised(model: nn.Module, weight: float = 1.0) -> SelfSupervision:
    modifier = SelfSupervision(SelfSupervisionParams(weight=weight))
    modifier.setup(training(model))
    return modifier


def test_turned_images_are_attacked_as_the_naive_loop_does(model):
    modifier, given = supervised(model), batch()
    with torch.no_grad():
        modifier.head[:2].train()(torch.randn(40, 16, generator=generator("head"), dtype=torch.float64))
    drawn = [modifier.prepare(model, at(given, update=update), inner(1))[1] for update in range(8)]
    assert set(torch.cat(drawn).tolist()) == {0, 1, 2, 3}
    assert len({tuple(turns.tolist()) for turns in drawn}) == 8
    state = copy.deepcopy(modifier.head.state_dict())
    seen, (x_adv, turns) = recorded(model, lambda: modifier.prepare(model, given, inner(6)))
    seen = [images for images in seen if len(images) == COUNT]  # folding looks at the structure with one image
    assert torch.equal(turns, modifier.prepare(model, given, inner(1))[1])
    x = torch.stack([turned(given.x[i], int(turns[i])) for i in range(COUNT)])
    iterates, best = naive.pgd(
        Rotations(model, modifier.head),
        x,
        naive.uniform_start(x),
        lambda i, logits: -torch.log(naive.probabilities(logits)[int(turns[i])]),
        steps=6,
    )
    for ours, reference in zip(seen, iterates, strict=True):
        assert torch.allclose(ours, reference, rtol=0, atol=1e-10)
    assert torch.allclose(x_adv, best, rtol=0, atol=1e-10)
    assert not torch.allclose(best, iterates[-1], atol=1e-3)
    assert all(torch.equal(value, state[key]) for key, value in modifier.head.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in (*model.parameters(), *modifier.head.parameters()))
    assert all(module.training for module in (*model.modules(), *modifier.head.modules()))


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_self_supervision_equals_the_naive_implementation(registry, model, weight):
    given = batch(soft=True, weighted=True)
    modifier = supervised(model, weight)
    both = nn.ModuleList([model, modifier.head])
    twins = copy.deepcopy(both)
    x_adv, turns = images(1), torch.tensor([0, 3, 2, 1, 1, 0])
    own = weighted_mean(AT(Params()).loss(model, given, images(2)), given.weight)
    ours = own + modifier.loss(model, given, (x_adv, turns))
    twin, head = twins
    logits = twin(images(2))
    theirs = naive.mean(
        [naive.cross_entropy(naive.probabilities(logits[i]), given.target[i]) for i in range(COUNT)], given
    )
    rotations = Rotations(twin, head)(x_adv)
    for i in range(COUNT):
        theirs = theirs - weight / COUNT * torch.log(naive.probabilities(rotations[i])[int(turns[i])])
    naive.assert_same_update(ours, both, theirs, twins)


def test_self_supervision_head_has_the_papers_layers_fixed_weights_and_the_models_precision(model):
    one, other = supervised(model), supervised(network(9))
    sizes = [tuple(p.shape) for p in one.head.parameters()]
    assert sizes == [(256, 16), (256,), (256,), (256,), (4, 256), (4,)]
    for mine, theirs in zip(one.head.parameters(), other.head.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.dtype == torch.float64
    assert isinstance(one.head[2], nn.ReLU)


def test_self_supervision_leaves_no_hook_or_graph_on_the_model(registry, model):
    composition = composed(registry, "at+self-supervision", model)
    names = set(model.state_dict())
    features: list[weakref.ref] = []
    handle = model.network.head.register_forward_pre_hook(lambda _, inputs: features.append(weakref.ref(inputs[0])))
    modifier = composition.modifiers["self-supervision"]
    loss = modifier.loss(model, batch(), modifier.prepare(model, batch(), inner()))
    handle.remove()
    del loss
    assert features
    assert not [one for one in features if one() is not None], "no graph outlives its loss"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    copy.deepcopy(model)(images(0))
    assert set(composition.evaluated(model, Moment())) == names
    assert {name for name in composition.state_dict() if "head" in name}


def test_self_supervision_needs_a_linear_layer():
    with pytest.raises(UsageError, match="linear layer at its end"):
        supervised(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))


def test_self_supervision_head_is_trained_and_resumes(registry):
    def run(model: nn.Module, updates: range, saved: dict[str, Tensor] | None) -> Composition:
        composition = composed(registry, "at+self-supervision(weight=2)", model)
        if saved is not None:
            composition.load_state_dict(saved)
        optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1)
        for update in updates:
            composition.update(model, composition.prepare(at(batch(), update=update)), inner(), optimizer)
        return composition

    model = network()
    before = copy.deepcopy(supervised(model).head.state_dict())
    whole = run(model, range(4), None)
    halves = network()
    saved = {name: tensor.clone() for name, tensor in run(halves, range(2), None).state_dict().items()}
    again = run(halves, range(2, 4), saved)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name])
    head = whole.modifiers["self-supervision"].head.state_dict()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in head.items())


# ---------------------------------------------------------------------------------------------------------
# A whole run
# ---------------------------------------------------------------------------------------------------------


def test_record_of_a_run_on_unlabelled_images_says_extra_data(command, tiny, tmp_path):
    method = "at+unlabeled+autoaugment+cutout+cutmix+label-noise"
    done = command("run", "--method", method, "--protocol", tiny, "--store", tmp_path, "--json")
    assert done.code == 0, done.err
    assert done.document["extra_data"] is True
