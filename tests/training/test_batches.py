"""How an epoch is cut into batches."""

from __future__ import annotations

import pytest
import torch
from helpers.networks import with_networks

from robflat_bench.config.protocol import load
from robflat_bench.core import UsageError
from robflat_bench.core.batching import cuts
from robflat_bench.evaluation.session import Session
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.runs.run import PlannedRun, _train
from robflat_bench.training.composition import Composition

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_one_image_left_over_joins_the_batch_before_it(size):
    for count in range(1, 45):
        rows = torch.arange(count)
        expected = [part.tolist() for part in rows.split(size)]
        if size > 1 and len(expected) > 1 and len(expected[-1]) == 1:
            expected[-2:] = [expected[-2] + expected[-1]]
        assert [part.tolist() for part in rows.tensor_split(cuts(count, size))] == expected


@pytest.fixture
def train(tiny, tmp_path, monkeypatch):
    """`train("flat", "at", 59)`: the sizes of the batches of one epoch of 60 images."""
    registry, seen = with_networks(), []
    original = Composition.update
    monkeypatch.setattr(
        Composition,
        "update",
        lambda self, model, batch, *rest: seen.append(len(batch.x)) or original(self, model, batch, *rest),
    )

    def trained(backbone: str, method: str, size: int) -> list[int]:
        settings = (f"fixed.backbone={backbone}", "recipe.epochs=1", f"recipe.batch_size={size}")
        session = Session(registry, load(registry, str(tiny), settings), None, Store(tmp_path), "cpu")
        _train(PlannedRun(session, compose(registry, method), 1))
        return seen

    return trained


@pytest.mark.parametrize("method", ["at", "at+self-supervision", "at+swa"])
def test_an_epoch_may_leave_one_image_over(train, method):
    assert train("flat", method, 59) == [60]


def test_calibration_may_leave_one_image_over(train, monkeypatch):
    monkeypatch.setattr("robflat_bench.training.inputs.MEMORY_BATCH", 59)
    assert train("flat", "at+swa", 20) == [20, 20, 20]


@pytest.mark.parametrize(("backbone", "method"), [("flat", "at"), ("attention", "at+self-supervision")])
def test_batches_of_one_image_are_refused_where_batches_are_normalised(train, backbone, method):
    with pytest.raises(UsageError, match=r"a batch has one \(recipe.batch_size 1, 60 training images\); use --set"):
        train(backbone, method, 1)


def test_batches_of_one_image_train_other_networks(train):
    assert train("attention", "at", 1) == [1] * 60
