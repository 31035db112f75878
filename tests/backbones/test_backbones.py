"""Backbones: shapes, sizes counted by hand, formulas, and random numbers from one generator only."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.backbones import ACTIVATION_NAMES, robflat_bench_backbones
from robflat_bench.backbones.parts import ACTIVATIONS, Normalized, initialize
from robflat_bench.backbones.resnet import (
    PostActivation,
    PreActivation,
    ResNet8Params,
    ResNet18Params,
    WideParams,
    preact_resnet18,
    resnet8,
    resnet18,
    wrn,
    wrn_28_10,
    wrn_34_10,
)
from robflat_bench.backbones.timm_zoo import TimmParams, timm_model
from robflat_bench.core import ImageShape, Params, UsageError

DIGITS = ImageShape(1, 8, 10, (0.3,), (0.4,))
CIFAR = ImageShape(3, 32, 10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))

OWN: dict[str, tuple[Any, Params]] = {
    "resnet8": (resnet8, ResNet8Params()),
    "resnet18": (resnet18, ResNet18Params()),
    "preact-resnet18": (preact_resnet18, ResNet18Params()),
    "wrn-28-10": (wrn_28_10, Params()),
    "wrn-34-10": (wrn_34_10, Params()),
    "wrn": (wrn, WideParams(depth=10, factor=2)),
}
SLIM: dict[str, tuple[Any, Params]] = {
    "resnet8": (resnet8, ResNet8Params(width=4)),
    "resnet18": (resnet18, ResNet18Params(width=4)),
    "preact-resnet18": (preact_resnet18, ResNet18Params(width=4)),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(shape: ImageShape, count: int = 2) -> Tensor:
    return torch.rand(count, shape.channels, shape.size, shape.size, generator=seeded(7))


def slim(name: str, shape: ImageShape = CIFAR, activation: str = "relu", seed: int = 0) -> nn.Module:
    factory, params = SLIM[name]
    model: nn.Module = factory(params, shape, activation)
    initialize(model, seeded(seed))
    return model


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- catalogue ---------------------------------------------------------------------------------------------


def test_catalogue_names_every_factory() -> None:
    rows = {row.name: row for row in robflat_bench_backbones()}
    assert set(rows) == {*OWN, "timm"}
    functions = {name: factory for name, (factory, _) in OWN.items()} | {"timm": timm_model}
    for name, row in rows.items():
        assert row.factory == f"{functions[name].__module__}:{functions[name].__name__}"
        assert row.summary
        assert row.citation


def test_catalogue_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys, robflat_bench.backbones as room; room.robflat_bench_backbones(); room.ACTIVATION_NAMES;"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_own_networks_do_not_import_timm() -> None:
    code = (
        "import sys, robflat_bench.backbones.resnet, robflat_bench.backbones.timm_zoo;assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "bad", [{"width": 0}, {"strides": [1, 2]}, {"strides": [1, 2, 3]}, {"stem_stride": 3}, {"depth": 8}]
)
def test_parameters_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResNet8Params(**bad)


# --- architecture ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
def test_logits_have_one_column_per_class(name: str) -> None:
    factory, params = OWN[name]
    model = factory(params, CIFAR, "relu").eval()
    with torch.no_grad():
        assert model(images(CIFAR)).shape == (2, 10)


def test_digits_give_float32_logits() -> None:
    model = resnet8(ResNet8Params(), DIGITS, "relu").eval()
    assert model(images(DIGITS)).shape == (2, 10)
    assert model(images(DIGITS)).dtype == torch.float32


def counted(widths: list[int], blocks: int, stem: int, preactivated: bool, classes: int = 10) -> int:
    """Parameters of a residual network for 3 channels, by arithmetic: 3x3 is 9 in out, a norm 2 channels."""
    total = 3 * stem * 9
    for inputs, outputs in pairwise([stem, *widths]):
        total += 9 * inputs * outputs + 9 * outputs * outputs  # first block's two convolutions
        total += (blocks - 1) * 2 * 9 * outputs * outputs
        norms = [inputs if preactivated else outputs, outputs] + (blocks - 1) * [outputs, outputs]
        if inputs != outputs:
            total += inputs * outputs  # 1x1 shortcut
            norms += [] if preactivated else [outputs]
        total += 2 * sum(norms)
    total += 2 * (widths[-1] if preactivated else stem)  # norm behind the last block, or behind the stem
    return total + (widths[-1] + 1) * classes


@pytest.mark.parametrize(
    ("name", "by_hand", "published"),
    [
        ("resnet8", counted([16, 32, 64], 1, 16, False), None),
        ("resnet18", counted([64, 128, 256, 512], 2, 64, False), 11_173_962),
        ("preact-resnet18", counted([64, 128, 256, 512], 2, 64, True), 11_172_170),
        ("wrn-28-10", counted([160, 320, 640], 4, 16, True), 36_479_194),
        ("wrn-34-10", counted([160, 320, 640], 5, 16, True), 46_160_474),
    ],
)
def test_parameter_count_equals_the_published_one(name: str, by_hand: int, published: int | None) -> None:
    factory, params = OWN[name]
    assert size(factory(params, CIFAR, "relu")) == by_hand
    assert published is None or published == by_hand


@pytest.mark.parametrize(
    ("strides", "stem_stride", "sizes"),
    [((1, 2, 2), 1, [32, 16, 8]), ((1, 1, 2), 1, [32, 32, 16]), ((2, 2, 2), 2, [8, 4, 2])],
)
def test_strides_set_the_resolution(strides: tuple[Any, Any, Any], stem_stride: Any, sizes: list[int]) -> None:
    params = ResNet8Params(width=4, strides=strides, stem_stride=stem_stride)
    network = resnet8(params, CIFAR, "relu").get_submodule("network")
    seen = []
    for stage in ("stage1", "stage2", "stage3"):
        network.get_submodule(stage).register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    network(images(CIFAR))
    assert seen == sizes


def test_parameter_names_are_the_documented_ones() -> None:
    names = [name for name, _ in slim("resnet8").named_parameters()]
    assert len(names) == len(set(names))
    assert {
        "network.stem.conv.weight",
        "network.stem.norm.weight",
        "network.stage1.block1.conv1.weight",
        "network.stage2.block1.norm2.bias",
        "network.stage3.block1.shortcut.conv.weight",
        "network.stage3.block1.shortcut.norm.weight",
        "network.head.weight",
        "network.head.bias",
    } <= set(names)
    tail = {name for name, _ in slim("preact-resnet18").named_parameters() if "tail" in name}
    assert tail == {"network.tail.norm.weight", "network.tail.norm.bias"}


@pytest.mark.parametrize("name", SLIM)
def test_only_norms_and_the_head_have_biases(name: str) -> None:
    model = slim(name)
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
    assert [m.bias is not None for m in model.modules() if isinstance(m, nn.Linear)] == [True]


def norm(module: Any, x: Tensor) -> Tensor:
    """Batch norm in train mode, written out."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    scaled = (x - mean) / (variance + 1e-5).sqrt()
    out: Tensor = scaled * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)
    return out


def conv(module: Any, x: Tensor, stride: int = 1) -> Tensor:
    weight: Tensor = module.weight
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize(("inputs", "stride"), [(6, 1), (6, 2), (4, 1)])
@pytest.mark.parametrize("kind", [PostActivation, PreActivation])
def test_block_equals_its_formula(kind: Any, inputs: int, stride: int) -> None:
    block = kind(inputs, 6, stride, nn.SiLU).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, generator=seeded(1))
            nn.init.normal_(module.bias, generator=seeded(2))
    x = torch.randn(3, inputs, 8, 8, dtype=torch.float64, generator=seeded(3))
    keeps = inputs == 6 and stride == 1
    if kind is PostActivation:
        y = F.silu(norm(block.norm1, conv(block.conv1, x, stride)))
        short = x if keeps else norm(block.shortcut.norm, conv(block.shortcut.conv, x, stride))
        expected = F.silu(norm(block.norm2, conv(block.conv2, y)) + short)
    else:
        a = F.silu(norm(block.norm1, x))
        short = x if keeps else conv(block.shortcut.conv, a, stride)
        expected = conv(block.conv2, F.silu(norm(block.norm2, conv(block.conv1, a, stride)))) + short
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)


# --- input and activation ----------------------------------------------------------------------------------


def test_normalisation_equals_its_formula() -> None:
    model = Normalized(nn.Identity(), CIFAR).double()
    x = images(CIFAR).double()
    for channel in range(3):
        expected = (x[:, channel] - CIFAR.mean[channel]) / CIFAR.std[channel]
        torch.testing.assert_close(model(x)[:, channel], expected, rtol=1e-6, atol=1e-6)
    assert list(model.parameters()) == []
    assert set(model.state_dict()) == {"mean", "std"}


def test_activation_names_match_the_table() -> None:
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES
    for name, cls in ACTIVATIONS.items():
        x = torch.linspace(-3, 3, 13)
        torch.testing.assert_close(cls()(x), getattr(F, name)(x))
        assert not getattr(cls(), "inplace", False)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("name", SLIM)
def test_activation_swaps_every_activation(name: str, activation: str) -> None:
    model = slim(name, activation=activation)
    counts = {key: sum(type(m) is cls for m in model.modules()) for key, cls in ACTIVATIONS.items()}
    expected = {"resnet8": 1 + 3 * 2, "resnet18": 1 + 8 * 2, "preact-resnet18": 8 * 2 + 1}[name]
    assert counts == {key: expected * (key == activation) for key in ACTIVATION_NAMES}


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(UsageError, match="relu, silu, gelu, mish"):
        resnet8(ResNet8Params(), DIGITS, "swish")


# --- initialisation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLIM)
def test_initialisation_is_a_function_of_the_generator(name: str) -> None:
    first, again, other = slim(name, seed=1), slim(name, seed=1), slim(name, seed=2)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    for key, value in first.named_parameters():
        drawn = value.ndim > 1
        assert torch.equal(value, other.get_parameter(key)) is not drawn


def test_initialisation_does_not_depend_on_earlier_weights() -> None:
    model, fresh = slim("resnet18", seed=1), slim("resnet18", seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    model(images(CIFAR))  # moves the running statistics
    initialize(model, seeded(1))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_initialisation_ignores_layout_and_dtype() -> None:
    plain = slim("resnet8", seed=3)
    moved = resnet8(ResNet8Params(width=4), CIFAR, "relu").double()
    moved = moved.to(memory_format=torch.channels_last)
    initialize(moved, seeded(3))
    for key, value in plain.named_parameters():
        assert torch.equal(value.double(), moved.get_parameter(key))


def test_initial_weights_have_the_declared_standard_deviation() -> None:
    model = resnet18(ResNet18Params(), CIFAR, "silu")
    initialize(model, seeded(0))
    for key, value in model.named_parameters():
        if value.ndim == 4:
            expected = (2 / (value.shape[0] * value.shape[2] * value.shape[3])) ** 0.5
        elif value.ndim == 2:
            expected = (2 / value.shape[1]) ** 0.5
        else:
            assert bool((value == float("norm" in key and key.endswith("weight"))).all())
            continue
        tolerance = 4 / (2 * value.numel()) ** 0.5  # four standard errors of a standard deviation
        assert value.std().item() == pytest.approx(expected, rel=tolerance)
        assert abs(value.mean().item()) < 4 * expected / value.numel() ** 0.5


def test_depthwise_convolutions_keep_their_scale() -> None:
    layer = nn.Conv2d(512, 512, 3, groups=512)
    initialize(layer, seeded(0))
    assert layer.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for name in SLIM:
        slim(name)
    assert torch.equal(torch.get_rng_state(), before)


# --- layout and files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLIM)
@pytest.mark.parametrize("train", [True, False])
def test_channels_last_is_the_same_function(name: str, train: bool) -> None:
    x = images(CIFAR, 4).double()
    plain = slim(name, activation="silu").double().train(train)
    moved = slim(name, activation="silu").double().train(train)
    moved = moved.to(memory_format=torch.channels_last)
    y = moved(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SLIM)
def test_weights_file_is_complete(name: str, tmp_path: Path) -> None:
    model = slim(name, seed=5)
    model(images(CIFAR))  # running statistics worth keeping
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    factory, params = SLIM[name]
    unknown = ImageShape(3, 32, 10, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    loaded = factory(params, unknown, "relu")
    loaded.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(model.eval()(images(CIFAR)), loaded.eval()(images(CIFAR)))


# --- timm --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Any:
    """Laptops and shared machines: the tests are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_timm_resnet_keeps_the_resolution_of_small_images() -> None:
    before = torch.get_rng_state()
    model = timm_model(TimmParams(name="resnet18"), CIFAR, "relu")
    initialize(model, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())
    network: Any = model.get_submodule("network")
    assert network.forward_features(images(CIFAR)).shape == (2, 512, 4, 4)
    assert model(images(CIFAR)).shape == (2, 10)
    assert size(model) == 11_173_962  # the same network as ours


def test_timm_resnet_is_our_resnet18() -> None:
    """Same architecture, so the same logits once the weights are carried over."""
    theirs = timm_model(TimmParams(name="resnet18"), CIFAR, "relu").double()
    ours = resnet18(ResNet18Params(), CIFAR, "relu").double()
    initialize(theirs, seeded(4))
    parts = {"conv1": "stem.conv", "bn1": "stem.norm", "fc": "head"}
    for stage in range(4):
        for block in range(2):
            inner = {f"{kind}{i}": f"{name}{i}" for kind, name in (("conv", "conv"), ("bn", "norm")) for i in (1, 2)}
            inner |= {"downsample.0": "shortcut.conv", "downsample.1": "shortcut.norm"}
            for their, our in inner.items():
                parts[f"layer{stage + 1}.{block}.{their}"] = f"stage{stage + 1}.block{block + 1}.{our}"
    state = {"mean": theirs.mean, "std": theirs.std}
    for key, value in theirs.get_submodule("network").state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"network.{parts[module]}.{leaf}"] = value
    ours.load_state_dict(state)
    x = images(CIFAR).double()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


def test_timm_large_images_keep_the_stem() -> None:
    shape = ImageShape(3, 96, 10, CIFAR.mean, CIFAR.std)
    network: Any = timm_model(TimmParams(name="resnet18"), shape, "relu").get_submodule("network")
    assert network.forward_features(images(shape)).shape == (2, 512, 3, 3)


def test_timm_transformer_takes_the_image_size() -> None:
    model = timm_model(TimmParams(name="vit_tiny_patch16_224"), CIFAR, "relu")
    assert model(images(CIFAR)).shape == (2, 10)
    assert model.get_parameter("network.pos_embed").shape[1] == 1 + (32 // 16) ** 2


@pytest.mark.parametrize("name", ["fasternet_t1", "ghostnet_100"])  # drop path 0.05, dropout 0.2 by default
def test_timm_has_no_dropout(name: str) -> None:
    model = timm_model(TimmParams(name=name), CIFAR, "relu")
    x = images(CIFAR, 8)
    assert torch.equal(model(x), model(x))  # in train mode


@pytest.mark.parametrize("name", ["resnet81", "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"])
def test_unknown_timm_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="resnet18" if name != "hf-hub:timm/resnet18.a1_in1k" else "timm has no"):
        timm_model(TimmParams(name=name), CIFAR, "relu")


def test_another_activation_for_a_timm_model_is_refused() -> None:
    with pytest.raises(UsageError, match="their own activation"):
        timm_model(TimmParams(name="resnet18"), CIFAR, "silu")


def test_images_too_small_for_a_timm_architecture_are_refused() -> None:
    with pytest.raises(UsageError, match="does not take 1x8x8 images"):
        timm_model(TimmParams(name="vit_tiny_patch16_224"), DIGITS, "relu")
