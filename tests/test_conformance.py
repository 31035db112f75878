"""Every component passes the kit, and the kit bites: a component broken in one way fails exactly that check."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import pytest
import torch
from pydantic import ConfigDict

from robflat_bench.base import (
    Attack,
    AttackInfo,
    LauncherInfo,
    Measure,
    MeasureInfo,
    Measurement,
    MethodInfo,
    ModifierInfo,
    Params,
)
from robflat_bench.launchers.local import Local
from robflat_bench.method import Method, Modifier
from robflat_bench.plugins import Plugins, Provider
from robflat_bench.registry import KINDS, Registry, discover
from robflat_bench.testing import CHECKS, run_checks

BUILT_IN = [(kind, name) for kind in KINDS for name in discover().names(kind)]


@pytest.mark.parametrize(("kind", "name"), BUILT_IN, ids=[f"{kind}:{name}" for kind, name in BUILT_IN])
def test_component_passes_every_check(registry, kind, name):
    results = run_checks(registry, kind, name)
    assert len(results) == len(CHECKS)
    assert not [result for result in results if result.outcome == "failed"]
    skipped = [result for result in results if result.outcome == "skipped"]
    assert not skipped or (kind, name) == ("dataset", "cifar10"), "only a dataset that is not here may be skipped"


# ---------------------------------------------------------------------------------------------------------
# The broken zoo
# ---------------------------------------------------------------------------------------------------------


class Loose(Params):
    model_config = ConfigDict(frozen=False)
    size: float = 1.0


class Honest(Method):
    def attack(self, model, batch, inner):
        return batch.x

    def loss(self, model, batch, x_adv):
        return torch.nn.functional.cross_entropy(model(x_adv), batch.y, reduction="none")


class BlindToHead(Honest):
    def loss(self, model, batch, x_adv):
        return model(x_adv).detach().sum(1) + sum(p.sum() for p in list(model.parameters())[:-2])


class OverwritesTargets(Honest):
    def loss(self, model, batch, x_adv):
        loss = super().loss(model, batch, x_adv)
        batch.target.zero_()
        return loss


class DrawsGlobally(Honest):
    """Random, and puts the global state back: only its result gives it away."""

    def loss(self, model, batch, x_adv):
        with torch.random.fork_rng():
            return super().loss(model, batch, x_adv) * (1 + torch.rand(()))


class TooFar(Attack):
    def perturb(self, model, examples, seed):
        return (examples.x + 2 * self.threat.epsilon).clamp(0, 1)


class LeavesEvalMode(Attack):
    def perturb(self, model, examples, seed):
        next(model.children()).train()
        return examples.x


class MovesWeights(Measure):
    def measure(self, model, examples, workspace):
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return Measurement(0.0, None, len(examples))


class NotANumber(Measure):
    def measure(self, model, examples, workspace):
        return Measurement(float("nan"), None, len(examples))


class AllIsWell(Local):
    def wait(self, seconds):
        return dict.fromkeys(super().wait(seconds), 0)


class Undeclared(Modifier):
    """Takes hold of a second joint that its description does not name."""

    def after_step(self, model):
        pass

    def target(self, batch):
        return batch.target


class Misfit(Modifier):
    def model(self, model, weights, moment):
        return {name: tensor[None] for name, tensor in weights.items()}


class Explodes(Modifier):
    def after_step(self, model):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.inf)


class TooFarInTime(Honest):
    """Within the radius at first, beyond it once its backward pass has moved the images."""

    length = 0.05

    def attack(self, model, batch, inner):
        x_adv = (batch.x + self.length).clamp(0, 1).requires_grad_()
        x_adv.register_hook(lambda gradient: setattr(self, "length", 0.5))
        return x_adv


def here(name: str) -> str:
    return f"zoo:{name}"


ZOO = [
    (MethodInfo("no-title", "honest, but titled wrongly", here("Honest"), title="{{size}}"), "check_description"),
    (MethodInfo("not-a-method", "an attack as a method", here("function")), "check_description"),
    (MethodInfo("loose", "parameters that change", here("Honest"), Loose), "check_parameters"),
    (MethodInfo("blind", "its loss does not reach the head", here("BlindToHead")), "check_contract"),
    (MethodInfo("overwrites", "writes into the batch", here("OverwritesTargets")), "check_leaves_no_trace"),
    (MethodInfo("random", "draws from the global state", here("DrawsGlobally")), "check_same_inputs_same_result"),
    (MethodInfo("too-far-in-time", "drifts out of the ball", here("TooFarInTime")), "check_contract"),
    (ModifierInfo("undeclared", "a joint too many", here("Undeclared"), joints=("after_step",)), "check_contract"),
    (ModifierInfo("misfit", "weights of another shape", here("Misfit"), joints=("model",)), "check_contract"),
    (ModifierInfo("explodes", "infinite weights", here("Explodes"), joints=("after_step",)), "check_contract"),
    (AttackInfo("too-far", "twice the radius", here("TooFar")), "check_contract"),
    (AttackInfo("mode", "leaves a module in train mode", here("LeavesEvalMode")), "check_leaves_no_trace"),
    (MeasureInfo("moves", "moves the weights", here("MovesWeights")), "check_leaves_no_trace"),
    (LauncherInfo("all-is-well", "reports no failure", here("AllIsWell")), "check_contract"),
    (MeasureInfo("nan", "is not a number", here("NotANumber")), "check_contract"),
]


def function(params):
    """Behaves like a method, but is no class."""
    return Honest(params)


@pytest.fixture
def zoo_registry(registry) -> Registry:
    plugins: Plugins = discover().plugins
    module = ModuleType("zoo")
    for name, value in globals().items():
        if name in {info.factory.partition(":")[2] for info, _ in ZOO}:
            setattr(module, name, value)
    # A one-file plugin's factories are attributes of its module, wherever that came from.
    provider = Provider("zoo.py", "file", "zoo", module)
    extended = Registry(plugins)
    for info, _ in ZOO:
        extended.add(dataclasses.replace(info), provider)
    return extended


@pytest.mark.parametrize(("info", "bitten"), ZOO, ids=[info.name for info, _ in ZOO])
def test_broken_component_fails_exactly_its_check(zoo_registry, info, bitten):
    results = run_checks(zoo_registry, info.kind, info.name)
    assert [result.check for result in results if result.outcome == "failed"] == [bitten]
