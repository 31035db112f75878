"""Public layouts: each network computes under its built-in backbone what it computes under its own names."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch
from helpers.public_networks import CifarResNet, PreActResNet, WideResNet, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robflat_bench.backbones.parts import built
from robflat_bench.core import ImageShape, UsageError
from robflat_bench.evaluation.fitting import behind_statistics
from robflat_bench.evaluation.layouts import recognise
from robflat_bench.registry.components import resolve

PUBLIC = {
    "resnet18(width=4)": CifarResNet,
    "resnet18(width=2)": lambda: CifarResNet(width=2, channels=3, classes=100),
    "preact-resnet18(width=4)": PreActResNet,
    "preact-resnet18(width=3)": lambda: PreActResNet(width=3, classes=7),
    "wrn(depth=10, factor=1)": WideResNet,
    "wrn(depth=16, factor=2)": lambda: WideResNet(16, 2, channels=3),
}


def shape_of(network: nn.Module, size: int = 16) -> ImageShape:
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    channels = network.conv1.in_channels
    return ImageShape(channels, size, head.out_features, (0.0,) * channels, (1.0,) * channels)


def twin(registry, backbone: str, shape: ImageShape, tensors) -> nn.Module:
    """The built-in backbone with these tensors behind mean 0 and std 1."""
    network = built(resolve(registry, "backbone", backbone), shape, "relu", 0).double()
    tensors = behind_statistics(tensors, shape)
    missing = network.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    return network.eval()


@pytest.mark.parametrize("backbone", PUBLIC)
def test_a_public_layout_computes_the_same_under_its_backbone(registry, backbone):
    network = drawn(PUBLIC[backbone]())
    names = sorted(network.state_dict(), reverse=True)  # in another order
    found = recognise({name: network.state_dict()[name] for name in names})
    assert found.backbone == backbone
    shape = shape_of(network)
    x = torch.rand(3, shape.channels, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected, got = network(x), twin(registry, backbone, shape, found.tensors)(x)
    assert float(expected.std()) > 1e-3
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("size", "factor"), [(28, 10), (34, 10)])
def test_the_wide_resnets_of_the_field_have_their_names(size, factor):
    with torch.device("meta"):
        network = WideResNet(size, factor, channels=3)
    assert recognise(network.state_dict()).backbone == f"wrn-{size}-{factor}"


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_of_torchvision_is_timms_with_its_own_stem(registry, name):
    import torchvision

    network = drawn(getattr(torchvision.models, name)(num_classes=5))
    found = recognise(network.state_dict())
    assert found.backbone == f"timm(name={name}, stem=original)"
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shape = ImageShape(3, 32, 5, (0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        assert torch.allclose(twin(registry, found.backbone, shape, found.tensors)(x), network(x), rtol=1e-10)


def test_the_usual_surgery_for_small_images_is_timms_adapted_stem(registry):
    import torchvision

    network = torchvision.models.resnet18(num_classes=10)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    network = drawn(network)
    found = recognise(network.state_dict())
    assert found.backbone == "timm(name=resnet18)"
    assert "a 3x3 stem has neither" in found.notes[-1]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shape = ImageShape(3, 32, 10, (0.0,) * 3, (1.0,) * 3)
    with torch.no_grad():
        assert torch.allclose(twin(registry, found.backbone, shape, found.tensors)(x), network(x), rtol=1e-10)


def test_a_file_that_names_an_architecture_of_timm_is_its():
    tensors = {"some.weight": torch.ones(2)}
    found = recognise(tensors, "test_vit.r160_in1k")
    assert (found.backbone, found.tensors) == ("timm(name=test_vit)", tensors)
    for other in ("", "PreActResNet18", "no_such_net", "hf-hub:a/b", "os.system('x')"):
        assert recognise(tensors, other) is None


def test_prefixes_are_looked_through_and_said():
    state = {f"module.model.{name}": tensor for name, tensor in CifarResNet().state_dict().items()}
    found = recognise(state)
    assert found.backbone == "resnet18(width=4)"
    assert any("'module.'" in note for note in found.notes)
    assert any("'model.'" in note for note in found.notes)


def test_a_stage_that_never_runs_is_left_out_and_said():
    found = recognise(WideResNet(unused=True).state_dict())
    assert found.backbone == "wrn(depth=10, factor=1)"
    assert found.tensors.keys() == recognise(WideResNet().state_dict()).tensors.keys()
    unused = [name for name in WideResNet(unused=True).state_dict() if name.startswith("sub_block1.")]
    assert f"{len(unused)} tensors that its forward pass never reads" in found.notes[-1]


def test_a_tensor_of_another_name_is_kept_so_that_it_is_refused():
    found = recognise({**CifarResNet().state_dict(), "extra.weight": torch.ones(1)})
    assert "extra.weight" in found.tensors


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda: CifarResNet(counts=(3, 4, 6, 3)), "depth 34"),
        (lambda: CifarResNet(counts=(1, 1, 1, 1)), "stages of 1, 1, 1, 1 basic blocks"),
        (lambda: PreActResNet(tail=False), "no norm behind its last block"),
    ],
)
def test_a_known_layout_that_no_backbone_is_says_what_was_seen(network, says):
    with pytest.raises(UsageError, match=f"{says}.*--model FILE.py:CLASS"):
        recognise(network().state_dict())


WORDS = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "linear.weight", "fc.weight", "bn.weight"]
NAMES = st.one_of(st.sampled_from([*WORDS, "block1.layer.0.conv1.weight"]), st.text(max_size=20))


@settings(max_examples=60)
@given(st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=4), max_size=9))
def test_no_dictionary_of_tensors_is_met_with_another_error(shapes):
    with contextlib.suppress(UsageError):
        recognise({name: torch.zeros(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", ["resnetblur50", "resnetaa50", "wide_resnet50_2"])
def test_the_name_in_a_file_tells_networks_with_the_same_tensors_apart(name):
    import timm

    with torch.device("meta"):
        state = timm.create_model(name, num_classes=10).state_dict()
    assert recognise(state, name).backbone == f"timm(name={name}, stem=original)"
    assert "no blurred pooling" in recognise({**state, **CONVENTIONAL}).notes[-1]


CONVENTIONAL = {"conv1.weight": torch.zeros(64, 3, 7, 7)}


def test_a_last_norm_that_is_called_bn1_is_a_pre_activation_network_s(registry):
    network = drawn(PreActResNet())
    state = {re.sub(r"^bn\.", "bn1.", name): tensor for name, tensor in network.state_dict().items()}
    found = recognise(state)
    assert found.backbone == "preact-resnet18(width=4)"
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        got = twin(registry, found.backbone, shape_of(network), found.tensors)(x)
        assert torch.allclose(got, network(x), rtol=1e-11, atol=1e-12)


def test_two_tensors_under_one_name_are_refused_and_odd_digits_are_no_numbers():
    state = CifarResNet().state_dict()
    with pytest.raises(UsageError, match="two of these tensors have the name of one"):
        recognise({**state, "stem.conv.weight": state["conv1.weight"]})
    odd = f"layer1.{'9' * 5000}.bn1.weight"
    arabic = "layer1.\u0660.conv1.weight"
    assert {odd, arabic} <= recognise({**state, odd: torch.ones(1), arabic: torch.ones(1)}).tensors.keys()


def test_prefixes_without_end_are_no_work():
    state = {"module." * 500 + name: tensor for name, tensor in CifarResNet().state_dict().items()}
    assert recognise(state) is None
