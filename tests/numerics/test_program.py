"""A folded network's program against the network itself: equal logits bit for bit, equal gradients."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, gradient_at
from robflat_bench.backbones.parts import initialize
from robflat_bench.core import ImageShape
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.folding import folded
from robflat_bench.numerics.gradients import guarded
from robflat_bench.numerics.program import Program
from robflat_bench.registry.components import resolve

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "digits": ("resnet8(width=8)", ImageShape(1, 8, 10, (0.3,), (0.3,))),
    "mini": ("resnet8(width=24, stem_stride=2, strides=[2, 2, 1])", ImageShape(3, 16, 5, (0.5,) * 3, (0.2,) * 3)),
    "odd": ("resnet8(width=8)", ImageShape(3, 9, 4, (0.5,) * 3, (0.2,) * 3)),
    "few positions": ("resnet8(width=48, stem_stride=2)", ImageShape(3, 8, 4, (0.5,) * 3, (0.2,) * 3)),
    "resnet18": ("resnet18(width=16)", ImageShape(3, 8, 4, (0.5,) * 3, (0.2,) * 3)),
    "preactivation": ("preact-resnet18(width=16)", ImageShape(3, 8, 4, (0.5,) * 3, (0.2,) * 3)),
    "wide": ("wrn(depth=10, factor=1)", ImageShape(3, 12, 4, (0.5,) * 3, (0.2,) * 3)),
    "timm": ("timm(name=resnet18)", ImageShape(3, 8, 4, (0.5,) * 3, (0.2,) * 3)),
}


def built(
    registry, name: str, dtype: torch.dtype = torch.float64, activation: str = "relu"
) -> tuple[nn.Module, Tensor]:
    """A network in channels last with statistics of its own, and images."""
    backbone, shape = NETWORKS[name]
    model = resolve(registry, "backbone", backbone).build(shape, activation)
    initialize(model, generator("program"))
    x = torch.rand(3, shape.channels, shape.size, shape.size, generator=generator("images of a program"))
    model.train()(x)
    return model.to(dtype, memory_format=torch.channels_last).eval(), x.to(dtype)


def running(model: nn.Module) -> bool:
    return isinstance(model.__dict__.get("forward"), Program)


@contextmanager
def without_program(model: nn.Module) -> Iterator[None]:
    own = model.__dict__.pop("forward")
    try:
        yield
    finally:
        model.__dict__["forward"] = own


def loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(model(x), torch.arange(len(x)) % 3, reduction="none")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_equal_bit_for_bit_and_gradients_up_to_rounding(registry, name, count, dtype):
    model, x = built(registry, name, dtype)
    x = x[:count]
    with attacked(model), folded(model, x):
        assert running(model)
        logits, found = model(x), gradient_at(x, loss(model))
        with without_program(model):
            plain, expected = model(x), gradient_at(x, loss(model))
    assert torch.equal(logits, plain)
    bound = 1e-12 if dtype is torch.float64 else 1e-5
    assert torch.allclose(found, expected, rtol=0, atol=bound * float(expected.abs().max()))
    with attacked(model):
        unfolded = gradient_at(x, loss(model))
    assert torch.allclose(found, unfolded, rtol=0, atol=100 * bound * float(expected.abs().max()))


def test_images_and_gradients_of_others_are_not_overwritten(registry):
    """Kernels write in place: into memory of the program's own alone, in every layout of the images."""
    model, x = built(registry, "digits")
    with attacked(model), folded(model, x):
        for images in (
            x,
            x.flip(3)[..., ::1],
            x.contiguous(memory_format=torch.channels_last),
            x.expand(3, -1, -1, -1),
        ):
            before, variable = images.clone(), images.detach().requires_grad_()
            logits = model(variable)
            kept, upstream = logits.detach().clone(), torch.ones_like(logits)
            first = torch.autograd.grad(logits, variable, upstream, retain_graph=True)[0].clone()
            second = torch.autograd.grad(logits, variable, upstream)[0]
            assert torch.equal(images, before)
            assert torch.equal(logits, kept)
            assert torch.equal(upstream, torch.ones_like(upstream))
            assert torch.equal(first, second)


def test_second_derivatives_are_those_of_the_network(registry):
    model, x = built(registry, "digits")
    x = x.requires_grad_()

    def twice() -> Tensor:
        (first,) = torch.autograd.grad(loss(model)(x).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with attacked(model), folded(model, x):
        assert running(model)
        found = twice()
        with without_program(model):
            expected = twice()
    assert expected.abs().max() > 0
    assert torch.allclose(found, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_program_reads_the_weights_of_each_block_and_those_moved_inside(registry):
    model, x = built(registry, "digits")
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        with attacked(model), folded(model, x):
            for _ in range(2):
                with torch.no_grad():
                    for module in model.modules():
                        if isinstance(module, nn.Conv2d | nn.Linear):
                            module.weight.mul_(0.9)
                found = gradient_at(x, loss(model))
                with without_program(model):
                    assert torch.allclose(found, gradient_at(x, loss(model)), rtol=0, atol=1e-12)


def test_hooks_of_layers_are_called(registry):
    model, x = built(registry, "digits")
    with attacked(model), folded(model, x):
        assert running(model)
    seen = []
    handle = model.get_submodule("network.stage1.block1.conv1").register_forward_hook(lambda *_: seen.append(0))
    with attacked(model), folded(model, x):
        seen.clear()
        model(x)
    assert len(seen) == 1
    handle.remove()
    with attacked(model), folded(model, x):
        assert running(model)


def test_weights_that_require_a_gradient_get_it(registry):
    model, x = built(registry, "digits")
    head = model.get_submodule("network.head")
    with attacked(model), folded(model, x):
        head.weight.requires_grad_()
        (found,) = torch.autograd.grad(loss(model)(x).sum(), head.weight)
        head.weight.requires_grad_(False)
    assert found.abs().max() > 0


def test_under_autocast_and_guarded_the_network_runs_itself(registry):
    model, x = built(registry, "digits", torch.float32)
    with attacked(model), torch.autocast("cpu", torch.bfloat16), folded(model, x):
        assert not running(model)
    with attacked(model), folded(model, x), guarded(model):
        assert model(x.requires_grad_()).grad_fn.name() != "_RunBackward"


class Added(nn.Module):
    """A convolution in channels last, and a function behind it."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.behind(self.norm(self.conv(x))).mean(dim=(2, 3)))


def ignored(x: Tensor) -> Tensor:
    x.relu()
    return x


BEHIND = {
    "relu": (F.relu, True),
    "relu in place": (lambda x: x.relu_(), True),
    "itself": (lambda x: x, True),
    "sum with what it reads": (lambda x: x + x.relu(), True),
    "sum in place": (lambda x: x.add_(x.relu()), True),
    "shared sum": (lambda x: (y := x.relu()) + (x + y), True),
    "every other": (lambda x: x[:, :, ::2, ::2] + x[:, :, ::2, ::2].relu(), True),
    "slice of a summand": (lambda x: ((y := x.relu()) + x)[:, :, ::2, ::2] + y[:, :, ::2, ::2], True),
    "twice": (lambda x: x + x, False),
    "sigmoid": (torch.sigmoid, False),
    "offset": (lambda x: x[:, :, 1::2, 1::2], False),
    "crop": (lambda x: x[:, :, :2, :2], False),
    "branch": (lambda x: x.relu() if x.mean() > 0 else x, False),
    "noise": (lambda x: x + torch.randn_like(x), False),
    "of the batch": (lambda x: x.relu() if len(x) > 1 else x, False),
    "constant": (lambda x: x - torch.ones(4, 1, 1), False),
    "ignored": (ignored, False),
    "weighted sum": (lambda x: torch.add(x, x.relu(), alpha=2), False),
}


@pytest.mark.parametrize("name", BEHIND)
def test_only_networks_of_known_operations_have_a_program(name):
    behind, known = BEHIND[name]
    with torch.random.fork_rng([]):
        model = Added(behind).to(memory_format=torch.channels_last).eval()
    x = torch.rand(3, 2, 7, 7, generator=generator("known"))
    state = torch.get_rng_state()
    with attacked(model), folded(model, x):
        assert torch.equal(torch.get_rng_state(), state), "looking at a network draws no random number"
        assert running(model) == known
        if known:
            found = gradient_at(x, loss(model))
            with without_program(model):
                assert torch.allclose(found, gradient_at(x, loss(model)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_other_activations_run_as_ever(registry, activation):
    model, x = built(registry, "digits", activation=activation)
    with attacked(model), folded(model, x):
        assert not running(model)


def test_nothing_is_left_behind(registry):
    """Neither the network's forward, nor a copy of weights, nor the network itself once it is dropped."""
    model, x = built(registry, "few positions")
    with attacked(model), folded(model, x):
        gradient_at(x, loss(model))
        twin = copy.deepcopy(model)
        assert twin.forward.model is twin
        prepared = [weakref.ref(step.prepared[-1]) for step in model.forward.steps if step.prepared]
        assert len(prepared) == 9
    gc.collect()
    assert "forward" not in model.__dict__
    assert [ref for ref in prepared if ref() is not None] == []
    gone = weakref.ref(model)
    del model, twin
    gc.collect()
    assert gone() is None
