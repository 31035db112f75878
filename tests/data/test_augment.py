"""Crops and flips against a per-image reference, and their randomness."""

import pytest
import torch
import torch.nn.functional as F

from robflat_bench.data.augment import AUGMENTATIONS, random_crop, random_flip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_crop_is_a_naive_crop_at_the_drawn_offsets(padding, dtype):
    x = torch.randint(1, 256, (40, 3, 9, 7), generator=seeded(1)).to(dtype)
    rows, columns = torch.randint(2 * padding + 1, (2, 40), generator=seeded())
    expected = torch.zeros_like(x)
    for i, image in enumerate(x):
        padded = F.pad(image, (padding,) * 4)
        expected[i] = padded[:, rows[i] : rows[i] + 9, columns[i] : columns[i] + 7]
    got = random_crop(x, padding, seeded())
    assert got.dtype == dtype
    assert torch.equal(got, expected)


def test_crop_reaches_every_offset_independently():
    x = torch.zeros(20_000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    where = random_crop(x, 2, seeded()).mean(0)[0]
    # Each of the 25 places has probability 1/25; the standard error of a share is 0.0014.
    assert (where - 1 / 25).abs().max() < 0.007


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest():
    x = torch.rand(4_000, 2, 3, 4, generator=seeded(1))
    got = random_flip(x, seeded())
    same = (got == x).flatten(1).all(1)
    mirrored = (got == x.flip(3)).flatten(1).all(1)
    assert torch.equal(same, ~mirrored)
    assert 0.46 < mirrored.float().mean() < 0.54  # five standard errors


def test_same_seed_same_images():
    x = torch.rand(64, 3, 32, 32, generator=seeded(1))
    augment = AUGMENTATIONS["crop-flip"]
    kept = x.clone()
    assert torch.equal(augment(x, seeded(5)), augment(x, seeded(5)))
    assert not torch.equal(augment(x, seeded(5)), augment(x, seeded(6)))
    assert torch.equal(x, kept)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    AUGMENTATIONS["crop-flip"](torch.rand(4, 3, 8, 8, generator=seeded()), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_none_changes_and_draws_nothing():
    generator = seeded()
    x = torch.rand(2, 1, 8, 8, generator=seeded(1))
    assert AUGMENTATIONS["none"](x, generator) is x
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_crop_flip_pads_by_four():
    shifts = AUGMENTATIONS["crop-flip"](torch.ones(2_000, 1, 8, 8), seeded())[:, 0]
    assert int((shifts.sum(2) == 0).sum(1).max()) == 4
    assert int((shifts.sum(1) == 0).sum(1).max()) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_images_on_every_device():
    x = torch.rand(64, 3, 32, 32, generator=seeded(1))
    augment = AUGMENTATIONS["crop-flip"]
    assert torch.equal(augment(x.cuda(), seeded()).cpu(), augment(x, seeded()))
