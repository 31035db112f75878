"""Networks that torch runs and that the harness must evaluate, or refuse in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robflat_bench.backbones.parts import check_tensors
from robflat_bench.config.protocol import load
from robflat_bench.core import Observer, UsageError
from robflat_bench.evaluation.network import check_trainable
from robflat_bench.evaluation.plan import choose_plan
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.gains import gains
from robflat_bench.records.store import Store
from robflat_bench.runs.evaluation import evaluate_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def measured(registry, tiny, tmp_path):
    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Observer())

    def measure(module: nn.Module, *texts: str) -> list:
        plan = choose_plan(registry, session.fixed, "last", ("fgsm",), texts, 20)
        record, _ = evaluate_model(session, module, plan)
        return list(record.results[record.model].measures.values())

    return measure


class Calls(nn.Module):
    """Layers by name, called in this order."""

    def __init__(self, layers: dict[str, nn.Module], order: tuple[str, ...], flat: bool = False) -> None:
        super().__init__()
        self.layers, self.order, self.flat = nn.ModuleDict(layers), order, flat
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, x):
        for name in self.order:
            x = self.layers[name](x).relu()
        return self.head(x.view(len(x), -1) if self.flat else x.flatten(1))


def stack():
    torch.manual_seed(0)
    return nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)


def test_spectral_norm_of_a_layer_that_acts_twice_counts_it_twice(measured):
    first, second = stack()
    torch.manual_seed(1)
    tied = Calls({"a": first, "b": second}, ("a", "b", "b"))
    torch.manual_seed(1)
    apart = Calls({"a": first, "b": second, "c": second}, ("a", "b", "c"))
    (one,), (other,) = measured(tied, "spectral-norm"), measured(apart, "spectral-norm")
    assert one.value == pytest.approx(other.value, rel=1e-2)


def test_spectral_norm_of_layers_with_any_name(measured):
    first, second = stack()
    (found,) = measured(Calls({"conv 1/a": first, "conv 2": second}, ("conv 1/a", "conv 2")), "spectral-norm")
    assert found.value is not None


def test_a_view_behind_a_convolution(measured):
    torch.manual_seed(1)
    layers = dict(zip("ab", stack(), strict=True))
    plain = Calls(layers, ("a", "b"))
    view = Calls(layers, ("a", "b"), flat=True)
    view.load_state_dict(plain.state_dict())
    (one,), (other,) = measured(plain, "sam-sharpness"), measured(view, "sam-sharpness")
    assert one.value == pytest.approx(other.value, rel=1e-3)


class Filtered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(1, 8, 5, dtype=torch.cfloat))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.fft.irfft2(torch.fft.rfft2(x) * self.filter, s=(8, 8)).flatten(1))


def test_complex_weights_are_refused(measured):
    with pytest.raises(UsageError, match=r"'filter' is complex"):
        measured(Filtered(), "margin")


class Remembering(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_a_state_of_more_than_tensors_is_refused(measured):
    with pytest.raises(UsageError, match=r"'1._extra_state' is no tensor"):
        measured(nn.Sequential(nn.Flatten(), Remembering(64, 10)), "margin")


def test_lazy_weights_are_refused(measured):
    with pytest.raises(UsageError, match=r"has no shape before the first pass"):
        measured(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "margin")


class ThroughAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x):
        h = self.conv(x).relu().flatten(1) + 0
        h[:, :16].mul_(5)
        return self.head(h)


def test_path_norm_does_not_overlook_what_is_changed_through_a_view(measured):
    (found,) = measured(ThroughAView(), "path-norm")
    assert found.value is None
    assert "changed in place through a view" in found.reason


class Own(nn.Module):
    def __init__(self, network, mean, std) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


def test_path_norm_of_an_own_normalisation_of_pixels(measured):
    from robflat_bench.api import ImageShape, Normalized

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    wrapped = Normalized(network, ImageShape(channels=1, size=8, classes=10, mean=(0.3,), std=(0.4,)))
    (one,), (other,) = measured(wrapped, "path-norm"), measured(Own(network, wrapped.mean, wrapped.std), "path-norm")
    assert one.value == pytest.approx(other.value)


# ---------------------------------------------------------------------------------------------------------
# Refused before training
# ---------------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Its forward returns a tuple while it trains, as networks with auxiliary heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, x):
        logits = self.norm(self.head(x.flatten(1)))
        return (logits, logits) if self.training else logits


def frozen() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "said"),
    [(TwoHeads, "TwoHeads in train mode returns a tuple"), (frozen, "no parameter of Sequential requires a gradient")],
)
def test_a_network_that_cannot_be_trained_is_refused_and_left_as_it_was(registry, tiny, tmp_path, make, said):
    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Observer())
    model = make().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=said):
        check_trainable(session, model, type(model).__name__)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_layer_without_a_shape_is_refused_where_a_backbone_is_built():
    with pytest.raises(UsageError, match="has no shape before the first pass"):
        check_tensors(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.linear = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("declared", "said"),
    [("gamma", "must be a tuple of names"), (("gama",), r"names no parameter of that layer: \['gamma'\]")],
)
def test_a_declaration_that_names_no_gain_is_refused(declared, said):
    wrong = type("Wrong", (Gain,), {"fixed_in_weight_space": declared})
    with pytest.raises(UsageError, match=said):
        gains(wrong())
    right = type("Right", (Gain,), {"fixed_in_weight_space": ("gamma",)})()
    assert gains(right) == {id(right.gamma): "Right"}


def test_a_declaration_on_an_instance_is_refused():
    layer = Gain()
    layer.fixed_in_weight_space = ("gamma",)
    with pytest.raises(UsageError, match="set on the class"):
        gains(layer)
