"""Programs of networks that change, that look unlike they are, or that are called in unusual places: never another
gradient than the network's own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, gradient_at
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.program import Program

pytestmark = pytest.mark.usefixtures("one_thread")

Behind = Callable[["Network", Tensor], Tensor]


class Network(nn.Module):
    """A folded convolution, a function behind it, mean and head."""

    def __init__(self, behind: Behind) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 3)
        self.register_buffer("shift", torch.full((8, 1, 1), 0.1))
        self.behind, self.flag = behind, False

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.behind(self, self.norm(self.conv(x))).mean(dim=(2, 3)))


def network(behind: Behind = lambda net, x: net.act(x)) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        made = Network(behind).double()
        made.norm.running_mean.uniform_(-0.2, 0.2)
        made.norm.running_var.uniform_(0.5, 2)
    return made.to(memory_format=torch.channels_last).eval()


def images(count: int = 4, size: int = 9) -> Tensor:
    return torch.rand(count, 2, size, size, generator=generator("structure"), dtype=torch.float64)


def loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(model(x), torch.arange(len(x)) % 3, reduction="none")


def runs_program(model: nn.Module, x: Tensor) -> bool:
    """Whether it has a program. Logits and gradient equal those of the unfolded network in any case."""
    with attacked(model):
        plain, expected = model(x), gradient_at(x, loss(model))
        with folded(model, x):
            running = isinstance(model.__dict__.get("forward"), Program)
            logits, found = model(x), gradient_at(x, loss(model))
    assert expected.abs().max() > 0
    assert torch.allclose(logits, plain, rtol=0, atol=1e-10)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    return running


class Reversed(Function):
    """The identity, with a gradient of its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


class Bounded(Reversed):
    """The identity, with the identity's gradient where that is small."""

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clamp(-1, 1)


def hidden(net: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = net.second(x).relu()
    return x + y


def counting(net: Network, x: Tensor) -> Tensor:
    y = x - net.shift
    net.shift += 0
    return y


UNUSUAL: dict[str, tuple[Behind, bool]] = {
    "sum into a ReLU's output": (lambda net, x: x.relu() + net.second(x), True),
    "sum of two ReLUs": (lambda net, x: net.act(net.act(x) + net.act(net.second(x))), True),
    "a module twice": (lambda net, x: net.second(net.act(net.second(x))) + x, True),
    "division": (lambda net, x: (x / net.shift).relu() + x, True),
    "a view read after a change": (lambda net, x: x[:, :, ::2, ::2].relu_() + x[:, :, ::2, ::2], False),
    "gradient of its own": (lambda net, x: Reversed.apply(x), False),
    "gradient of its own where it is large": (lambda net, x: Bounded.apply(x), False),
    "a part without gradient": (hidden, False),
    "state that moves": (counting, False),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_gradients_of_unusual_networks_are_their_own(name):
    behind, known = UNUSUAL[name]
    assert runs_program(network(behind), images()) == known


@pytest.mark.parametrize("draw", [random.random, lambda: float(torch.rand(()))])
def test_networks_that_draw_have_no_program_and_looking_draws_nothing(draw):
    random.seed(1)
    model, x = network(lambda net, x: x.relu() if draw() < 2 else x), images()
    before = random.getstate(), torch.get_rng_state()
    with attacked(model), folded(model, x):
        assert "forward" not in model.__dict__
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def set_flag(model: Network) -> None:
    model.flag = True


def silu(model: Network) -> None:
    model.act = nn.SiLU()


def reflecting(model: Network) -> None:
    model.second = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect").double()


def unnormalised(model: Network) -> None:
    model.norm = nn.Identity()


def parametrized(model: Network) -> None:
    nn.utils.parametrizations.weight_norm(model.second)


def single(model: Network) -> None:
    model.double().second.weight.data.mul_(3)


CHANGES = {
    set_flag: True,
    silu: False,
    reflecting: False,
    unnormalised: True,
    parametrized: False,
    single: True,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_networks_are_looked_at_again(change):
    model, x = network(lambda net, x: net.second(net.act(x) if not net.flag else x)), images()
    assert runs_program(model, x)
    change(model)
    assert runs_program(model, x) == CHANGES[change]


def test_images_of_another_size_have_another_program():
    def behind(net: Network, x: Tensor) -> Tensor:
        return x.relu() if x.shape[-1] > 8 else x

    model, small, large = network(behind), images(size=7), images(size=9)
    assert runs_program(model, small)
    assert runs_program(model, large)
    with attacked(model), folded(model, large):
        found = gradient_at(small, loss(model))
    with attacked(model):
        assert torch.allclose(found, gradient_at(small, loss(model)), rtol=0, atol=1e-10)


def test_a_first_image_alone_shows_a_network_that_counts_its_images():
    model = network(lambda net, x: x.relu() if len(x) > 1 else x)
    assert not runs_program(model, images(1))
    assert not runs_program(model, images(4))


def test_gradients_outside_the_block_are_those_of_the_pass_inside():
    model, x = network(), images().requires_grad_()
    with attacked(model):
        with folded(model, x):
            inside = loss(model)(x).sum()
        (found,) = torch.autograd.grad(inside, x)
        (expected,) = torch.autograd.grad(loss(model)(x).sum(), x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_weights_changed_before_the_way_back_are_an_error():
    model, x = network(lambda net, x: net.second(x)), images().requires_grad_()
    with attacked(model), folded(model, x):
        inside = loss(model)(x).sum()
        model.second.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(inside, x)


def test_weights_replaced_inside_a_block_are_seen():
    model, x = network(lambda net, x: net.second(x)), images()
    with attacked(model), folded(model, x):
        before = gradient_at(x, loss(model))
        model.second.weight.data = 2 * model.second.weight.data
        found = gradient_at(x, loss(model))
    with attacked(model):
        assert torch.allclose(found, gradient_at(x, loss(model)), rtol=0, atol=1e-10)
    assert not torch.allclose(found, before)


def test_a_block_inside_a_block_folds_once():
    model, x = network(), images()
    with attacked(model), folded(model, x):
        expected = gradient_at(x, loss(model))
        with attacked(model), folded(model, x):
            assert torch.equal(gradient_at(x, loss(model)), expected)
        assert torch.equal(gradient_at(x, loss(model)), expected)
    assert runs_program(model, x)


def test_function_transforms_run_the_network():
    model, x = network(), images()
    with attacked(model):
        expected = torch.func.jacrev(model)(x)
        with folded(model, x):
            assert torch.allclose(torch.func.jacrev(model)(x), expected, rtol=0, atol=1e-10)
            head = {"head.weight": model.head.weight.detach().clone()}
            found = torch.func.grad(lambda own: torch.func.functional_call(model, own, (x,)).sum())(head)
    assert found["head.weight"].abs().max() > 0


def test_hooks_added_inside_a_block_are_called():
    model, x, seen = network(), images(), []
    with attacked(model), folded(model, x):
        assert "forward" in model.__dict__
        model.act.register_forward_hook(lambda *_: seen.append(0))
        model(x)
    assert len(seen) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, as forward mode starts
def test_forward_mode_runs_the_network():
    model, x = network(), images().requires_grad_()
    direction = torch.ones_like(x)
    with attacked(model), folded(model, x), forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
        (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.allclose(found.sum(), (expected * direction).sum(), rtol=0, atol=1e-10)


def test_buffers_made_in_inference_mode_are_read():
    model = network(lambda net, x: net.act(x - net.shift))
    with torch.inference_mode():
        model.shift = model.shift.clone()
    assert runs_program(model, images())


def test_hooks_of_all_modules_are_called():
    model, x, seen = network(), images(), []
    with attacked(model), folded(model, x):
        assert "forward" in model.__dict__
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    try:
        with attacked(model), folded(model, x):
            model(x)
    finally:
        handle.remove()
    assert nn.ReLU in seen
