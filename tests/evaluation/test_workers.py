"""Workers compute units ahead of the process that makes the record, and change no number of it."""

from __future__ import annotations

import pickle
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robflat_bench.attacks.fgsm import FGSM
from robflat_bench.config.protocol import load
from robflat_bench.core import NoValue, Observer, UsageError
from robflat_bench.evaluation import workers
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.model import find_model, initial_weights, load_model
from robflat_bench.evaluation.plan import Plan, choose_plan
from robflat_bench.evaluation.session import Session
from robflat_bench.front.sessions import open_session
from robflat_bench.measures.inputs.margin import Margin
from robflat_bench.records import lease
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.store import RunFolder, Store
from robflat_bench.records.unit_claims import Filling

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
    work = workers.Work(session.protocol, session.splits, "cpu", folder, folder.parent, [(plan, subject)])
    workers.fill(session.registry, pickle.loads(pickle.dumps(work)), lambda *report: None)


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


def test_an_error_is_met_by_the_process_that_reads(session, subject, tmp_path, monkeypatch):
    """A worker leaves the stage to it, and computes the others."""

    def fails(attack, model, examples, seed):
        raise ZeroDivisionError("in fgsm")

    monkeypatch.setattr(FGSM, "perturb", fails)
    plan = planned(session, ("margin",))
    filled(session, plan, subject, tmp_path)
    left = StoredJournal._computed

    def only_fgsm(journal, path, compute):
        with pytest.raises(ZeroDivisionError):
            left(journal, path, compute)
        raise ArithmeticError("fgsm alone is left")

    monkeypatch.setattr(StoredJournal, "_computed", only_fgsm)
    with pytest.raises(ArithmeticError, match="fgsm alone is left"):
        evaluate(session, plan, subject, StoredJournal(tmp_path))


def test_a_worker_whose_network_a_component_left_changed_ends(session, subject, tmp_path, monkeypatch):
    """It would compute other numbers."""

    def moves(measure, model, examples, workspace):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        raise NoValue("it forgot to move the weights back")

    monkeypatch.setattr(Margin, "measure", moves)
    with pytest.raises(SystemExit, match=r"margin.* did not restore the network"):
        filled(session, planned(session, ("margin",)), subject, tmp_path)


def test_a_worker_whose_process_has_lost_the_run_leaves_and_writes_nothing(session, subject, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_held", [])
    folder, plan = RunFolder(tmp_path / "run"), planned(session, ("margin",))
    with folder.locked():
        work = workers.Work(
            session.protocol, session.splits, "cpu", folder.work, tmp_path, [(plan, subject)], lease.held()
        )
    with folder.locked():  # as another process, which has taken over
        others = lease._held
        monkeypatch.setattr(lease, "_held", [])
        with pytest.raises(lease.Lost, match="took over this run"):
            workers.fill(session.registry, work, lambda *report: None)
        monkeypatch.setattr(lease, "_held", others)
    assert not folder.work.exists()


# ---------------------------------------------------------------------------------------------------------
# The number of processes
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cores", "free", "expected"),
    [
        ({"jobs": 5}, 2, 1, 5),
        ({}, 8, 100, 8),
        ({}, 8, 4, 4),  # a quarter stays free, and each takes what this one has taken
        ({}, 8, 0.1, 1),
        ({}, 8, None, 8),
        ({"device": "cuda"}, 8, 100, 1),
    ],
)
def test_processes_by_default_have_cores_and_memory(session, monkeypatch, changes, cores, free, expected):
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: None if free is None else int(free * 2**30))
    monkeypatch.setattr(workers, "peak_memory_bytes", lambda: 2**30)
    assert workers.processes(replace(session, **{"jobs": None, **changes})) == expected


def test_a_network_that_no_other_process_can_have_is_evaluated_by_one(session, subject, tmp_path, monkeypatch):
    subject.model.register_forward_hook(lambda module, images, logits: logits)
    with workers.ahead(session, [(planned(session, ()), subject)], StoredJournal(tmp_path)):
        pass
    (note,) = session.observer.notes
    assert note.startswith("fewer processes than --jobs 2 made this evaluation: the network cannot be sent")


@pytest.mark.parametrize("given", [0, True, "two", 1.5])
def test_a_wrong_number_of_processes_is_a_usage_error(registry, tiny, monkeypatch, given):
    with pytest.raises(UsageError, match=r"jobs=.* is no number of processes; give 1 or more"):
        open_session(registry, str(tiny), jobs=given)
    monkeypatch.setenv("ROBFLAT_BENCH_JOBS", "many")
    with pytest.raises(UsageError, match="ROBFLAT_BENCH_JOBS='many' is no number of processes"):
        open_session(registry, str(tiny), jobs=None)


def test_compiled_networks_are_evaluated_by_one_process(registry, tiny):
    with pytest.raises(UsageError, match="--jobs 2: one process evaluates compiled networks"):
        open_session(registry, str(tiny), compile=True, jobs=2)


def test_a_worker_that_has_ended_leaves_no_stream_open():
    worker = workers._Worker(b"", 0.0, Observer())
    while worker.process is None:
        time.sleep(0.01)
    worker.end()
    worker.join(60)
    assert worker.process.stdin.closed
    assert worker.process.stdout.closed
