"""One function in two spellings has one value; what path-norm and spectral-norm do not know has none."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from helpers.ground_truth import measured
from helpers.measures import stir
from timm.layers import BatchNormAct2d, Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from robflat_bench.core import Examples, NoValue
from robflat_bench.core.randomness import generator
from robflat_bench.measures.rescaling import rescaled
from robflat_bench.numerics.folding import folded, pairs

FAMILIES = {
    "resnet10t": {},
    "resnetv2_50": {"layers": (1, 1), "channels": (16, 16), "stem_chs": 8},
    "resnetv2_50d_frn": {"layers": (1, 1), "channels": (16, 16), "stem_chs": 8},
    "resnetv2_50d_gn": {"layers": (1, 1), "channels": (128, 128), "stem_chs": 64, "conv_layer": StdConv2d},
    "nf_resnet26": {},
    "tf_mobilenetv3_small_minimal_100": {},
    "mobilenetv2_035": {},
    "regnetx_002": {},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
    "cs3darknet_s": {},
    "dla46_c": {},
    "hgnetv2_b0": {},
    "lcnet_035": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "vit_tiny_patch16_224": {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32},
}
WITH_A_PATH_NORM = {"resnet10t", "resnetv2_50", "nf_resnet26", "regnetx_002", "densenet121", "cs3darknet_s", "dla46_c"}
WITH_A_PATH_NORM |= {"hgnetv2_b0"} | {"tf_mobilenetv3_small_minimal_100"}


def images(channels: int = 3, size: int = 32) -> Examples:
    x = torch.rand(2, channels, size, size, generator=generator("spelling"), dtype=torch.float64)
    return Examples(x, torch.zeros(2, dtype=torch.int64), torch.arange(2))


class Functional(nn.Module):
    """A layer whose weight is a tensor under another name, used by a function."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.kernel, self.shift = layer.weight, layer.bias
        self.further = (layer.stride, layer.padding, layer.dilation, layer.groups) if layer.weight.ndim == 4 else ()

    def forward(self, x: Tensor) -> Tensor:
        act = F.conv2d if self.further else F.linear
        return act(x, self.kernel, self.shift, *self.further)


class Padded(Functional):
    """A convolution behind zeros that its output's size asks for."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), self.kernel.shape[:1:-1], self.further[0], strict=True):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, sides))


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def standardised(layer: nn.Conv2d) -> nn.Conv2d:
    """(w - mean) / sqrt(var + eps) of each filter, times the gain where the layer has one."""
    w = layer.weight.flatten(1)
    w = (w - w.mean(1, keepdim=True)) / (w.var(1, correction=0, keepdim=True) + layer.eps).sqrt()
    if isinstance(layer, ScaledStdConv2d):
        w = w * layer.gain.flatten(1) * layer.scale
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    plain.weight, plain.bias, plain.groups = nn.Parameter(w.view_as(layer.weight)), layer.bias, layer.groups
    return plain


def respelled(model: nn.Module) -> nn.Module:
    """The same function: layers as functions, weight norm, norms and activations apart, standardised weights stored."""
    model = copy.deepcopy(model)
    for number, (name, module) in enumerate([*model.named_modules()]):
        kind, other = type(module), None
        if kind is BatchNormAct2d:
            norm = nn.BatchNorm2d(module.num_features, eps=module.eps, dtype=torch.float64)
            norm.load_state_dict(module.state_dict())
            other = nn.Sequential(norm, module.act)
        elif kind in (StdConv2d, ScaledStdConv2d):
            other = standardised(module)
        elif kind is Conv2dSame:
            other = Padded(module)
        elif kind is nn.ReLU:
            other = Rectified()
        elif kind in (nn.Conv2d, nn.Linear):
            # A parametrized layer keeps its name, so power iteration starts from the same vector.
            other = Functional(module) if number % 2 else parametrizations.weight_norm(module)
        if other is not None:
            model.set_submodule(name, other)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_function_has_one_path_norm_and_one_spectral_norm(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(family, num_classes=4, **FAMILIES[family]).double()
        stir(model)
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))  # gains of 0 hide what is behind them
    model, examples = model.eval().requires_grad_(False), images()
    other = respelled(model)
    with torch.no_grad():
        assert torch.allclose(other(examples.x), model(examples.x), rtol=1e-9)
    ours, theirs = (measured("spectral-norm", net, examples, iterations=2) for net in (model, other))
    assert theirs.value == pytest.approx(ours.value, abs=1e-6)
    assert theirs.details == pytest.approx(ours.details, abs=1e-6)
    if family in WITH_A_PATH_NORM:
        assert measured("path-norm", other, examples).value == pytest.approx(
            measured("path-norm", model, examples).value, abs=1e-9
        )
    else:
        for net in (model, other):
            with pytest.raises(NoValue):
                measured("path-norm", net, examples)


# ---------------------------------------------------------------------------------------------------------
# Single layers
# ---------------------------------------------------------------------------------------------------------


def normed(old: bool) -> nn.Conv2d:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (nn.utils if old else parametrizations).weight_norm(nn.Conv2d(2, 4, 3, bias=False))


def spectral(old: bool) -> nn.Conv2d:
    layer = (nn.utils if old else parametrizations).spectral_norm(nn.Conv2d(2, 4, 3, bias=False))
    layer(torch.rand(1, 2, 6, 6))
    return layer


class Bare(nn.Module):
    """A linear layer without a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 72))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.matrix)


class Multiplied(Bare):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "standardised": lambda: StdConv2d(2, 4, 3),
    "scaled": lambda: ScaledStdConv2d(2, 4, 3, bias=False),
    "padding": lambda: Conv2dSame(2, 4, 3, stride=2, bias=False),
    "weight norm": lambda: normed(old=False),
    "old weight norm": lambda: normed(old=True),
    "spectral norm": lambda: spectral(old=False),
    "old spectral norm": lambda: spectral(old=True),
    "F.linear": Bare,
    "matmul": Multiplied,
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3, bias=False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_read_as_they_act(name):
    """Against the Jacobian: the largest singular value, and the sum of squared entries, the path norm of one layer."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = LAYERS[name]()
    model, examples = nn.Sequential(layer, nn.Flatten()).double().eval().requires_grad_(False), images(2, 6)
    jacobian = torch.func.jacrev(lambda x: model(x)[0])(examples.x[:1]).flatten(1)
    largest = float(torch.linalg.svdvals(jacobian)[0])
    found = measured("spectral-norm", model, examples, iterations=2000, tolerance=1e-9)
    assert found.value == pytest.approx(math.log(largest), abs=1e-6)
    assert found.details["layers"] == 1
    paths = measured("path-norm", model, examples).value
    assert paths == pytest.approx(math.log(float(jacobian.square().sum())), abs=1e-9)


def test_a_layer_that_acts_twice_counts_twice():
    layer = nn.Linear(4, 4).double()
    shared = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)
    apart = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), copy.deepcopy(layer))
    expected = 2 * math.log(np.linalg.norm(layer.weight.detach(), 2))
    for model in (shared, apart):
        assert measured("spectral-norm", model, images(1, 2)).value == pytest.approx(expected)


def test_normalisation_folds_into_linear_layers_and_gains_behind_them():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        linear, norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        stir(norm)
    model = nn.Sequential(nn.Flatten(), linear, norm).double().eval()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fused = (scale[:, None] * linear.weight).detach()
    bias = (scale * (linear.bias - norm.running_mean) + norm.bias).detach()
    found = measured("spectral-norm", model, images(1, 2))
    assert found.value == pytest.approx(math.log(np.linalg.norm(fused, 2)))
    assert found.details["unfolded_norms"] == 0
    paths = float(fused.square().sum() + bias.square().sum())
    assert measured("path-norm", model, images(1, 2)).value == pytest.approx(math.log(paths))


class Block(nn.Module):
    """A shortcut around a convolution; in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv, self.in_place = nn.Conv2d(2, 2, 3, padding=1), in_place

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.in_place:
            y += x
            return F.relu(y, inplace=True).mul_(2)
        return 2 * torch.add(x, y).relu()


def test_operations_in_place_are_the_same_operations():
    with torch.random.fork_rng():
        torch.manual_seed(6)
        one = nn.Sequential(Block(True), Block(True), nn.Flatten()).double().eval()
    other = copy.deepcopy(one)
    for block in other[:2]:
        block.in_place = False
    paths = [measured("path-norm", model, images(2, 4)).value for model in (one, other)]
    assert paths[0] == pytest.approx(paths[1], rel=1e-12)
    assert paths[0] > 0


class Cosine(nn.Linear):
    """Its forward uses the weight's directions alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


def test_relative_flatness_reads_the_weight_that_acts():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        cosine = nn.Sequential(nn.Flatten(), Cosine(4, 3)).double().eval()
    plain, normed_head = copy.deepcopy(cosine), nn.Linear(4, 3).double()
    plain[1] = nn.Linear(4, 3).double()
    plain[1].weight.data, plain[1].bias.data = F.normalize(cosine[1].weight.data), cosine[1].bias.data
    normed_head.load_state_dict(plain[1].state_dict())
    other = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(normed_head))
    values = [measured("relative-flatness", net, images(1, 2), coupling="clean").value for net in (plain, other)]
    assert values[0] == pytest.approx(values[1])
    with pytest.raises(NoValue, match="Cosine"):
        measured("relative-flatness", cosine, images(1, 2), coupling="clean")


# ---------------------------------------------------------------------------------------------------------
# What has no value
# ---------------------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A network of one linear layer that calls a function on its output."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act, self.linear = act, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x.flatten(1)))


class OwnNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.pow(2).mean(1, keepdim=True).sqrt()


UNKNOWN = {
    "tanh in Tanh (act)": nn.Tanh(),
    "sigmoid in Sigmoid (act)": nn.Sigmoid(),
    "softplus in Softplus (act)": nn.Softplus(),
    "prelu in PReLU (act)": nn.PReLU(),
    "tanh in Calls": torch.tanh,
    "softplus in Calls": F.softplus,
    "layer_norm in Calls": lambda x: F.layer_norm(x, (4,)),
    "batch_norm in Calls": lambda x: F.batch_norm(x.view(-1, 2, 2), None, None, training=True),
    "pow in OwnNorm (act)": OwnNorm(),
    "mul in Calls": lambda x: x * x.mean(1, keepdim=True),
    "softmax in Calls": lambda x: x.softmax(1),
    "dropout in Calls": lambda x: F.dropout(x, training=True),
    "gt in Calls": lambda x: x * (x > 0),
    "item in Calls": lambda x: x * x.sum().item(),
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_path_norm_names_the_function_that_it_does_not_know(place):
    model = Calls(UNKNOWN[place]).double().eval()
    examples = images(1, 2)
    with pytest.raises(NoValue, match=f"not defined for {place.replace('(', '.').replace(')', '.')}"):
        measured("path-norm", model, examples)


def test_scripted_code_hides_its_operations():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(F.silu)
    for act in (scripted, lambda x: x + scripted(x)):
        for name in ("path-norm", "spectral-norm"):
            with pytest.raises(NoValue, match=r"script|does not show"):
                measured(name, Calls(act).double().eval(), images(1, 2))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, None]
        return self.attention(x, x, x)[0][:, 0]


def test_spectral_norm_names_functions_that_hide_their_weights():
    with pytest.raises(NoValue, match="MultiheadAttention"):
        measured("spectral-norm", Attending().double().eval(), images(1, 2))


# ---------------------------------------------------------------------------------------------------------
# Folding
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [False, True])
def test_normalisation_with_an_activation_is_folded(padding):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        conv = Conv2dSame(2, 3, 3, stride=2) if padding else nn.Conv2d(2, 3, 3)
        model = nn.Sequential(conv, BatchNormAct2d(3), nn.Flatten()).double()
        stir(model)
    model, x = model.eval(), images(2, 6).x
    assert pairs(model, x) == [(model[0], model[1])]
    logits, weight = model(x), model[0].weight
    assert (logits == 0).any()
    with folded(model, x):
        assert model[0].weight is not weight
        assert torch.allclose(model(x), logits)
    assert torch.equal(model(x), logits)
    larger = rescaled(model, x, 3.0)
    assert torch.equal(larger[0].weight, 3 * weight)
    assert torch.allclose(larger(x), logits)
