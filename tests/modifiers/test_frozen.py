"""Frozen layers and parameters that nothing reads: training does not move them, and measures have a value."""

import pytest
import torch
from helpers.measures import THREAT, small_examples, small_net
from helpers.naive import batch, inner, network, training
from torch import nn

from robflat_bench.core import Workspace
from robflat_bench.registry.components import compose, resolve
from robflat_bench.registry.registry import discover
from robflat_bench.training.composition import Composition

REGISTRY = discover()
WEIGHTS = [
    *["awp", "awp(steps=2)", "random-wp", "rwp(steps=2)", "rwp(steps=2, gradients=raw)", "sam", "asam"],
    *["entropy-sgd(steps=2)", "entropy-sgd(steps=3)", "weight-clipping(limit=0.01)"],
]
"""Modifiers that move weights."""
WEIGHT_SPACE = [
    "worst-case(restarts=1, steps=2, strong_steps=2)",
    "average-case(draws=2, steps=2)",
    "adaptive-worst(steps=2, iterations=2)",
    "sam-sharpness(steps=2)",
    "hessian-trace(probes=2)",
    "weight-gradient-norm",
    "fisher-rao",
]

pytestmark = pytest.mark.usefixtures("one_thread")


class WithSpare(nn.Sequential):
    """A network with a layer that its forward pass never reads."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__(*net)
        self.spare = nn.Linear(3, 3).double()

    def forward(self, x):
        for layer in [*self][:-1]:
            x = layer(x)
        return x


def two_updates(text: str, model: nn.Module) -> None:
    composition = Composition(compose(REGISTRY, f"at+{text}"))
    composition.setup(training(model))
    optimizer = torch.optim.SGD(composition.parameters(model), lr=0.1, weight_decay=0.01)
    for _ in range(2):
        composition.update(model, composition.prepare(batch()), inner(), optimizer)


@pytest.mark.parametrize("text", WEIGHTS)
def test_frozen_layers_do_not_move_in_training(text):
    model = network()
    frozen = [model.network.stem.conv.weight, model.network.stem.norm.weight, model.network.stem.norm.bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    seen: list[list[torch.Tensor]] = []
    model.register_forward_pre_hook(lambda *_: seen.append([parameter.detach().clone() for parameter in frozen]))
    trained = next(p for p in model.parameters() if p.requires_grad and p.ndim > 1)
    before = trained.detach().clone()
    two_updates(text, model)
    model(batch().x)
    assert not torch.equal(trained, before)
    assert all(torch.equal(one, other) for pass_ in seen for one, other in zip(pass_, seen[0], strict=True))


@pytest.mark.parametrize("text", ["awp", "rwp(steps=1)", "random-wp"])
def test_where_every_matrix_is_frozen_nothing_is_perturbed(text):
    perturbed, plain = network(), network()
    for parameter in [*perturbed.parameters(), *plain.parameters()]:
        parameter.requires_grad_(parameter.ndim < 2)
    two_updates(text, perturbed)
    two_updates("label-smoothing(tau=0)", plain)
    pairs = zip(perturbed.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("text", WEIGHTS)
def test_a_parameter_that_nothing_reads_does_not_stop_training_and_stays(text):
    model = network()
    model.spare = nn.Parameter(torch.full((3, 3), 0.005, dtype=torch.float64))
    two_updates(text, model)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert torch.equal(model.spare, torch.full_like(model.spare, 0.005))


@pytest.mark.parametrize("text", WEIGHT_SPACE)
def test_a_parameter_that_nothing_reads_changes_no_measure(text):
    examples, found = small_examples(), []
    for model in (small_net(), WithSpare(small_net())):
        measure = resolve(REGISTRY, "measure", text).build(THREAT)
        found.append(measure.measure(model, examples, Workspace(seed=5)).value)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
