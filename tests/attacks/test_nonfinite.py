"""Attacks on networks whose gradient is not finite, against the same networks with a derivative written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.networks import Root
from torch import Tensor, nn

from robflat_bench.attacks.climbers import Ascent
from robflat_bench.attacks.engine import TrainingAttack, ascend, attacked, cross_entropy, gradient_at
from robflat_bench.numerics.gradients import gradients_of, guarded

pytestmark = pytest.mark.usefixtures("one_thread")

Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Spread(nn.Module):
    """Logits from the pixels and from their spread."""

    def __init__(self, root: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.root = root
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        spread = self.root((pixels - pixels[:, :1]).square().mean(1))
        return self.head(pixels) + spread[:, None] * torch.tensor([1.0, -1.0, 0.5])


def images() -> Tensor:
    """Six images; the first three are constant, so their spread is 0."""
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.5
    x[:3] = 0.3
    return x


@pytest.fixture
def twins() -> tuple[nn.Module, nn.Module]:
    return Spread(torch.sqrt), Spread(Root.apply)


def test_a_gradient_is_that_of_the_derivative_written_by_hand(twins):
    x = images()
    odd, hand = (gradient_at(x, lambda x, net=net: cross_entropy(Y)(net(x))) for net in twins)
    assert torch.equal(odd, hand)
    assert odd.flatten(1).abs().amax(1).min() > 0


def test_images_with_a_finite_gradient_keep_it_bit_for_bit():
    net, x = Spread(torch.sqrt), images()
    variable = x.clone().requires_grad_()
    (raw,) = torch.autograd.grad(cross_entropy(Y)(net(variable)).sum(), variable)
    assert raw[:3].isnan().all()
    assert torch.equal(gradient_at(x, lambda x: cross_entropy(Y)(net(x)))[3:], raw[3:])


@pytest.mark.parametrize("stops", [False, True])
def test_an_ascent_goes_on_where_a_gradient_is_not_finite(twins, stops):
    """Also with examples that stop early, whose rule counts from the start of the ascent that counts."""

    def moving() -> Callable[[Tensor], Tensor]:
        steps = torch.zeros(6)
        return lambda logits: steps.add_(1) <= torch.arange(6)

    x, found = images(), []
    for net in twins:
        with attacked(net):
            settings = {"epsilon": 0.3, "step": 0.05, "steps": 7, "moving": moving if stops else None}
            found.append(ascend(net, x, x, cross_entropy(Y), **settings))
    assert torch.equal(found[0].x, found[1].x)
    assert torch.equal(found[0].loss, found[1].loss)
    moved = (found[0].x - x).flatten(1).abs().amax(1)
    assert (moved[1:] > 0).all()
    assert not twins[0]._forward_hooks


def test_an_ascent_goes_on_where_only_an_iterate_has_no_derivative(twins):
    """Dark pixels rise and bright ones fall; after one step they are equal."""
    dark = torch.arange(16) % 2 == 0
    x = torch.where(dark, 0.375, 0.5).reshape(1, 1, 4, 4)
    found = []
    for net in twins:
        nn.init.zeros_(net.head.weight)
        net.head.weight.data[0] = torch.where(dark, -9.0, 9.0)
        with attacked(net):
            found.append(ascend(net, x, x, cross_entropy(Y[:1]), epsilon=0.5, step=0.0625, steps=4).x)
    assert torch.equal(*found)
    assert torch.equal(found[0].flatten(), torch.where(dark, 0.625, 0.25))


def test_a_training_attack_goes_on_too(twins):
    settings = {"epsilon": 0.3, "step": 0.05, "steps": 5, "start": "zero", "bn": "train"}
    odd, hand = (TrainingAttack(**settings, source=torch.Generator())(net, images(), cross_entropy(Y)) for net in twins)
    assert torch.equal(odd, hand)


def test_weights_have_the_gradient_of_the_derivative_written_by_hand():
    """The root of a weight that is 0."""
    weight = torch.tensor([0.0, 4.0], requires_grad=True)
    values, (gradient, unread) = gradients_of(
        lambda: weight.sqrt() + 2 * weight, [weight, torch.zeros(3, requires_grad=True)]
    )
    assert values.tolist() == [0, 10]
    assert gradient.tolist() == [2, 2.25]
    assert unread.tolist() == [0, 0, 0]


def test_a_guard_ends_with_its_block():
    net, x = Spread(torch.sqrt), images().requires_grad_()
    with guarded(net):
        inside = torch.autograd.grad(net(x).sum(), x)[0]
    outside = torch.autograd.grad(net(x).sum(), x)[0]
    assert inside.isfinite().all()
    assert outside[:3].isnan().all()


def test_a_loss_of_nan_is_the_highest_whenever_it_comes():
    x = torch.arange(4.0).reshape(4, 1, 1, 1)
    first = Ascent(x, torch.tensor([1.0, torch.nan, torch.inf, torch.nan]))
    second = Ascent(x + 10, torch.tensor([torch.nan, 1.0, torch.nan, torch.nan]))
    found = Ascent.begin(x).improved_by(first).improved_by(second)
    assert found.x.flatten().tolist() == [10, 1, 12, 3]
    assert found.loss.isnan().all()
