"""A weight with several names is averaged, saved and loaded as one, whatever the order of registration."""

from __future__ import annotations

import pytest
import torch
from helpers.naive import at, batch, images, inner, training
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.core import Moment, UsageError
from robflat_bench.core.randomness import generator
from robflat_bench.numerics.weights import load_weights, read_weights, write_weights
from robflat_bench.registry.components import compose
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")

SPELLINGS = ["once", "one, two", "two, one"]


class Network(nn.Module):
    """Two layers with one weight: a parameter that forward uses twice, or two modules that share it."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.entry, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        if spelling == "once":
            self.weight = nn.Parameter(torch.zeros(16, 16))
        else:
            for name in spelling.split(", "):
                self.add_module(name, nn.Linear(16, 16, bias=False))
            self.two.weight = self.one.weight
        self.double()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                key = "weight" if name in ("one.weight", "two.weight") else name
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator(key), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        one, two = (self.one.weight, self.two.weight) if hasattr(self, "one") else (self.weight, self.weight)
        y = F.linear(self.entry(x.flatten(1)), one).relu()
        return self.head(self.norm(F.linear(y, two)).relu())


def evaluated_logits(registry, text: str, spelling: str, path) -> Tensor:
    """Logits of a network that loads what two epochs of three updates chose and saved."""
    model = Network(spelling)
    composition = Composition(compose(registry, text))
    composition.setup(training(model))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1)
    for epoch in range(2):
        for update in range(3):
            given = composition.prepare(at(batch(), epoch=epoch, update=update))
            composition.update(model, given, inner(), optimizer)
        weights = composition.evaluated(model, Moment(7, epoch, 3, (epoch + 1) / 2))
    write_weights(path, weights)
    loaded = Network(spelling)
    load_weights(loaded, read_weights(path), "the file")
    with torch.no_grad():
        assert not torch.equal(loaded.eval()(images(5)), model.eval()(images(5))), "it is another network than the last"
        return loaded(images(5))


@pytest.mark.parametrize(
    "text",
    [
        *("at+ema(decay=0.9)", "at+swa(start=0)", "at+ema+swa(start=0)", "at+entropy-sgd(steps=4, noise=0.0)"),
        *("at+meat(start=0)", "rebat(start=0, decay=0.5)"),
    ],
)
def test_tied_weights_are_averaged_as_one(registry, tmp_path, text):
    once, *tied = (evaluated_logits(registry, text, spelling, tmp_path / "w.safetensors") for spelling in SPELLINGS)
    for logits in tied:
        torch.testing.assert_close(logits, once, rtol=0, atol=1e-12)


def test_two_values_for_one_weight_are_refused():
    model = Network("one, two")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, weights, "the file")
    with pytest.raises(UsageError, match=r"'one\.weight' and 'two\.weight' are one tensor in this network"):
        load_weights(model, weights | {"two.weight": weights["two.weight"] + 1}, "the file")
