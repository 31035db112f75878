"""The path of an attack: against plain autograd, the last layer's Hessian, groups of images, figure and resumption."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.measures import Remembering, small_examples, small_net
from torch import nn
from torch.nn import functional as F

from robflat_bench.attacks.pgd import PGD, PGDParams
from robflat_bench.core import Examples, Journal, NoValue, Threat, Workspace
from robflat_bench.experiments import choose, figures, work
from robflat_bench.experiments.path import AttackPath, walked

EPSILON, STEP = 0.1, 0.03

pytestmark = pytest.mark.usefixtures("one_thread")


def head_hessian(model: nn.Sequential, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """d^2 loss / dW^2 of the last layer, dense, its bias kept."""
    head = model[-1]
    features = model[:-1](image[None]).detach()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(features, flat.view_as(head.weight), head.bias), label[None])

    return torch.autograd.functional.hessian(loss, head.weight.detach().flatten())


def test_every_iterate_has_the_loss_and_the_flatness_of_plain_autograd():
    model, examples = small_net(), small_examples(6)
    found = walked(model, model[-1], examples, EPSILON, STEP, 4).numpy()
    assert found.shape == (6, 5, 3)
    length = math.sqrt(sum(w**2 for w in model[-1].weight.flatten().tolist()))
    for i, (image, label) in enumerate(zip(examples.x, examples.y, strict=True)):
        x = image.clone()
        for t in range(5):
            x = x.detach().requires_grad_()
            logits = model(x[None])
            loss = F.cross_entropy(logits, label[None])
            trace = float(head_hessian(model, x.detach(), label).diagonal().sum())
            expected = [loss.item(), length * trace, float(logits[0].argmax() != label)]
            assert found[i, t] == pytest.approx(expected, rel=1e-10)
            (gradient,) = torch.autograd.grad(loss, x)
            x = torch.maximum(torch.minimum(x + STEP * gradient.sign(), image + EPSILON), image - EPSILON).clamp(0, 1)
    assert (found[:, 4, 1] != found[:, 0, 1]).all()


def test_the_iterates_are_those_of_pgd_from_the_image():
    model, examples = small_net(), small_examples(20)
    attack = PGD(PGDParams(steps=10, init="zero"), Threat(EPSILON))
    highest = attack.maximise(model, examples, 0).loss
    found = walked(model, model[-1], examples, EPSILON, EPSILON / 4, 10)
    assert found[..., 0].max(1).values.numpy() == pytest.approx(highest.numpy(), rel=1e-9)


def test_a_bias_of_the_head_adds_one_to_the_features_norm():
    """What the docstring says of a bias that moves."""
    model, examples = small_net(), small_examples(1)
    features, head = model[:-1](examples.x).detach(), model[-1]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        weight, bias = flat.split([head.weight.numel(), head.bias.numel()])
        return F.cross_entropy(F.linear(features, weight.view_as(head.weight), bias), examples.y)

    both = torch.cat([head.weight.detach().flatten(), head.bias.detach()])
    trace = float(torch.autograd.functional.hessian(loss, both).diagonal().sum())
    without = float(head_hessian(model, examples.x[0], examples.y[0]).diagonal().sum())
    length = float(features.square().sum())
    assert trace == pytest.approx(without * (length + 1) / length, rel=1e-12)


class Subject:
    """What an experiment reads of a trained model."""

    threat = Threat(EPSILON)

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def load(self) -> nn.Module:
        return self.model

    def examples(self, split: str, count: int) -> Examples:
        return small_examples(count)

    def workspace(self, journal: Journal) -> Workspace:
        return Workspace(250, 0, journal)


def read(text: str, model: nn.Module, journal: Journal) -> AttackPath:
    chosen = choose(text)
    return chosen.experiment.read(Subject(model), chosen.params, journal)


def test_rows_are_means_over_images_in_groups_of_both_ends_of_the_path():
    journal = Remembering()
    values = read("path(steps=4, examples=40)", small_net(), journal)
    (raw,) = (part["path"] for part in journal.kept.values())
    assert values.n == 40
    before, after = raw[:, 0, 2] == 1, raw[:, -1, 2] == 1
    groups = {"misclassified": before, "fooled": ~before & after, "unfooled": ~before & ~after}
    assert sum(group.sum() for group in groups.values()) == 40
    assert sum(group.sum() > 1 for group in groups.values()) >= 2
    for name, group in groups.items():
        rows = values.of(name)
        assert [row.step for row in rows] == [0, 1, 2, 3, 4]
        for t, row in enumerate(rows):
            for quantity, place in ((row.loss, 0), (row.flatness, 1)):
                each = raw[group, t, place]
                assert quantity.n == len(each)
                if len(each) > 1:
                    assert quantity.value == pytest.approx(each.mean())
                    assert quantity.standard_error == pytest.approx(np.std(each, ddof=1) / math.sqrt(len(each)))
    assert values.brief["fooled, images"] == groups["fooled"].sum()
    assert values.brief["fooled, at the end"] == values.of("fooled")[-1].flatness.value


def test_the_default_step_is_a_quarter_of_the_radius():
    found = [
        read(f"path(steps=2, examples=5{more})", small_net(), Remembering()).points for more in ("", ", step=0.025")
    ]
    assert found[0] == found[1]
    assert found[0] != read("path(steps=2, examples=5, step=0.02)", small_net(), Remembering()).points


def test_an_interrupted_path_resumes():
    journal = Remembering(0)
    with pytest.raises(InterruptedError):
        read("path(steps=1, examples=5)", small_net(), journal)
    journal.lives[0] = 1
    resumed = read("path(steps=1, examples=5)", small_net(), journal)
    assert resumed == read("path(steps=1, examples=5)", small_net(), journal)


def test_a_network_without_a_linear_head_has_no_path():
    with pytest.raises(NoValue, match="linear layer"):
        read("path(steps=1, examples=4)", nn.Sequential(small_net(), nn.Softmax(1)).double().eval(), Remembering())


def test_a_group_without_images_leaves_a_gap_in_the_figure():
    text = "path(steps=1, step=1e-9, examples=5)"
    values = read(text, small_net(), Remembering())
    assert values.of("fooled")[0].loss.value is None, "a step of nothing fools no image"
    assert values.brief["fooled, highest"] is None
    model = {"label": "at", "seed": 1, "checkpoint": "last", "epoch": 0, "best_epoch": 0, "run": "r", "weights": "w"}
    document = work.document_model(choose(text)).model_validate(
        {
            "experiment": choose(text).canonical,
            "protocol": {"name": "tiny", "version": "1.0", "hash": "0" * 64},
            "dataset": "digits",
            "dataset_checksum": "0" * 64,
            "canonical_data": True,
            "epsilon": EPSILON,
            "evaluation_seed": 0,
            "numerics": 1,
            "readings": [{"model": model, "values": values.model_dump()}],
        }
    )
    assert {*figures.figure_files(document)} == {"png", "svg"}
    assert [len(axes.lines) for axes in AttackPath.draw(document).axes] == [3, 3]
