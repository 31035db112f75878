"""Initial weights are a function of the seed, in layers of every kind."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import NORMALISED, with_networks
from torch import nn

from robflat_bench.backbones.parts import built
from robflat_bench.core import ImageShape
from robflat_bench.registry.components import resolve

SHAPE = ImageShape(3, 32, 10, (0.5,) * 3, (0.25,) * 3)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def network(text: str, seed: int) -> nn.Module:
    return built(resolve(with_networks(), "backbone", text), SHAPE, "relu", seed)


@pytest.mark.parametrize("text", [*NORMALISED, "attention", "resnet8", "timm(name=vit_tiny_patch16_224)"])
def test_a_seed_decides_every_initial_weight_whatever_the_global_random_state(text):
    first, other = network(text, 1), network(text, 2)
    torch.manual_seed(5)
    again = network(text, 1)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    for key, value in first.named_parameters():
        assert torch.equal(value, other.get_parameter(key)) is (len(value.unique()) == 1), key


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    network("attention", 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_layers_start_with_the_weights_of_plain_ones(name):
    plain, model = network("residual", 3), network(name, 3).eval()
    model(torch.zeros(1, 3, 32, 32))  # layers of the old style compute their weights in forward
    for place, module in plain.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            expected, found = module.weight, model.get_submodule(place).weight
            if "spectral" in name:
                norm = torch.linalg.matrix_norm(expected.flatten(1), 2)
                # Power iterations stop short of the largest singular value.
                assert 0 <= (found.flatten()[0] * norm / expected.flatten()[0] - 1) < 0.1
                found = found * (expected.flatten()[0] / found.flatten()[0])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
