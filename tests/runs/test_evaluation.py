"""Evaluating a model after the fact: live modules, files of weights, and answers from finished evaluations."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from robflat_bench.config.protocol import Attacked, load
from robflat_bench.core import Attack, Observer, UsageError
from robflat_bench.evaluation.model import find_model, load_model
from robflat_bench.evaluation.plan import Plan, choose_plan
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.weights import digest, read_weights
from robflat_bench.records.record import EvaluationRecord
from robflat_bench.records.store import Store, read_outcomes
from robflat_bench.runs.evaluation import evaluate_model

pytestmark = pytest.mark.usefixtures("one_thread")


class Counting(Observer):
    """Counts the evaluations that begin."""

    evaluations = 0

    def evaluation_starts(self, stages) -> None:
        self.evaluations += 1


@pytest.fixture
def session(registry, tiny, tmp_path) -> Session:
    return Session(registry, load(registry, str(tiny)), None, Store(tmp_path / "store"), "cpu", Counting())


@pytest.fixture
def plan(session) -> Plan:
    return choose_plan(session.registry, session.fixed, "last", ("fgsm",), ("average-case(draws=2, steps=2)",), 20)


def measured(record: EvaluationRecord) -> dict:
    """The results without the seconds that they took."""
    (result,) = record.model_dump(mode="json")["results"].values()
    for measure in result["measures"].values():
        del measure["seconds"]
    return {name: value for name, value in result.items() if name != "seconds"}


def test_a_live_module_gives_the_results_of_its_file(session, plan, finished):
    file = str(finished.folder / "checkpoints" / "last.safetensors")
    module = load_model(session, find_model(session, file)).train()
    live, path = evaluate_model(session, module, plan)
    stored, other = evaluate_model(session, file, plan)
    assert measured(live) == measured(stored)
    assert path.parent == other.parent
    assert path.parent.parent.name == live.results[live.model].weights[:16]
    assert path.parent.parent.parent.name == "external"
    arrays = [read_outcomes(record, where.with_suffix(".npz")) for record, where in ((live, path), (stored, other))]
    assert {name.partition("/")[2] for name in arrays[0]} == {name.partition("/")[2] for name in arrays[1]}
    assert all(
        (array == arrays[1][name.replace(f"{live.model}/", "last/", 1)]).all() for name, array in arrays[0].items()
    )


def test_records_count_the_tensors_that_move_and_those_that_stay(session, finished):
    texts = ("average-case(draws=2, steps=2)", 'average-case(draws=2, steps=2, exclude=["*head*"])', "margin")
    plan = choose_plan(session.registry, session.fixed, "last", ("fgsm",), texts, 20)
    file = str(finished.folder / "checkpoints" / "last.safetensors")
    record, _ = evaluate_model(session, file, plan)
    module = load_model(session, find_model(session, file))
    sizes = {name: p.numel() for name, p in module.named_parameters() if ".norm" not in name and p.any()}
    every, few, none = (found.details for found in record.results[record.model].measures.values())
    total = sum(p.numel() for p in module.parameters())
    assert every["tensors_moved"] == len(sizes)
    assert (every["weights_moved"], every["weights_left"]) == (sum(sizes.values()), total - sum(sizes.values()))
    assert every["tensors_left"] == len(list(module.parameters())) - len(sizes)
    assert few["tensors_moved"] == len([name for name in sizes if "head" not in name]) < len(sizes)
    assert not [name for name in none if "moved" in name]


def test_a_live_module_stays_as_its_owner_left_it(session, plan, finished):
    """Whatever its precision and mode: a copy is evaluated, in the protocol's precision and in eval mode."""
    module = load_model(session, find_model(session, str(finished.folder / "checkpoints" / "last.safetensors")))
    module = module.double().train()
    before = digest(module.state_dict())
    record, _ = evaluate_model(session, module, plan)
    assert digest(module.state_dict()) == before
    assert all(part.training for part in module.modules())
    expected = digest(read_weights(finished.folder / "checkpoints" / "last.safetensors"))
    assert record.results[record.model].weights == expected


class Scaled(nn.Module):
    """The gain is no weight: two of them have equal weights and classify differently."""

    def __init__(self, network: nn.Module, gain: float) -> None:
        super().__init__()
        self.network, self.gain = network, gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * self.network(x)


def test_modules_with_equal_weights_and_other_code_are_evaluated_apart(session, finished):
    network = load_model(session, find_model(session, str(finished.folder / "checkpoints" / "last.safetensors")))
    plan = Plan((Attacked(attack="fgsm", test=20),), ())
    one, _ = evaluate_model(session, Scaled(network, 1.0), plan)
    again, _ = evaluate_model(session, Scaled(network, 1.0), plan)
    other, _ = evaluate_model(session, Scaled(network, 0.1), plan)
    assert again == one
    assert session.observer.evaluations == 2, "the same module answers from its file"
    assert one.results["Scaled"].weights == other.results["Scaled"].weights
    assert one.results["Scaled"].robust_loss != other.results["Scaled"].robust_loss
    assert one.key != other.key


def test_a_runs_evaluation_is_added_to_its_folder(session, plan, finished_copy):
    record, path = evaluate_model(session, str(finished_copy.folder), plan)
    assert path.parent.parent == finished_copy.folder
    assert json.loads(path.read_text())["key"] == record.key
    recorded = finished_copy.record["results"]["last"]
    assert record.results["last"].epoch == recorded["epoch"]
    assert record.results["last"].weights == recorded["weights"]


def test_a_module_for_other_classes_is_refused(session, plan):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(
        UsageError, match=r"Sequential makes \(30, 7\) of .* not logits \(30, 10\); pass a network for digits"
    ):
        evaluate_model(session, network, plan)
    assert not (session.store.root / "tiny").exists()


@pytest.mark.parametrize("random", [False, True])
def test_only_the_error_of_further_attacks_is_read_where_no_output_is_random(session, finished, monkeypatch, random):
    """The first attack's losses are in the record, on test and on training images."""
    found, run = [], Attack.run

    def noted(attack, model, examples, workspace):
        found.append((type(attack).__name__, len(examples), workspace.errors_only))
        return run(attack, model, examples, workspace)

    monkeypatch.setattr(Attack, "run", noted)
    module = load_model(session, find_model(session, str(finished.folder / "checkpoints" / "last.safetensors")))
    if random:
        module.register_forward_hook(lambda module, images, logits: logits + torch.randn_like(logits))
    plan = choose_plan(session.registry, session.fixed, "last", ("fgsm", "pgd(steps=1)"), (), 10, 5)
    evaluate_model(session, module, plan)
    others = [("PGD", 10, not random), ("PGD", 5, not random)]
    assert found == [("FGSM", 10, False), ("FGSM", 5, False), *others]
