"""Networks that draw from the global generators, or derive what they use, train and resume bit for bit."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.networks import with_networks
from helpers.observers import StopsAt
from torch import nn

from robflat_bench.config.protocol import load
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.runs.run import PlannedRun, _train
from robflat_bench.training import loop

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(tiny, tmp_path):
    """`bench("dropping")`: ready to train this network for three epochs under the tiny protocol."""
    registry = with_networks()

    def make(backbone: str, *settings: str, store: str = "store") -> Session:
        settings = (f"fixed.backbone={backbone}", "recipe.epochs=3", *settings)
        return Session(registry, load(registry, str(tiny), settings), None, Store(tmp_path / store), "cpu")

    return make


def trained(session: Session, method: str) -> list[str]:
    """The digests of the best and of the last weights."""
    made = PlannedRun(session, compose(session.registry, method), 1)
    _train(made)
    return [digest(read_weights(made.folder.weights(name))) for name in ("best", "last")]


@pytest.mark.parametrize(
    "method", ["at", "trades+swa(start=0.3)+ema", "at+self-supervision+cutmix", "free-at", "hat", "at+sam"]
)
def test_dropout_draws_the_same_in_undisturbed_repeated_and_resumed_runs(bench, monkeypatch, method):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    undisturbed = trained(bench("dropping"), method)
    torch.manual_seed(5)
    assert trained(bench("dropping", store="repeated"), method) == undisturbed
    resumed = bench("dropping", store="resumed")
    for step in (2, 7):
        torch.manual_seed(step)
        with pytest.raises(KeyboardInterrupt):
            trained(replace(resumed, observer=StopsAt(step)), method)
    assert trained(resumed, method) == undisturbed


def test_every_update_draws_other_numbers(bench, monkeypatch):
    drawn: list[float] = []

    def dropout(x, p, training, inplace):
        if training:
            drawn.append(float(torch.rand(())))
        return x

    monkeypatch.setattr(nn.functional, "dropout", dropout)
    trained(bench("dropping"), "standard")
    _, *updates = drawn  # the first is of the pass that tries the network before training
    assert len(updates) == len({*updates}) == 9, "three epochs of three updates"


def caller() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_training_leaves_the_generators_of_its_caller_alone(bench):
    before = caller()
    trained(bench("dropping"), "at+self-supervision")
    assert caller() == before


def test_every_global_generator_follows_the_key():
    def draws() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    made = []
    for key in (1, 1, 2):
        random.seed(len(made))
        np.random.seed(len(made))
        torch.manual_seed(len(made))
        before = caller()
        with global_state(generator(key)):
            made.append(draws())
        assert caller() == before
    assert made[0] == made[1]
    assert not {*made[0]} & {*made[2]}
