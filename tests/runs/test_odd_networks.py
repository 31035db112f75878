"""Odd but valid networks: a run evaluates the weights that it wrote."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.commands import promised
from helpers.networks import with_networks
from torch.nn import functional as F

from robflat_bench.config.protocol import Attacked, Measured, load
from robflat_bench.core import Interrupted, Observer, UsageError
from robflat_bench.evaluation.model import build_model, find_model, load_model
from robflat_bench.evaluation.options import ModelOptions
from robflat_bench.evaluation.plan import Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.numerics.weights import digest, read_weights, write_weights
from robflat_bench.records.store import Store
from robflat_bench.registry.components import compose
from robflat_bench.runs.evaluation import evaluate_model
from robflat_bench.runs.run import PlannedRun, execute
from robflat_bench.training import loop

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def bench(tiny, tmp_path):
    """`bench("derived", "at+ema")`: a run of this network and method."""
    registry = with_networks()

    def make(backbone: str, method: str, *settings: str, keep_every: int = 0, store: str = "store") -> PlannedRun:
        protocol = load(registry, str(tiny), (f"fixed.backbone={backbone}", *settings))
        session = Session(registry, protocol, None, Store(tmp_path / store), "cpu", keep_every=keep_every)
        return PlannedRun(session, compose(registry, method), 1)

    return make


@pytest.mark.parametrize("backbone", ["derived", "derivedlazily"])
def test_a_derived_weight_is_that_of_the_evaluated_checkpoint(bench, backbone, monkeypatch):
    """The network normalises its weight, and keeps the result in eval mode."""
    checks = iter([(0.1, 0.1, 0.1), (0.2, 0.2, 0.2)])  # the first epoch is the best: the checkpoints differ
    monkeypatch.setattr(loop, "heldout_check", lambda inputs: next(checks))
    run = bench(backbone, "at")
    execute(run)
    written = [read_weights(run.folder.weights(name))["layer.weight"] for name in ("initial", "best", "last")]
    assert all(not torch.equal(one, other) for one, other in pairwise(written)), "it learns"
    test = run.session.examples("test")
    with np.load(run.folder.outcomes_file) as outcomes:
        for checkpoint in ("best", "last"):
            weights = read_weights(run.folder.weights(checkpoint))
            logits = F.linear(test.x.flatten(1), F.normalize(weights["layer.weight"]), weights["layer.bias"])
            losses = F.cross_entropy(logits.double(), test.y, reduction="none")
            np.testing.assert_allclose(outcomes[f"{checkpoint}/test/clean/loss"], losses, rtol=1e-6)


@pytest.mark.parametrize("backbone", ["derived", "derivedlazily"])
def test_a_live_network_is_evaluated_with_what_its_own_weights_give(bench, backbone, tmp_path):
    """It has loaded other weights in eval mode, and uses what it derived from the first ones."""
    session = bench(backbone, "at").session
    plan = Plan((Attacked(attack="fgsm", test=20),), ())
    live, file = build_model(session, 1).eval(), tmp_path / "weights.safetensors"
    live(torch.zeros(1, 1, 8, 8))
    write_weights(file, build_model(session, 2).state_dict())
    live.load_state_dict(read_weights(file))
    (one,), (other,) = (evaluate_model(session, model, plan)[0].results.values() for model in (live, str(file)))
    assert one.weights == other.weights
    assert one.robust_loss == other.robust_loss


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_a_network_that_holds_computed_weights_is_copied_with_their_values(bench, tmp_path):
    session = bench("old-weight-norm", "at").session
    model = build_model(session, 1).eval()
    model(torch.zeros(2, 1, 8, 8))
    plan = Plan((Attacked(attack="fgsm", test=20),), (Measured(measure="average-case(draws=2, steps=2)", test=20),))
    live, _ = evaluate_model(session, model, plan)
    with torch.no_grad():
        model(torch.zeros(2, 1, 8, 8))
    leaf, _ = evaluate_model(replace(session, store=Store(tmp_path)), copy.deepcopy(model), plan)
    (one,), (other,) = live.results.values(), leaf.results.values()
    assert one.robust_loss == other.robust_loss
    assert [found.value for found in one.measures.values()] == [found.value for found in other.measures.values()]


class Uncopied(torch.nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("a socket")


def test_a_network_that_cannot_be_copied_is_refused_in_one_line(bench):
    session = bench("derived", "at").session
    with pytest.raises(UsageError, match=r"Uncopied cannot be copied \(RuntimeError: a socket\); pass a module"):
        evaluate_model(session, Uncopied(), Plan((), ()))


@pytest.mark.parametrize("backbone", ["derived", "derivedlazily"])
def test_a_held_out_check_sees_the_weights_of_its_epoch(bench, backbone):
    run = bench(backbone, "at+ema", "fixed.threat.epsilon=1e-9", keep_every=1)  # the attack moves nothing
    record = execute(run)
    held = run.session.examples("heldout")
    for row in record.history:
        weights = read_weights(run.folder.weights(f"epoch-{row.epoch:04d}"))
        logits = F.linear(held.x.flatten(1), F.normalize(weights["layer.weight"]), weights["layer.bias"])
        assert row.heldout_robust_loss == pytest.approx(float(F.cross_entropy(logits.double(), held.y)), rel=1e-5)


class StopsAtUnit(Observer):
    """Interrupts the evaluation after so many units of work."""

    def __init__(self, units: int) -> None:
        self.units = units

    def unit_ends(self) -> None:
        self.units -= 1
        if not self.units:
            raise Interrupted


def test_a_random_network_is_evaluated_the_same_again_and_after_an_interruption(bench, monkeypatch):
    """Its draws are keyed by stage and unit."""
    whole = execute(bench("noisy", "at"))
    assert whole.results["last"].flags.random_forward
    again = bench("noisy", "at", store="again")
    for units in (2, 3):
        torch.manual_seed(units)
        stopped = replace(again, session=replace(again.session, observer=StopsAtUnit(units)))
        with pytest.raises(Interrupted):
            execute(stopped)
    resumed = execute(again)
    assert promised(resumed.model_dump(mode="json")) == promised(whole.model_dump(mode="json"))


def test_checkpoints_of_tied_weights_are_evaluated_as_saved(bench):
    run = bench("tied", "at+ema+swa", keep_every=1)
    record = execute(run)
    for name in ("initial", "epoch-0000", "epoch-0001", "best", "last"):
        found = find_model(run.session, str(run.folder.path), ModelOptions(checkpoint=name))
        model = load_model(run.session, found).eval()
        saved = read_weights(run.folder.weights(name))
        assert torch.equal(saved["first.weight"], saved["second.weight"])
        assert torch.equal(saved["norm.running_mean"], saved["again.running_mean"])
        assert digest(model.state_dict()) == digest(saved)
        assert model.first.weight is model.second.weight
    assert record.results["last"].weights == digest(read_weights(run.folder.weights("last")))
