"""Which tensors move: normalisation and gains of torch, of timm and of plugins stay, and so does what is excluded."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from helpers.measures import REGISTRY, THREAT, small_examples
from timm import layers as tl
from timm.layers import grn
from timm.models import convnext, hgnet, metaformer, mlp_mixer, nfnet
from torch import Tensor, nn

from robflat_bench.core import NoValue, Params, UsageError, Workspace
from robflat_bench.measures.shared import WeightSpaceParams
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.registry.components import resolve


def awake(model: nn.Module) -> nn.Module:
    """No tensor is 0, so that only its kind decides whether it moves."""
    for number, parameter in enumerate(model.parameters()):
        nn.init.constant_(parameter, 0.3 + 0.01 * number)
    return model


class Declared(nn.Module):
    """A plugin's layer."""

    fixed_in_weight_space = ("strength", "shift*")

    def __init__(self) -> None:
        super().__init__()
        self.strength, self.shift_left, self.weight = (nn.Parameter(torch.ones(3)) for _ in range(3))


class Inheriting(Declared):
    """Its parent's declaration holds."""


class OwnLayerScale(tl.LayerScale):
    pass


class LayerScale(nn.Module):
    """Not timm's, and not declared."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(3))


MLPS = ("linear_tokens", "mlp_channels.fc1", "mlp_channels.fc2")
MOVED = [
    (lambda: tl.FilterResponseNormTlu2d(4), set()),
    (lambda: tl.FilterResponseNormAct2d(4), set()),
    (lambda: tl.EvoNorm2dB0(4), set()),
    (lambda: tl.EvoNorm2dS0(8, group_size=4), set()),
    (lambda: tl.EvoNorm2dS2a(8, group_size=4), set()),
    (lambda: grn.GlobalResponseNorm(4), set()),
    (lambda: tl.LayerScale(4), set()),
    (lambda: tl.LayerScale2d(4), set()),
    (lambda: tl.BatchNormAct2d(4), set()),
    (lambda: tl.GroupNormAct(32), set()),
    (lambda: tl.LayerNorm2d(4), set()),
    (lambda: tl.LayerNormAct2d(4), set()),
    (lambda: tl.RmsNorm(4), set()),
    (lambda: tl.RmsNorm2d(4), set()),
    (lambda: tl.SimpleNorm2d(4), set()),
    (lambda: mlp_mixer.Affine(4), set()),
    (lambda: metaformer.Scale(4), set()),
    (lambda: hgnet.LearnableAffineBlock(), set()),
    (lambda: tl.ScaledStdConv2d(4, 4, 3), {"weight", "bias"}),
    (lambda: tl.ScaledStdConv2dSame(4, 4, 3), {"weight", "bias"}),
    (lambda: tl.StdConv2d(4, 4, 3), {"weight"}),
    (
        lambda: convnext.ConvNeXtBlock(4, conv_bias=False),
        {"conv_dw.weight", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"},
    ),
    (
        lambda: mlp_mixer.ResBlock(4, 5, norm_layer=mlp_mixer.Affine),
        {f"{name}.{kind}" for name in MLPS for kind in ("weight", "bias")},
    ),
    (lambda: nn.ModuleList([OwnLayerScale(4), Declared(), Inheriting()]), {"1.weight", "2.weight"}),
    (
        lambda: nfnet.NormFreeBlock(8, skipinit=True, conv_layer=tl.ScaledStdConv2d, act_layer=nn.ReLU),
        {f"conv{number}.{kind}" for number in (1, 2, 3) for kind in ("weight", "bias")},
    ),
    (LayerScale, {"gamma"}),
]


@pytest.mark.parametrize(("make", "moved"), MOVED)
def test_normalisation_and_gains_never_move(make, moved):
    model = awake(make())
    model.other = nn.Linear(1, 1, bias=False)
    space, moved = WeightSpace(model), {*moved, "other.weight"}
    assert set(space.layers) == moved
    assert space.left.keys() == {name for name, _ in space.model.named_parameters()} - moved
    assert all(reason.startswith("normalisation or gain of ") for reason in space.left.values())


@pytest.mark.parametrize("norm", ["frn", "evos", "bn"])
def test_networks_that_differ_in_their_norm_move_the_same_tensors(norm):
    shape = {"layers": (1, 1), "channels": (128, 128), "stem_chs": 64, "num_classes": 4}
    other = {"bn": "resnetv2_50d", "frn": "resnetv2_50d_frn", "evos": "resnetv2_50d_evos"}[norm]
    twin, model = (awake(timm.create_model(name, **shape)) for name in ("resnetv2_50d_gn", other))
    assert WeightSpace(model).layers.keys() == WeightSpace(twin).layers.keys()
    assert len(WeightSpace(model).layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) + 1


# ---------------------------------------------------------------------------------------------------------
# Every measure
# ---------------------------------------------------------------------------------------------------------


def network(norm: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)
        return nn.Sequential(*layers).double().eval()


def params_of(name: str) -> type[Params]:
    return REGISTRY.get("measure", name).info.params


IN_WEIGHTS = [name for name in REGISTRY.names("measure") if issubclass(params_of(name), WeightSpaceParams)]


@pytest.fixture
def spaces(monkeypatch) -> list[set[str]]:
    """The tensors of every weight space that is made."""
    found: list[set[str]] = []
    begin = WeightSpace.__init__

    def watched(self, *args, **kwargs) -> None:
        begin(self, *args, **kwargs)
        found.append(set(self.layers))

    monkeypatch.setattr(WeightSpace, "__init__", watched)
    return found


def measure(name: str, model: nn.Module, **params) -> None:
    offer = REGISTRY.get("measure", name)
    own = offer.info.params(**{**offer.info.example, **params})
    place = Workspace(9, 0, initial={key: 0.9 * value for key, value in model.state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        offer.load()(own, THREAT).measure(model, small_examples(), place)


@pytest.mark.parametrize("name", sorted({*REGISTRY.names("measure")} - {*IN_WEIGHTS}))
def test_measures_without_exclude_move_no_weights(spaces, name):
    measure(name, network(nn.BatchNorm2d(4)))
    assert not spaces


@pytest.mark.parametrize("name", IN_WEIGHTS)
def test_every_measure_leaves_normalisation_and_what_is_excluded(spaces, name):
    weights = {"0.weight", "4.weight"}
    for norm in (nn.GroupNorm(2, 4), tl.FilterResponseNormTlu2d(4)):
        measure(name, network(norm))
        assert spaces
        assert all(space == weights | {"0.bias", "4.bias"} for space in spaces), norm
        spaces.clear()
    measure(name, network(nn.GroupNorm(2, 4)), exclude=["*.bias"])
    assert all(space == weights for space in spaces)
    with pytest.raises(NoValue, match=r"'\*\.biases' matches no parameter"):
        measure(name, network(nn.GroupNorm(2, 4)), exclude="*.biases")


def test_one_pattern_is_a_list_of_one():
    texts = ['lpf(exclude="*.bias")', 'lpf(exclude=["*.bias"])']
    assert len({resolve(REGISTRY, "measure", text).canonical for text in texts}) == 1
    assert "exclude" not in resolve(REGISTRY, "measure", "lpf").canonical, "names of measures in records stay"
    with pytest.raises(UsageError, match="exclude"):
        resolve(REGISTRY, "measure", "lpf(exclude=[])")


# ---------------------------------------------------------------------------------------------------------
# Shared tensors
# ---------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_a_shared_tensor_moves_once_under_all_its_names():
    model = Tied().double()
    space, before = WeightSpace(model), copy.deepcopy(model.encoder.weight.data)
    assert list(space.norms) == ["encoder.weight"]
    assert (space.counts["tensors_moved"], space.counts["weights_moved"]) == (1, 9)
    nu = space.on_sphere(0.5, 1)
    with space.moved(nu):
        assert model.decoder.weight is model.encoder.weight
        assert torch.equal(model.decoder.weight.data, before + nu["encoder.weight"])
    assert torch.equal(model.decoder.weight.data, before)
    with pytest.raises(NoValue, match="no weights that move"):
        WeightSpace(model, exclude=("decoder.*",))


def test_moved_and_left_tensors_are_counted():
    counts = WeightSpace(network(tl.FilterResponseNormTlu2d(4)), exclude=("4.bias",)).counts
    assert counts == {"tensors_moved": 3, "tensors_left": 4, "weights_moved": 76 + 144, "weights_left": 12 + 4}
