"""Training attacks under an l2 threat: the recipe's, and those of methods that have their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.commands import TINY, promised
from torch import Tensor

from robflat_bench.attacks.norms import CLIMBED
from robflat_bench.core.randomness import generator
from robflat_bench.methods.fgsm_rs import one_step, random_start
from robflat_bench.registry.components import compose
from robflat_bench.testing.fixtures import inner, training_world
from robflat_bench.testing.trial_training import set_up
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")

EPSILON = 0.6
L2 = CLIMBED["l2"]


def attack(steps: int = 3, norm: str = "l2"):
    return replace(inner(steps), epsilon=EPSILON, step=0.25, norm=norm)


def attacked_twice(registry, method: str) -> tuple[Composition, Tensor, Tensor]:
    """The composition, its images and the clean ones; of methods whose backward pass moves images, the second ones."""
    place = training_world()
    composition = set_up(compose(registry, method), place)
    batch = composition.prepare(place.batch)
    x_adv = composition.attack(place.model, batch, attack())
    if x_adv.requires_grad:
        composition.method.loss(place.model, batch, x_adv).mean().backward(inputs=[x_adv])
        x_adv = composition.attack(place.model, batch, attack())
    losses = composition.method.loss(place.model, batch, x_adv)
    assert losses.isfinite().all()
    return composition, x_adv.detach(), batch.x


@pytest.mark.parametrize(
    "method",
    [
        *("at", "trades", "mart", "fgsm-rs", "n-fgsm", "free-at", "gradalign", "gradalign(start=uniform)"),
        *("at+pgd-tau(tau=1)", "at+ignore-incorrect", "at+prevent-label-leaking"),
    ],
)
def test_training_images_use_the_l2_ball_and_stay_in_it(registry, method):
    composition, x_adv, x = attacked_twice(registry, method)
    sizes, radius = L2.size(x_adv - x), composition.method.radius(EPSILON)
    assert sizes.max() <= radius + 1e-6
    assert sizes.max() > 0.3 * EPSILON  # clipping to [0,1] takes some
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_one_step_methods_follow_the_gradient_itself():
    place = training_world()
    batch, given = place.batch, attack()
    start = random_start(batch, given)
    assert L2.size(start - batch.x).max() <= EPSILON + 1e-6
    found = one_step(place.model, batch, replace(given, epsilon=0.05), batch.x, 1.0)
    with given.attacking(place.model):
        variable = batch.x.clone().requires_grad_()
        torch.nn.functional.cross_entropy(place.model(variable), batch.y, reduction="sum").backward()
    flat = variable.grad.flatten(1)
    expected = (batch.x + 0.05 * variable.grad / flat.norm(dim=1)[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_free_at_moves_its_perturbation_within_the_l2_ball(registry):
    composition, _, _ = attacked_twice(registry, "free-at(repeats=3)")
    sizes = L2.size(composition.method.delta)
    torch.testing.assert_close(sizes, torch.full_like(sizes, EPSILON), rtol=0, atol=1e-6)
    assert (composition.method.delta.abs().flatten(1).std(1) > 1e-3).all()  # signs would move all pixels alike


def test_the_training_attack_starts_uniformly_in_the_ball():
    """Shares of the volume, (r / eps)^D, are U(0,1): D = 64, so that the radii themselves crowd near eps."""
    draws = L2.noise_like(torch.zeros(2000, 1, 8, 8, dtype=torch.float64), generator("start"))
    shares = L2.size(draws) ** 64
    assert abs(float(shares.mean()) - 0.5) < 4 * (1 / 12 / 2000) ** 0.5


@pytest.mark.parametrize("method", ["at", "trades"])
def test_a_run_under_l2_trains_evaluates_and_resumes(command, tmp_path, method):
    protocol = tmp_path / "tiny-l2.toml"
    text = TINY.replace("[fixed.threat]", '[fixed.threat]\nnorm = "l2"').replace("epsilon = 0.2", "epsilon = 0.8")
    protocol.write_text(text.replace("attack_step = 0.1", "attack_step = 1.0"))
    run = ("run", "--method", method, "--protocol", protocol, "--store", tmp_path / "store", "--json")
    first = command(*run)
    assert first.code == 0, first.err
    record = first.document
    assert record["results"]["last"]["robust_error"]
    (folder,) = (tmp_path / "store").glob("tiny/*/seed-1-*")
    best = (folder / "checkpoints" / "last.safetensors").read_bytes()
    (folder / "record.json").unlink()  # the run was interrupted before its record was written
    again = command(*run)
    assert again.code == 0, again.err
    assert promised(again.document) == promised(record)
    assert (folder / "checkpoints" / "last.safetensors").read_bytes() == best
    other = command(*run[:-1], "--set", "fixed.threat.norm=linf", "--json")
    assert other.document["results"]["last"]["weights"] != record["results"]["last"]["weights"]
