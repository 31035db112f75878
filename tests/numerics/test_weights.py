"""Weights that cannot be the network's are refused by the name of their first wrong tensor."""

import pytest
import torch
from torch import nn

from robflat_bench.backbones.parts import initialize
from robflat_bench.core import UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.weights import digest, load_weights, write_weights


class Masked(nn.Module):
    """A causal mask holds -inf, as in networks with attention."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Masked())


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("0.weight", lambda w: w.to(torch.int8), r"'0.weight' holds integers \(torch.int8\), .* are floats"),
        ("0.bias", lambda w: w.bool(), r"'0.bias' holds integers \(torch.bool\)"),
        ("1.running_var", lambda w: w.long(), r"'1.running_var' holds integers"),
        ("0.weight", lambda w: w.to(torch.complex64), "'0.weight' holds complex numbers"),
        ("1.num_batches_tracked", lambda w: w.float(), "'1.num_batches_tracked' holds floats .* are integers"),
        ("0.weight", lambda w: torch.full_like(w, torch.nan), "'0.weight' holds NaN or infinity"),
        ("2.layer.bias", lambda w: torch.full_like(w, -torch.inf), "'2.layer.bias' holds NaN or infinity"),
        ("1.running_mean", lambda w: torch.full_like(w, torch.inf), "'1.running_mean' holds NaN or infinity"),
    ],
)
def test_tensors_that_no_training_leaves_are_refused_by_name(name, change, problem):
    model = network()
    given = dict(model.state_dict())
    given[name] = change(given[name])
    before = digest(model.state_dict())
    with pytest.raises(UsageError, match=problem) as caught:
        load_weights(model, given, "w.safetensors")
    assert len(str(caught.value).splitlines()) == 1
    assert digest(model.state_dict()) == before


def test_other_float_types_and_masks_of_infinities_are_loaded():
    model, other = network(), network()
    initialize(other, generator(1, "init"))
    load_weights(
        model, {name: w.double() if w.is_floating_point() else w for name, w in other.state_dict().items()}, ""
    )
    assert digest(model.state_dict()) == digest(other.state_dict())


def test_a_buffer_that_begins_as_nan_is_loaded():
    model, other = network(), network()
    for one in (model, other):
        one.register_buffer("scale", torch.tensor(torch.nan))  # until the first batch sets it
    load_weights(model, other.state_dict(), "w.safetensors")
    assert digest(model.state_dict()) == digest(other.state_dict())


def test_evaluate_refuses_a_quantized_file_in_one_line(command, tiny, registry, tmp_path):
    from robflat_bench.config.protocol import load
    from robflat_bench.evaluation.model import build_model
    from robflat_bench.evaluation.session import Session
    from robflat_bench.records.store import Store

    session = Session(registry, load(registry, str(tiny)), None, Store(tmp_path), "cpu")
    weights = dict(build_model(session, 1).state_dict())
    first = next(iter(weights))
    for change, problem in ((lambda w: w.to(torch.int8), "integers"), (lambda w: w / 0, "NaN or infinity")):
        write_weights(tmp_path / "odd.safetensors", {**weights, first: change(weights[first])})
        done = command("evaluate", tmp_path / "odd.safetensors", "--protocol", tiny, "--store", tmp_path / "store")
        assert done.code == 2
        assert f"'{first}' holds {problem}" in done.complaint
