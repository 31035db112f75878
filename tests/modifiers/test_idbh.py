"""IDBH: crops and shifts against the naive loop, ranges of its changes, shares of its holes, and the recipe's place."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from helpers.naive import SHAPE, network, training
from scipy.stats import binom
from torch import Tensor

from robflat_bench.config.recipe import Recipe
from robflat_bench.core import ImageShape, Moment, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.modifiers import idbh
from robflat_bench.modifiers.idbh import CHANGES, IDBH, IDBHParams, crop_shift, uniform_integers
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition
from robflat_bench.training.inputs import TrainingInputs

pytestmark = pytest.mark.usefixtures("one_thread")

COLOUR = ImageShape(3, 32, 10, (0.4914, 0.4822, 0.4465), (0.25, 0.25, 0.25))
UNLIKELY = 1e-9


def pictures(shape: ImageShape, count: int) -> Tensor:
    size = (count, shape.channels, shape.size, shape.size)
    return torch.randint(1, 256, size, generator=generator("pictures"), dtype=torch.uint8)


def modifier(shape: ImageShape = COLOUR, **params: object) -> IDBH:
    made = IDBH(IDBHParams(**params))
    made.setup(training(network(), shape=shape))
    return made


@pytest.fixture
def unchanged(monkeypatch):
    """No change of colour or shape: what is left are flip, crop and hole."""
    monkeypatch.setattr(idbh, "changed", lambda image: image)


# ---------------------------------------------------------------------------------------------------------
# CropShift
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "most"), [(COLOUR, 10), (SHAPE, 3), (SHAPE, 8), (SHAPE, 0)])
def test_crop_shift_is_the_naive_crop_pad_and_crop(shape, most):
    """Crop w columns and h rows away, pad by w and h on every side, crop the original size."""
    count, size = 24, shape.size
    given = pictures(shape, count)
    ours = crop_shift(given, most, generator("shift"))
    source = generator("shift")

    def integers(highest: list[int]) -> list[int]:
        draws = torch.rand(len(highest), generator=source, dtype=torch.float64).tolist()
        return [math.floor(draw * (top + 1)) for draw, top in zip(draws, highest, strict=True)]

    removed = integers([most] * count)
    columns = integers(removed)
    rows = [a - b for a, b in zip(removed, columns, strict=True)]
    left, top, right, down = (integers(highest) for highest in (columns, rows, columns, rows))
    for i in range(count):
        w, h = columns[i], rows[i]
        kept = given[i, :, top[i] : top[i] + size - h, left[i] : left[i] + size - w]
        padded = torch.zeros(shape.channels, size + h, size + w, dtype=torch.uint8)
        padded[:, h : h + size - h, w : w + size - w] = kept
        y, x = h - down[i], w - right[i]
        assert torch.equal(ours[i], padded[:, y : y + size, x : x + size])
    if most == 0:
        assert torch.equal(ours, given)
    else:
        assert max(removed) == most
        assert len({*zip(columns, rows, strict=True)}) > most


def test_crop_shift_removes_at_most_so_many_rows_and_columns_together():
    given = torch.full((400, 1, 32, 32), 255, dtype=torch.uint8)
    moved = crop_shift(given, 10, generator("removed"))
    rows, columns = ((moved == 0).all(axis).sum(-1)[:, 0] for axis in (3, 2))
    assert set((rows + columns).tolist()) == set(range(11))
    assert set(rows.tolist()) == set(columns.tolist()) == set(range(11))


def test_integers_are_uniform_up_to_the_highest():
    drawn = uniform_integers(torch.full((20_000,), 4), generator("integers"))
    counts = Counter(drawn.tolist())
    assert set(counts) == set(range(5))
    assert all(abs(n - 4000) < 350 for n in counts.values()), "more than six standard deviations"
    assert uniform_integers(torch.zeros(50), generator("integers")).tolist() == [0] * 50


@pytest.mark.parametrize(("size", "shift", "most"), [(32, 10 / 32, 10), (8, 10 / 32, 2), (64, 10 / 32, 20), (8, 0, 0)])
def test_shift_scales_with_the_image(size, shift, most):
    assert modifier(ImageShape(3, size, 10, (0.5,) * 3, (0.2,) * 3), shift=shift).most == most


# ---------------------------------------------------------------------------------------------------------
# Changes of colour and shape
# ---------------------------------------------------------------------------------------------------------


def blended(image: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * image + (1 - factor) * other).clamp(0, 255)


def naive_grey(image: Tensor) -> Tensor:
    return (0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]).expand_as(image)


def naive_smooth(image: Tensor) -> Tensor:
    """Each inner pixel by its neighbourhood, the pixel itself five times; the border stays."""
    out = image.clone()
    for r, c in itertools.product(range(1, 31), repeat=2):
        out[:, r, c] = (image[:, r - 1 : r + 2, c - 1 : c + 2].sum((1, 2)) + 4 * image[:, r, c]) / 13
    return out


def naive_contrast(image: Tensor) -> Tensor:
    return torch.full_like(image, float(naive_grey(image)[0].mean()))


BLENDS = {
    "saturation": (naive_grey, 0.1, 1.9),
    "brightness": (torch.zeros_like, 0.5, 1.9),
    "contrast": (naive_contrast, 0.5, 1.9),
    "sharpness": (naive_smooth, 0.1, 1.9),
}


@pytest.mark.parametrize("name", BLENDS)
@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_factors_of_colour_span_the_published_range(name, amount):
    other, low, high = BLENDS[name]
    image = pictures(COLOUR, 1)[0]
    expected = blended(image.double(), other(image.double()), low + (high - low) * amount)
    ours = CHANGES[name](image, amount, 1, 0)
    assert ours.dtype == torch.uint8
    assert (ours.double() - expected).abs().max() < 2, "rounded to a grey level, at most twice"


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("amount", "radians"), [(0.0, 0.05), (1.0, 0.15)])
@pytest.mark.parametrize("axis", [0, 1])
def test_shear_moves_pixels_along_one_axis(side, amount, radians, axis):
    image = torch.zeros(1, 33, 33, dtype=torch.uint8)
    image[0, 16, :] = image[0, :, 16] = 255
    ours = CHANGES["shear"](image, amount, side, axis)
    lines = ours[0] if axis == 0 else ours[0].T  # axis 0: the column through the centre leans
    assert (lines[16] == 255).all(), "the line along the shear stays"
    seen = [[c for c in range(33) if lines[r, c] == 255] for r in range(33) if r != 16]
    assert all(len(columns) == 1 for columns in seen)
    slope = (seen[-1][0] - seen[0][0]) / 32
    assert abs(abs(slope) - math.tan(radians)) < 1 / 32
    assert slope * (CHANGES["shear"](image, amount, -side, axis)[0] != ours[0]).any() != 0


def test_rotation_turns_by_whole_degrees_from_one_to_ten(monkeypatch):
    angles = []
    monkeypatch.setattr(idbh.F, "rotate", lambda image, angle, fill: angles.append(angle) or image)
    image = pictures(COLOUR, 1)[0]
    for side, part in itertools.product((1, -1), range(1000)):
        CHANGES["rotation"](image, (part + 0.5) / 1000, side, 0)
    assert set(angles) == {*range(1, 11), *range(-10, 0)}
    assert set(Counter(map(abs, angles)).values()) == {200}


def test_grey_images_keep_their_saturation_and_digits_stay_digits():
    image = pictures(SHAPE, 1)[0]
    assert torch.equal(CHANGES["saturation"](image, 0.3, 1, 0), image)
    for name, change in CHANGES.items():
        made = change(image, 0.7, -1, 1)
        assert (made.shape, made.dtype) == (image.shape, torch.uint8), name


def test_every_change_has_the_same_probability_and_both_sides(monkeypatch):
    seen: Counter = Counter()
    amounts = []

    def recorder(name):
        def change(image, amount, side, axis):
            seen[name, side, axis] += 1
            amounts.append(amount)
            return image

        return change

    monkeypatch.setattr(idbh, "CHANGES", {name: recorder(name) for name in CHANGES})
    torch.manual_seed(5)
    image = pictures(SHAPE, 1)[0]
    for _ in range(3200):
        idbh.changed(image)
    assert len(seen) == len(CHANGES) * 4
    for name in CHANGES:
        count = sum(n for (which, _, _), n in seen.items() if which == name)
        assert binom.cdf(count, 3200, 1 / 8) > UNLIKELY
        assert binom.sf(count, 3200, 1 / 8) > UNLIKELY
    assert 0 <= min(amounts) < 0.01
    assert 0.99 < max(amounts) < 1


# ---------------------------------------------------------------------------------------------------------
# Hole, flip, and the whole
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "share"), [("weak", 0.5), ("strong", 1.0)])
def test_strength_is_the_share_of_images_with_a_hole(unchanged, strength, share):
    given = torch.full((400, 3, 32, 32), 255, dtype=torch.uint8)
    made = modifier(strength=strength, shift=0).augment(given, generator("holes"))
    black = (made == 0).all(1).double().mean((1, 2))
    assert set(made.unique().tolist()) == {0, 255}
    pierced = int((black > 0).sum())
    assert pierced == 400 if share == 1 else binom.cdf(pierced, 400, share) > UNLIKELY < binom.sf(pierced, 400, share)
    assert 0.015 < black[black > 0].min() < 0.04
    assert 0.28 < black.max() < 0.35


def test_half_of_the_images_are_mirrored(unchanged, monkeypatch):
    made = modifier(shift=0)
    monkeypatch.setattr(made, "hole", lambda image: image)
    given = pictures(COLOUR, 300)
    flipped = made.augment(given, generator("flips"))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, given, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, given, strict=True)]
    assert sum(mirrored) + sum(same) == 300
    assert binom.cdf(sum(mirrored), 300, 0.5) > UNLIKELY < binom.sf(sum(mirrored), 300, 0.5)


@pytest.mark.parametrize("shape", [COLOUR, SHAPE], ids=["colour", "digits"])
def test_equal_random_numbers_give_equal_images_and_leave_the_global_state(shape):
    given, made = pictures(shape, 12), modifier(shape)
    torch.manual_seed(1)
    one = made.augment(given, generator("a"))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one, made.augment(given, generator("a")))
    assert not torch.equal(one, made.augment(given, generator("b")))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator is as before"
    assert torch.equal(given, pictures(shape, 12)), "the images that it receives stay as they are"


def augmented(registry, text: str, augmentation: str, moment: Moment = Moment(3, 1, 2)) -> Tensor:  # noqa: B008
    """The images of a training batch: what the attack starts from."""
    composition = Composition(compose(registry, text))
    composition.setup(training(network(), shape=COLOUR))
    recipe = Recipe(
        epochs=1, batch_size=6, learning_rate=0.1, epsilon=0.1, attack_steps=1, attack_step=0.1,
        augmentation=augmentation,
    )  # fmt: skip
    splits = type("Splits", (), {"shape": COLOUR})()
    inputs = TrainingInputs(
        model=None, composition=composition, helpers={}, recipe=recipe, splits=splits, seed=3, selection=None,
        check_every=1, evaluation_seed=0, folder=None, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    images = pictures(COLOUR, 6)
    return inputs.prepared(images, torch.zeros(6, dtype=torch.long), torch.arange(6), moment.update, moment).x


def test_idbh_replaces_the_recipes_augmentation_and_other_modifiers_do_not(registry):
    plain = augmented(registry, "at+idbh", "none")
    assert torch.equal(augmented(registry, "at+idbh", "crop-flip"), plain)
    assert not torch.equal(augmented(registry, "at+cutout", "crop-flip"), augmented(registry, "at+cutout", "none"))
    assert plain.min() >= 0
    assert plain.max() <= 1
    assert not torch.equal(plain, pictures(COLOUR, 6) / 255)


def test_idbh_draws_are_keyed_by_the_moment(registry):
    one = augmented(registry, "at+idbh", "none")
    assert torch.equal(one, augmented(registry, "at+idbh", "none"))
    for moment in (Moment(4, 1, 2), Moment(3, 2, 2), Moment(3, 1, 3), Moment(3, 1, 2, shard=1)):
        assert not torch.equal(one, augmented(registry, "at+idbh", "none", moment)), moment


@pytest.mark.parametrize("text", ["at+idbh(strength=mild)", "at+idbh(shift=1)", "at+idbh(shift=-0.1)"])
def test_idbh_refuses_what_has_no_meaning(registry, text):
    with pytest.raises(UsageError, match="idbh"):
        compose(registry, text)
