"""The protocol `rice-linf` is the published one: its splits, schedule, attack and network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robflat_bench.config.protocol import load
from robflat_bench.config.study import load_study
from robflat_bench.core import ImageShape
from robflat_bench.registry.components import compose, resolve
from robflat_bench.training.schedule import build_optimizer, build_schedule, learning_rate

CIFAR = ImageShape(3, 32, 10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))


@pytest.fixture(scope="module")
def rice(registry):
    return load(registry, "rice-linf")


def test_all_test_images_are_evaluated_and_none_of_them_chooses_an_epoch(rice):
    data, fixed = rice.fixed.data, rice.fixed
    assert (data.test.pool, data.test.start, data.test.stop, data.test.modulo) == ("test", 0, 10_000, None)
    assert [row.test for row in fixed.attacks] == [10_000] * 3
    assert {data.train.pool, data.heldout.pool} == {"train"}
    assert data.train.stop == data.heldout.start, "no training image chooses an epoch"
    assert data.train.count + data.heldout.count == 50_000
    assert fixed.selection.every == 1


def test_the_rate_drops_tenfold_at_epochs_100_and_150(rice):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(rice.recipe, [weight])
    schedule = build_schedule(rice.recipe, optimizer, steps=2 * rice.recipe.epochs, done=0)
    rates = []
    for _ in range(2 * rice.recipe.epochs):
        rates.append(learning_rate(optimizer))
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 200 + [0.01] * 100 + [0.001] * 100)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, False, 5e-4)


def test_the_training_attack_is_pgd_10_with_steps_of_two_grey_levels(rice):
    recipe = rice.recipe
    assert (recipe.attack_steps, recipe.attack_start, recipe.attack_bn) == (10, "uniform", "train")
    assert recipe.attack_step == pytest.approx(2 / 255, rel=1e-15)
    assert recipe.epsilon == rice.fixed.threat.epsilon == pytest.approx(8 / 255, rel=1e-15)
    assert (recipe.epochs, recipe.batch_size, recipe.augmentation) == (200, 128, "crop-flip")


def test_the_network_has_the_published_size_and_layers(registry, rice):
    model = resolve(registry, "backbone", rice.fixed.backbone).build(CIFAR, rice.recipe.activation)
    assert sum(p.numel() for p in model.parameters()) == 11_172_170
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.network.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
    model.eval()(torch.rand(2, 3, 32, 32))
    stages = {"stage1": (64, 32), "stage2": (128, 16), "stage3": (256, 8), "stage4": (512, 4)}
    assert {name: shapes[name] for name in stages} == {name: (2, c, s, s) for name, (c, s) in stages.items()}
    assert shapes["pool"] == (2, 512)
    assert shapes["head"] == (2, 10)


def test_every_variant_of_the_field_runs_under_rice_too(registry, rice):
    for variant in load_study("field-2026").variants():
        load(registry, "rice-linf", variant.settings)
        assert compose(registry, variant.method).canonical
