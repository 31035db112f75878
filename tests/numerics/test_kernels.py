"""Kernels against autograd in float64: values, gradients and second derivatives, in both layouts and odd shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked
from robflat_bench.core.randomness import generator
from robflat_bench.numerics import kernels
from robflat_bench.numerics.kernels import INPUT_GRADIENTS, every, frozen, input_gradient, position_mean

pytestmark = pytest.mark.usefixtures("one_thread")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = ((2, 3, 5, 4), (1, 1, 1, 1), (2, 1, 4, 3), (1, 4, 6, 6))


def drawn(*shape: int, layout: str = "contiguous") -> Tensor:
    x = torch.randn(shape, generator=generator("kernels", *shape), dtype=torch.float64)
    return x.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else x


def gradient(made: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(made, x, drawn(*made.shape))
    return found


# ---------------------------------------------------------------------------------------------------------
# Gradients in the layout of their input
# ---------------------------------------------------------------------------------------------------------

PLAIN = {
    "every 1": (lambda x: every(x, 1), lambda x: x[:, :, ::1, ::1]),
    "every 2": (lambda x: every(x, 2), lambda x: x[:, :, ::2, ::2]),
    "every 3": (lambda x: every(x, 3), lambda x: x[:, :, ::3, ::3]),
    "mean": (position_mean, lambda x: x.mean((2, 3))),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_equal_those_of_the_plain_operation(name, layout, shape):
    ours, plain = PLAIN[name]
    x = drawn(*shape, layout=layout).requires_grad_()
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(gradient(ours(x), x), gradient(plain(x), x))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_can_be_differentiated_again(name, layout):
    ours, _ = PLAIN[name]
    x = drawn(2, 3, 5, 4, layout=layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(x).square(), x)
    assert torch.autograd.gradgradcheck(lambda x: ours(x).square(), x)


@pytest.mark.parametrize("name", ["every 2", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_has_the_layout_of_its_input(name, layout):
    ours, _ = PLAIN[name]
    x = drawn(2, 3, 6, 6, layout=layout).requires_grad_()
    assert gradient(ours(x), x).is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, as forward mode starts
@pytest.mark.parametrize("name", ["every 2", "mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_function_transforms_see_the_plain_operation(name, layout):
    """torch.func.jacrev maps the backward pass over a batch of gradients."""
    ours, plain = PLAIN[name]
    x = drawn(2, 3, 5, 4, layout=layout)
    assert torch.equal(torch.func.jacrev(ours)(x), torch.func.jacrev(plain)(x))
    direction = torch.flip(x, (0,))
    assert torch.equal(torch.func.jvp(ours, (x,), (direction,))[1], plain(direction))


# ---------------------------------------------------------------------------------------------------------
# Gradients of a convolution's input
# ---------------------------------------------------------------------------------------------------------


def layer(
    inputs: int, outputs: int, kernel: object, stride: object = 1, padding: object = 0, **more: object
) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, kernel, stride, padding, **more).double().requires_grad_(False)
    made.weight.copy_(drawn(*made.weight.shape))
    if made.bias is not None:
        made.bias.copy_(drawn(outputs))
    return made.to(memory_format=torch.channels_last)


GENERAL = [name for name in INPUT_GRADIENTS if name != "pointwise"]
"""Spellings that are right for every layer."""
KERNEL_STRIDE_PADDING = tuple(itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2)))


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize(("kernel", "stride", "padding"), KERNEL_STRIDE_PADDING)
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_every_spelling_equals_autograd(name, kernel, stride, padding, size):
    spelling = INPUT_GRADIENTS[name]
    for batch, inputs, outputs in ((2, 3, 4), (1, 1, 2)):
        one, x = layer(inputs, outputs, kernel, stride, padding), drawn(batch, inputs, *size, layout="channels_last")
        out = one(x.requires_grad_())
        g = drawn(*out.shape, layout="channels_last")
        (expected,) = torch.autograd.grad(out, x, g)
        found = spelling.apply(one, spelling.prepare(one, one.weight, x.shape[2:]), g, x.shape)
        assert found.shape == x.shape
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", GENERAL)
def test_every_spelling_treats_its_two_axes_apart(name):
    one, x = layer(2, 3, (3, 2), (2, 3), (0, 1)), drawn(2, 2, 9, 7).requires_grad_()
    out = one(x)
    g = drawn(*out.shape)
    (expected,) = torch.autograd.grad(out, x, g)
    spelling = INPUT_GRADIENTS[name]
    found = spelling.apply(one, spelling.prepare(one, one.weight, x.shape[2:]), g, x.shape)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pointwise_gradient_is_the_sum_over_outputs_at_each_pixel(layout, shape):
    batch, inputs, height, width = shape
    one, g, spelling = layer(inputs, 3, 1), drawn(batch, 3, height, width, layout=layout), INPUT_GRADIENTS["pointwise"]
    found = spelling.apply(one, spelling.prepare(one, one.weight, torch.Size(shape[2:])), g, torch.Size(shape))
    expected = torch.zeros(shape, dtype=torch.float64)
    for output, source in itertools.product(range(3), range(inputs)):
        expected[:, source] += one.weight[output, source, 0, 0] * g[:, output]
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert found.permute(0, 2, 3, 1).is_contiguous()


RULE = {
    "shortcut": (layer(48, 96, 1), (4, 4), "pointwise"),
    "strided shortcut": (layer(48, 96, 1, 2), (4, 4), "usual"),
    "padded": (layer(48, 96, 1, 1, 1), (4, 4), "usual"),
    "grouped": (layer(8, 8, 1, groups=2), (8, 8), "usual"),
    "stem": (layer(3, 24, 3, 2, 1), (32, 32), "product"),
    "dilated stem": (layer(3, 24, 3, 1, 2, dilation=2), (32, 32), "product"),
    "stem of one channel": (layer(1, 8, 3, 1, 1), (8, 8), "phases"),
    "stem of few outputs": (layer(3, 16, 3, 1, 1), (32, 32), "phases"),
    "strided": (layer(24, 48, 3, 2, 1), (8, 8), "phases"),
    "wide": (layer(32, 64, 3, 2, 1), (16, 16), "usual"),
    "few positions": (layer(48, 96, 3, 1, 1), (4, 4), "contiguous"),
    "many positions": (layer(48, 96, 3, 1, 1), (8, 4), "usual"),
    "dilated": (layer(8, 8, 3, 1, 2, dilation=2), (8, 8), "usual"),
    "depthwise": (layer(8, 8, 3, 1, 1, groups=8), (8, 8), "usual"),
    "reflecting": (layer(3, 24, 3, 1, 1, padding_mode="reflect"), (8, 8), "usual"),
    "named padding": (layer(3, 24, 3, 1, "same"), (8, 8), "usual"),
}


@pytest.mark.parametrize("name", RULE)
def test_shapes_alone_choose_the_spelling(name):
    one, size, expected = RULE[name]
    chosen = input_gradient(one, torch.Size(size))
    assert next(key for key, value in INPUT_GRADIENTS.items() if value is chosen) == expected


# ---------------------------------------------------------------------------------------------------------
# The stem where autograd runs the network
# ---------------------------------------------------------------------------------------------------------


def stem(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A stem whose gradient is a product, and a function with curvature behind it."""
    return nn.Sequential(layer(2, 16, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(16 * 9, 3)).to(dtype).eval()


@pytest.fixture
def products(monkeypatch) -> list[Tensor]:
    """Every gradient that was a product."""
    made: list[Tensor] = []
    own = kernels._product

    def spy(*arguments: object) -> Tensor:
        made.append(own(*arguments))
        return made[-1]

    monkeypatch.setattr(kernels, "_product", spy)
    return made


def test_frozen_stem_passes_on_the_gradient_of_autograd(products):
    with torch.random.fork_rng([]):
        network = stem()
    wide = drawn(2, 2, 5, 12).requires_grad_()
    x = wide[..., ::2]  # not contiguous
    expected = gradient(network(x[..., :5]), wide)
    with attacked(network):
        assert torch.allclose(gradient(network(x[..., :5]), wide), expected, rtol=0, atol=1e-12)
    assert len(products) == 1
    assert torch.equal(gradient(network(x[..., :5]), wide), expected)
    assert len(products) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # torch's own, as forward mode starts
def test_frozen_stem_can_be_differentiated_again(products):
    with torch.random.fork_rng([]):
        network = stem()
    x = drawn(1, 2, 5, 5).requires_grad_()
    with attacked(network):
        assert torch.autograd.gradgradcheck(network, x)
        mapped, forward = torch.func.jacrev(network)(x), torch.func.jacfwd(torch.func.jacrev(network))(x.detach())
    assert products
    assert torch.allclose(forward, torch.func.jacfwd(torch.func.jacrev(network))(x.detach()), rtol=0, atol=1e-12)
    assert torch.allclose(mapped, torch.func.jacrev(network)(x), rtol=0, atol=1e-12)


def test_stem_with_moving_weights_hooks_or_other_precision_is_as_ever(products):
    with torch.random.fork_rng([]):
        network = stem(torch.float32)
    x, seen = drawn(2, 2, 5, 5).float().requires_grad_(), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with attacked(network):
        network[0].weight.requires_grad_()
        network(x).sum().backward()
        assert network[0].weight.grad.abs().sum() > 0
        network[0].weight.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = network(x)
        network(x)
    assert (len(products), len(seen)) == (0, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), reduced)


def test_forward_of_a_stem_returns_even_after_an_error_and_when_nested():
    with torch.random.fork_rng([]):
        network = stem()

    def stop_within() -> None:
        with frozen(network), frozen(network):
            assert "forward" in network[0].__dict__
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        stop_within()
    assert "forward" not in network[0].__dict__


def test_gradient_of_a_stem_equals_the_sum_over_taps():
    """A loop over output pixels and taps, written from the definition of a convolution."""
    one, g = layer(2, 16, 3, 2, 1), drawn(1, 16, 3, 3)
    expected = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    for i, j, a, b in itertools.product(range(3), repeat=4):
        row, column = 2 * i + a - 1, 2 * j + b - 1
        if 0 <= row < 5 and 0 <= column < 5:
            expected[0, :, row, column] += one.weight[:, :, a, b].T @ g[0, :, i, j]
    for name in ("product", "phases"):
        spelling = INPUT_GRADIENTS[name]
        found = spelling.apply(one, spelling.prepare(one, one.weight, torch.Size((5, 5))), g, expected.shape)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert F.conv2d(expected, one.weight, None, 2, 1).shape == g.shape
