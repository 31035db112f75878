"""Workers compute units ahead of the process that makes the record, and change no number of it."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import REPOSITORY, TINY
from torch import Tensor, nn

from robflat_bench.config.protocol import load
from robflat_bench.core import Attack, Examples, Journal, Measure, Measurement, NoValue, Observer
from robflat_bench.evaluation import workers
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import find_model, initial_weights, load_model
from robflat_bench.evaluation.plan import Plan, choose_plan
from robflat_bench.evaluation.session import Session
from robflat_bench.records.claims import Elsewhere, Filling, Reading
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def session(registry, tiny, tmp_path) -> Session:
    return Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Notes(), jobs=2)


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def subject(session, finished) -> EvaluatedModel:
    checkpoints = finished.folder / "checkpoints"
    model = load_model(session, find_model(session, str(checkpoints / "last.safetensors")))
    return EvaluatedModel(model, "last", 1, initial_weights(checkpoints / "initial.safetensors"))


SOME = (
    "average-case(draws=3, full_draws=2, steps=2)",
    "average-case(draws=2, steps=2, reference=paper, reference_restarts=2)",
    "worst-case(restarts=2, steps=2, strong_steps=2, xi=0.03)",
    "hessian-trace(probes=3, steps=2)",
    "m-sharpness(m=6, steps=2, iterations=2)",
    "relative-flatness(steps=2)",
    "spectral-norm(iterations=5)",
    "pac-bayes-sigma(draws=2, steps=2, tolerance=0.3)",
)
ATTACKS = ("pgd(steps=2, restarts=2)", "fgsm", "autoattack(version=apgd, batch=15)")


def planned(session: Session, measures: tuple[str, ...]) -> Plan:
    return choose_plan(session.registry, session.fixed, "last", ATTACKS, measures, 30, 8)


def every_measure(session: Session) -> tuple[str, ...]:
    """A cheap variant of every built-in measure under every coupling."""
    texts = []
    for offer in session.registry.offers("measure"):
        info = offer.info
        couplings = info.couplings if "coupling" in info.params.model_fields else ()
        for coupling in couplings or (None,):
            chosen = {**info.example, **({"coupling": coupling} if coupling else {})}
            texts.append(f"{info.name}({', '.join(f'{name}={_value(value)}' for name, value in chosen.items())})")
    return tuple(texts)


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def found(session: Session, plan: Plan, subject: EvaluatedModel, journal: StoredJournal) -> tuple[dict, dict]:
    """The result without times, and the outcomes."""
    result, outcomes = evaluate(session, plan, subject, journal)
    document = result.model_dump(mode="json")
    del document["seconds"]
    for split in ("measures", "measures_train"):
        for measure in document[split].values():
            del measure["seconds"]
    return document, outcomes


def assert_equal(one: tuple[dict, dict], other: tuple[dict, dict]) -> None:
    assert one[0] == other[0]
    assert [*one[1]] == [*other[1]]
    for name, array in one[1].items():
        assert array.dtype == other[1][name].dtype, name
        np.testing.assert_array_equal(array, other[1][name], err_msg=name)


def no_unit_may_be_left(monkeypatch) -> None:
    """From now on, a unit that is computed fails the test, unless it raises by itself."""
    computed = StoredJournal._computed

    def refused(journal, path, compute):
        computed(journal, path, compute)
        raise AssertionError(f"{path} was computed by the process that reads")

    monkeypatch.setattr(StoredJournal, "_computed", refused)


class Refusing(Filling):
    """Finds units claimed by another process, by chance."""

    chance = random.Random(0)
    share = 0.5

    def of(self, unit: Path):
        if not self.leaving and self.chance.random() < self.share:
            self._leave(unit)
        return super().of(unit)


def filled(session: Session, plan: Plan, subject: EvaluatedModel, folder: Path) -> None:
    """What workers compute, with a network of their own."""
    work = workers.Work(session.protocol, session.splits, "cpu", folder, [(plan, subject)])
    workers.fill(session.registry, pickle.loads(pickle.dumps(work)))


def noise(module: nn.Module, images: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    return logits + 0.1 * torch.randn_like(logits)


def check_any_order(session, plan, subject, folder, monkeypatch) -> dict:
    alone = found(session, plan, subject, StoredJournal(folder / "alone"))
    monkeypatch.setattr(workers, "Filling", Refusing)
    monkeypatch.setattr(workers, "PAUSE_SECONDS", 0)
    filled(session, plan, subject, folder / "shared")
    no_unit_may_be_left(monkeypatch)
    assert_equal(found(session, plan, subject, StoredJournal(folder / "shared")), alone)
    return alone[0]


@pytest.mark.parametrize("random_forward", [False, True])
def test_units_computed_in_any_order_by_others_give_the_same_numbers(
    session, subject, random_forward, tmp_path, monkeypatch
):
    """Whatever a worker leaves out and computes later; a network of random outputs draws the same; reasons too."""
    if random_forward:
        subject.model.register_forward_hook(noise)
    result = check_any_order(session, planned(session, SOME), subject, tmp_path, monkeypatch)
    assert result["flags"]["random_forward"] == random_forward
    reasons = [name for name, measure in result["measures"].items() if measure["reason"]]
    assert any("relative-flatness" in name for name in reasons) == random_forward


@pytest.mark.slow
def test_every_measure_gives_the_same_numbers_in_any_order(session, subject, tmp_path, monkeypatch):
    check_any_order(session, planned(session, every_measure(session)), subject, tmp_path, monkeypatch)
