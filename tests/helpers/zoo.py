"""Components for the conformance kit: honest ones pass every check, and each broken one fails exactly one check.

`HONEST`, `ALSO_HONEST` and `BROKEN` are the catalogue.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import ConfigDict, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, cross_entropy
from robflat_bench.backbones.parts import construction
from robflat_bench.core import (
    Attack,
    AttackInfo,
    BackboneInfo,
    Dataset,
    DatasetInfo,
    Exit,
    Info,
    LauncherInfo,
    Measure,
    MeasureInfo,
    Measurement,
    Method,
    MethodInfo,
    Modifier,
    ModifierInfo,
    Params,
    Passes,
    Pool,
    Source,
)
from robflat_bench.core.randomness import per_example_uniform
from robflat_bench.launchers.local import Local


def draw() -> float:
    """A number from the global random state, which is restored: only the result shows that it was used."""
    with torch.random.fork_rng(devices=[]):
        return float(torch.rand(()))


# ---------------------------------------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------------------------------------


class HonestMethod(Method):
    def attack(self, model, batch, inner):
        return batch.x

    def loss(self, model, batch, x_adv):
        return F.cross_entropy(model(x_adv), batch.target, reduction="none")


class OneLossForAll(HonestMethod):
    def loss(self, model, batch, x_adv):
        return super().loss(model, batch, x_adv).mean()


class BlindToHead(HonestMethod):
    def loss(self, model, batch, x_adv):
        head = list(model.parameters())[-2:]
        for parameter in head:
            parameter.requires_grad_(False)
        loss = super().loss(model, batch, x_adv)
        for parameter in head:
            parameter.requires_grad_(True)
        return loss


class MovesImagesTooFar(HonestMethod):
    def attack(self, model, batch, inner):
        return (batch.x + 2 * inner.epsilon).clamp(0, 1)


class MovesImagesTooFarInTime(HonestMethod):
    """Its images lie within the radius at first, and beyond it after its backward pass."""

    def setup(self, training):
        self.length = torch.tensor(0.05)

    def attack(self, model, batch, inner):
        x_adv = (batch.x + self.length).clamp(0, 1).requires_grad_()
        x_adv.register_hook(lambda gradient: self.load_state_dict({"length": torch.tensor(0.5)}))
        return x_adv

    def state_dict(self):
        return {"length": self.length}

    def load_state_dict(self, state):
        self.length = state["length"]


class LeavesTheBox(HonestMethod):
    def attack(self, model, batch, inner):
        return batch.x - inner.epsilon / 2


class OverwritesLabels(HonestMethod):
    def loss(self, model, batch, x_adv):
        loss = super().loss(model, batch, x_adv)
        batch.y.zero_()
        return loss


class LeavesEvalMode(HonestMethod):
    def attack(self, model, batch, inner):
        next(model.children()).eval()
        return batch.x


class MovesGlobalState(HonestMethod):
    def attack(self, model, batch, inner):
        torch.rand(1)
        return batch.x


class DivergesLater(HonestMethod):
    def loss(self, model, batch, x_adv):
        return super().loss(model, batch, x_adv) * (torch.inf if batch.moment.epoch else 1)


class Ascends(HonestMethod):
    def loss(self, model, batch, x_adv):
        loss = super().loss(model, batch, x_adv)
        return 2 * loss.detach() - loss


class DrawsWhenBuilt(HonestMethod):
    def __init__(self, params):
        super().__init__(params)
        self.factor = 1 + draw()

    def loss(self, model, batch, x_adv):
        return super().loss(model, batch, x_adv) * self.factor


class LearnsItsOwnImages(HonestMethod):
    def setup(self, training):
        self.images = next(training.images())

    def loss(self, model, batch, x_adv):
        images = self.images[: len(batch.x)]
        return F.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64), reduction="none")


class Forgets(HonestMethod):
    """Its state is not in `state_dict`."""

    calls = 0

    def loss(self, model, batch, x_adv):
        self.calls += 1
        return super().loss(model, batch, x_adv) * (1 + self.calls / 100)


class RemembersExamples(HonestMethod):
    """It counts how often each example was seen, in the process that saw it."""

    saved = ("seen",)

    def setup(self, training):
        self.seen = torch.zeros(training.count)

    def loss(self, model, batch, x_adv):
        self.seen[batch.index] += 1
        return super().loss(model, batch, x_adv) * (1 + self.seen[batch.index] / 100)


class LeavesABuffer(HonestMethod):
    def setup(self, training):
        training.model.register_buffer("souvenir", torch.zeros(1))


# ---------------------------------------------------------------------------------------------------------
# Modifiers
# ---------------------------------------------------------------------------------------------------------


class HonestModifier(Modifier):
    """It moves targets halfway to equal shares."""

    def target(self, batch):
        return self.softened(batch, 0.5)

    def softened(self, batch, weight: float) -> Tensor:
        return weight * batch.target + (1 - weight) / batch.target.shape[1]


class Undeclared(HonestModifier):
    def after_step(self, model):
        pass


class FloatImages(Modifier):
    def augment(self, images, source):
        return images.float()


class DoublesTargets(Modifier):
    def target(self, batch):
        return 2 * batch.target


class AttacksTooFar(Modifier):
    def attack(self, attack, model, batch, inner):
        return (attack(model, batch, inner) + 2 * inner.epsilon).clamp(0, 1)


class AttacksOutOfTheBox(Modifier):
    def attack(self, attack, model, batch, inner):
        attack(model, batch, inner)
        return batch.x - inner.epsilon / 2


class HalvesWeights(HonestModifier):
    def target(self, batch):
        batch.weight.mul_(0.5)
        return super().target(batch)


class AttacksAndLeavesEvalMode(Modifier):
    def attack(self, attack, model, batch, inner):
        next(model.children()).eval()
        return attack(model, batch, inner)


class ModifierMovesGlobalState(HonestModifier):
    def target(self, batch):
        torch.rand(1)
        return super().target(batch)


class Explodes(Modifier):
    def after_step(self, model):
        with torch.no_grad():
            next(model.parameters()).fill_(torch.inf)


class Misfit(Modifier):
    def model(self, model, weights, moment):
        return {name: tensor[None] for name, tensor in weights.items()}


class MovesWhatItAverages(Modifier):
    def model(self, model, weights, moment):
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        return weights


class ModifierDrawsWhenBuilt(HonestModifier):
    def __init__(self, params):
        super().__init__(params)
        self.share = draw()

    def target(self, batch):
        return self.softened(batch, self.share)


class TrainsOnItsOwnImages(Modifier):
    def setup(self, training):
        self.images = next(training.images())

    def batch(self, batch):
        y = torch.zeros_like(batch.y)
        return replace(batch, x=self.images[: len(y)], y=y, target=F.one_hot(y, 10).float())

    def attack(self, attack, model, batch, inner):
        attack(model, batch, inner)
        return batch.x


class ModifierForgets(HonestModifier):
    calls = 0

    def target(self, batch):
        self.calls += 1
        return self.softened(batch, 1 / self.calls)


class AveragesTargets(HonestModifier):
    """It moves targets halfway to their average so far, in this process."""

    saved = ("average",)

    def setup(self, training):
        self.average = torch.full((training.shape.classes,), 1 / training.shape.classes)

    def target(self, batch):
        self.average.lerp_(batch.target.mean(0), 0.1)
        return (batch.target + self.average) / 2


class ModifierLeavesABuffer(HonestModifier):
    def setup(self, training):
        training.model.register_buffer("souvenir", torch.zeros(1))


# ---------------------------------------------------------------------------------------------------------
# Attacks
# ---------------------------------------------------------------------------------------------------------


class HonestAttack(Attack):
    """A step along the sign of the gradient, of a random length in each pixel, for most of the radius."""

    direction = 1.0

    def perturb(self, model, examples, seed):
        with attacked(model):
            x = examples.x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy(examples.y)(model(x)).sum(), x)
        length = 0.9 + 0.1 * per_example_uniform(examples.x, examples.index, seed, "zoo")
        return self.moved(examples.x, self.direction * self.threat.epsilon * length * gradient.sign())

    def moved(self, x: Tensor, step: Tensor) -> Tensor:
        return (x + step).clamp(0, 1)


class TooFar(HonestAttack):
    direction = 2.0


class OutOfTheBox(HonestAttack):
    def moved(self, x, step):
        return x + step


class Doubles(HonestAttack):
    def perturb(self, model, examples, seed):
        return super().perturb(model, examples, seed).double()


class LeavesTrainMode(HonestAttack):
    def perturb(self, model, examples, seed):
        x_adv = super().perturb(model, examples, seed)
        list(model.modules())[-1].train()
        return x_adv


class ForgetsIndices(HonestAttack):
    def run(self, model, examples, workspace):
        x_adv = super().run(model, examples, workspace)
        examples.index.zero_()
        return x_adv


class AttackMovesGlobalState(HonestAttack):
    def perturb(self, model, examples, seed):
        torch.rand(1)
        return super().perturb(model, examples, seed)


class AttackDrawsGlobally(HonestAttack):
    def perturb(self, model, examples, seed):
        self.direction = 1 - draw() / 10
        return super().perturb(model, examples, seed)


class DrawsByPosition(HonestAttack):
    def perturb(self, model, examples, seed):
        return super().perturb(model, replace(examples, index=torch.arange(len(examples))), seed)


class IgnoresTheSeed(HonestAttack):
    def perturb(self, model, examples, seed):
        return super().perturb(model, examples, 0)


class Helps(HonestAttack):
    direction = -0.05


# ---------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------


class HonestMeasure(Measure):
    """The mean loss on clean images."""

    def measure(self, model, examples, workspace):
        with torch.no_grad():
            losses = F.cross_entropy(model(examples.x), examples.y, reduction="none").double()
        return Measurement(float(losses.mean()), 0.0, len(examples))


class NotANumber(HonestMeasure):
    def measure(self, model, examples, workspace):
        return replace(super().measure(model, examples, workspace), details={"part": float("nan")})


class NegativeError(HonestMeasure):
    def measure(self, model, examples, workspace):
        return replace(super().measure(model, examples, workspace), standard_error=-1.0)


class KeepsHalf(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        return replace(found, arrays={"per_example": np.full(len(examples) // 2, found.value)})


class KeepsOther(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        return replace(found, arrays={"per_example": np.full(len(examples), found.value + 1)})


class KeepsInfinity(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        return replace(found, arrays={"per_example": np.full(len(examples), np.inf)})


class MovesWeights(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return found


class ForgetsLabels(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        examples.y.zero_()
        return found


class MeasureMovesGlobalState(HonestMeasure):
    def measure(self, model, examples, workspace):
        torch.rand(1)
        return super().measure(model, examples, workspace)


class MeasureDrawsGlobally(HonestMeasure):
    def measure(self, model, examples, workspace):
        found = super().measure(model, examples, workspace)
        return replace(found, value=found.value + draw() / 1e9)


class WeightNorm(HonestMeasure):
    """Its value changes under every rescaling."""

    def measure(self, model, examples, workspace):
        norm = sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
        return replace(super().measure(model, examples, workspace), value=norm)


# ---------------------------------------------------------------------------------------------------------
# Backbones
# ---------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """One linear layer on pixels."""

    def __init__(self, shape, classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(shape.channels * shape.size**2, classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


def honest_backbone(params, shape, activation):
    with construction():
        return Linear(shape)


def eleven_classes(params, shape, activation):
    with construction():
        return Linear(shape, 11)


def without_construction(params, shape, activation):
    return Linear(shape)


class LooksAround(Linear):
    def forward(self, x):
        logits = super().forward(x)
        return logits + logits.mean(0)


def looks_around(params, shape, activation):
    with construction():
        return LooksAround(shape)


class Idle(Linear):
    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.unused = nn.Linear(2, 2)


def idle(params, shape, activation):
    with construction():
        return Idle(shape)


class Biased(Linear):
    """It has a parameter that `initialize` does not know."""

    def __init__(self, shape, offset: Tensor) -> None:
        super().__init__(shape)
        self.offset = nn.Parameter(offset)

    def forward(self, x):
        return super().forward(x) + self.offset


def drawn_biased(params, shape, activation):
    with construction():
        return Biased(shape, torch.rand(10))


def unkeyed_biased(params, shape, activation):
    with construction():
        return Biased(shape, torch.from_numpy(np.random.default_rng().random(10, np.float32)))


def equally_biased(params, shape, activation):
    with construction():
        return Biased(shape, torch.rand(10, generator=torch.Generator().manual_seed(0)))


class Counts(Linear):
    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def counts(params, shape, activation):
    with construction():
        return Counts(shape)


class Numbered(Linear):
    """In eval mode it multiplies its logits by a number that is neither a weight nor a buffer."""

    numbers = itertools.count(1)

    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.scale = next(self.numbers)

    def forward(self, x):
        return super().forward(x) * (1 if self.training else self.scale)


def numbered(params, shape, activation):
    with construction():
        return Numbered(shape)


class Derived(Linear):
    """In eval mode it uses a weight that it derived when it entered that mode."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.doubled = None if mode else 2 * self.layer.weight.detach()
        return self

    def forward(self, x):
        weight = 2 * self.layer.weight if self.doubled is None else self.doubled
        return F.linear(x.flatten(1), weight, self.layer.bias)


def derived(params, shape, activation):
    with construction():
        return Derived(shape)


class Dropping(Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


def dropping(params, shape, activation):
    with construction():
        return Dropping(shape)


class DropsByItself(Linear):
    """Its dropout has a generator of its own, which no saved state holds."""

    def __init__(self, shape) -> None:
        super().__init__(shape)
        self.source = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x * torch.rand(x.shape, generator=self.source) if self.training else x)


def drops_by_itself(params, shape, activation):
    with construction():
        return DropsByItself(shape)


# ---------------------------------------------------------------------------------------------------------
# Datasets
# ---------------------------------------------------------------------------------------------------------


class HonestDataset(Dataset):
    """Four dark images."""

    def sources(self, root, download=True):
        return [self.load]

    def load(self) -> Source:
        return Source({"train": self.pool()}, 2, "the zoo")

    def pool(self) -> Pool:
        return Pool(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1], np.uint8), np.arange(4))

    def canonical(self, source):
        pool, own = source.pools["train"], self.pool()
        return pool.x.tobytes() + pool.y.tobytes() == own.x.tobytes() + own.y.tobytes()


class Oblong(HonestDataset):
    def pool(self):
        return replace(super().pool(), x=np.zeros((4, 8, 6, 1), np.uint8))


class LabelBeyond(HonestDataset):
    def pool(self):
        return replace(super().pool(), y=np.array([0, 1, 2, 1], np.uint8))


class OnePosition(HonestDataset):
    def pool(self):
        return replace(super().pool(), index=np.zeros(4, np.int64))


class AlwaysCanonical(HonestDataset):
    def canonical(self, source):
        return True


class Fresh(HonestDataset):
    numbers = itertools.count(1)

    def pool(self):
        return replace(super().pool(), x=np.full((4, 8, 8, 1), next(self.numbers) % 256, np.uint8))


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


class HonestLauncher(Local):
    pass


class Polls(Local):
    """Its `wait` returns at once, which is allowed."""

    def wait(self, seconds):
        return super().wait(0)


class HidesFailures(Local):
    def wait(self, seconds):
        return {name: Exit(0) if exit.code == 3 else exit for name, exit in super().wait(seconds).items()}


class OfApi13(Local):
    """A launcher of API 1.3: it returns no id, and reports the codes alone."""

    outlives = False

    def start(self, job):
        super().start(job)

    def wait(self, seconds):
        return {name: exit.code for name, exit in super().wait(seconds).items()}


class ReportsOthers(Local):
    def wait(self, seconds):
        return {name: SimpleNamespace(code=exit.code) for name, exit in super().wait(seconds).items()}


class StartsTwice(Local):
    def start(self, job):
        if job.name == "counted":
            subprocess.run(job.command)
        return super().start(job)


class Repeats(Local):
    """While nothing runs, it reports the last end again."""

    last: ClassVar[dict] = {}

    def wait(self, seconds):
        ended = super().wait(seconds)
        if not ended and not self._running:
            return self.last
        self.last = ended
        return ended


class LosesLogs(Local):
    def output(self, log):
        return open("/dev/null", "wb")


class OverwritesLogs(Local):
    def output(self, log):
        return log.open("wb")


class Kills(Local):
    def interrupt(self):
        for process in self._running.values():
            os.kill(process.pid, 9)


class Patient(Local):
    def wait(self, seconds):
        return super().wait(8 if seconds and self._running else 0)


class Mumbles(Local):
    def standings(self):
        return dict.fromkeys(self._running, "busy")


class Remembers(Local):
    def standings(self):
        self.seen = {**getattr(self, "seen", {}), **super().standings()}
        return self.seen


class OneAtATime(Local):
    """A second job starts when the first has ended."""

    late: ClassVar[dict] = {}

    def start(self, job):
        if self._running:
            self.late = super().wait(60)
        return super().start(job)

    def wait(self, seconds):
        late, self.late = self.late, {}
        return late or super().wait(seconds)


class ForgetsIds(Local):
    def adopt(self, job, known):
        return not known and super().adopt(job, known)


class KnowsNoNames(Local):
    def adopt(self, job, known):
        return bool(known) and super().adopt(job, known)


class Clings(Local):
    def adopt(self, job, known):
        return super().adopt(job, known) or True


# ---------------------------------------------------------------------------------------------------------
# Parameters, broken in ways that are the same for every kind
# ---------------------------------------------------------------------------------------------------------


class Sized(Params):
    size: float = 1.0


class Loose(Sized):
    """It validates assignments, but is not frozen."""

    model_config = ConfigDict(frozen=False, validate_assignment=True)


class Lenient(Sized):
    model_config = ConfigDict(extra="ignore")


class Drifts(Sized):
    @field_validator("size")
    @classmethod
    def _doubled(cls, value: float) -> float:
        return 2 * value


# ---------------------------------------------------------------------------------------------------------
# The catalogue
# ---------------------------------------------------------------------------------------------------------

HONEST: list[Info] = [
    MethodInfo("honest-method", "cross-entropy", "zoo:HonestMethod", Sized, sharded=True),
    ModifierInfo("honest-modifier", "softened targets", "zoo:HonestModifier", Sized, joints=("target",), sharded=True),
    AttackInfo("honest-attack", "one step", "zoo:HonestAttack", Sized, passes=Passes("1", "1")),
    MeasureInfo(
        "honest-measure", "the loss", "zoo:HonestMeasure", Sized, passes={"": Passes("1")}, powers={"layers": 0}
    ),
    BackboneInfo("honest-backbone", "one layer", "zoo:honest_backbone", Sized),
    DatasetInfo("honest-dataset", "four images", "zoo:HonestDataset", Sized),
    LauncherInfo("honest-launcher", "this machine", "zoo:HonestLauncher", Sized),
]
ALSO_HONEST: list[Info] = [
    MethodInfo(
        "exempt",
        "declares what it leaves",
        "zoo:BlindToHead",
        untrained={"network.head.*": "a fixed classifier"},
        sharded=True,
    ),
    MethodInfo("frugal", "an upper bound", "zoo:HonestMethod", loss=Passes("3", "2", at_most=True), sharded=True),
    BackboneInfo("dropping", "dropout", "zoo:dropping"),
    BackboneInfo("drawn-biased", "a parameter that the seed draws", "zoo:drawn_biased"),
    LauncherInfo("impatient", "a look at a time", "zoo:Polls"),
]
EARLIER = LauncherInfo("of-api-1-3", "codes alone, and no ids", "zoo:OfApi13")


def _function(kind: str) -> str:
    """A function that behaves like the honest class."""
    name = f"{kind}_function"
    honest = globals()[f"Honest{kind.capitalize()}"]
    globals()[name] = lambda *arguments: honest(*arguments)
    return f"zoo:{name}"


def _common() -> Iterator[tuple[Info, str]]:
    """Every honest component, broken in each way that all kinds share."""
    for honest in HONEST:
        factory = "zoo:missing" if honest.kind == "backbone" else _function(honest.kind)
        changes: dict[str, dict[str, Any]] = {
            "check_description": {"title": "{{size}}"},
            "check_factory": {"factory": factory},
            "check_example": {"example": {"size": "large"}},
            "check_parameters_round_trip": {"params": Drifts},
            "check_unknown_parameter_is_refused": {"params": Lenient},
            "check_parameters_are_frozen": {"params": Loose},
        }
        for check, change in changes.items():
            yield dataclasses.replace(honest, name=f"{honest.kind}-{check.replace('_', '-')}", **change), check


def _broken(honest: int, *rows: tuple[str, str] | tuple[str, str, dict[str, Any]]) -> Iterator[tuple[Info, str]]:
    """Broken variants of an honest row: the check that each fails, its factory, and its other changes."""
    for check, factory, *changes in rows:
        name = f"{HONEST[honest].kind}-{factory.lower().replace('_', '-')}-{check.replace('_', '-')}"
        change = {"sharded": False} if hasattr(HONEST[honest], "sharded") else {}
        change |= changes[0] if changes else {}
        yield dataclasses.replace(HONEST[honest], name=name, factory=f"zoo:{factory}", **change), check


BROKEN: list[tuple[Info, str]] = [
    *_common(),
    *_broken(
        0,
        ("check_loss_of_each_example", "OneLossForAll"),
        ("check_gradient_reaches_every_module", "BlindToHead"),
        ("check_gradient_reaches_every_module", "HonestMethod", {"untrained": {"*.head.*": "not true"}}),
        ("check_within_training_radius", "MovesImagesTooFar"),
        ("check_within_training_radius", "MovesImagesTooFarInTime"),
        ("check_within_image_box", "LeavesTheBox"),
        ("check_batch_untouched", "OverwritesLabels"),
        ("check_attack_leaves_the_model", "LeavesEvalMode"),
        ("check_random_state_untouched", "MovesGlobalState"),
        ("check_declared_passes", "HonestMethod", {"loss": Passes("2", "1")}),
        ("check_trains", "DivergesLater"),
        ("check_loss_falls", "Ascends"),
        ("check_same_seed_same_weights", "DrawsWhenBuilt"),
        ("check_other_seed_other_weights", "LearnsItsOwnImages"),
        ("check_resume_is_bitwise", "Forgets"),
        ("check_shards_train_apart", "RemembersExamples", {"sharded": True}),
        ("check_weights_load_without_plugin", "LeavesABuffer"),
    ),
    *_broken(
        1,
        ("check_joints", "Undeclared"),
        ("check_augmented_images", "FloatImages", {"joints": ("augment",)}),
        ("check_prepared_batch", "DoublesTargets"),
        ("check_within_training_radius", "AttacksTooFar", {"joints": ("attack",)}),
        ("check_within_image_box", "AttacksOutOfTheBox", {"joints": ("attack",)}),
        ("check_batch_untouched", "HalvesWeights"),
        ("check_attack_leaves_the_model", "AttacksAndLeavesEvalMode", {"joints": ("attack",)}),
        ("check_random_state_untouched", "ModifierMovesGlobalState"),
        ("check_declared_passes", "HonestModifier", {"attack": Passes("1")}),
        ("check_trains", "Explodes", {"joints": ("after_step",)}),
        ("check_trains", "Misfit", {"joints": ("model",)}),
        ("check_choosing_weights_moves_none", "MovesWhatItAverages", {"joints": ("model",)}),
        ("check_same_seed_same_weights", "ModifierDrawsWhenBuilt"),
        ("check_other_seed_other_weights", "TrainsOnItsOwnImages", {"joints": ("batch", "attack")}),
        ("check_resume_is_bitwise", "ModifierForgets"),
        ("check_shards_train_apart", "AveragesTargets", {"sharded": True}),
        ("check_weights_load_without_plugin", "ModifierLeavesABuffer"),
    ),
    *_broken(
        2,
        ("check_within_the_ball", "TooFar"),
        ("check_within_image_box", "OutOfTheBox"),
        ("check_dtype", "Doubles"),
        ("check_model_restored", "LeavesTrainMode"),
        ("check_examples_untouched", "ForgetsIndices"),
        ("check_random_state_untouched", "AttackMovesGlobalState"),
        ("check_deterministic", "AttackDrawsGlobally"),
        ("check_examples_are_alone", "DrawsByPosition"),
        ("check_seed", "IgnoresTheSeed"),
        ("check_no_weaker_than_nothing", "Helps"),
        ("check_declared_passes", "HonestAttack", {"passes": Passes("2", "1")}),
    ),
    *_broken(
        3,
        ("check_value_is_finite", "NotANumber"),
        ("check_standard_error", "NegativeError"),
        ("check_estimate", "HonestMeasure", {"estimate": "examples"}),
        ("check_arrays", "KeepsInfinity"),
        ("check_arrays", "KeepsHalf"),
        ("check_arrays", "KeepsOther"),
        ("check_model_restored", "MovesWeights"),
        ("check_examples_untouched", "ForgetsLabels"),
        ("check_random_state_untouched", "MeasureMovesGlobalState"),
        ("check_deterministic", "MeasureDrawsGlobally"),
        ("check_declared_couplings", "HonestMeasure", {"couplings": ("frozen",)}),
        ("check_declared_passes", "HonestMeasure", {"passes": {"": Passes("1", "1")}}),
        ("check_declared_powers", "WeightNorm"),
        ("check_declared_powers", "HonestMeasure", {"powers": {"layers": 0, "logits": 1}}),
    ),
    *_broken(
        4,
        ("check_logits", "eleven_classes"),
        ("check_images_are_alone", "looks_around"),
        ("check_gradient_reaches_every_module", "idle"),
        ("check_random_state_untouched", "without_construction"),
        ("check_seed_decides_the_weights", "unkeyed_biased"),
        ("check_another_seed_moves_every_weight", "equally_biased"),
        ("check_evaluation_moves_nothing", "counts"),
        ("check_weights_are_everything", "numbered"),
        ("check_weights_are_everything", "derived"),
        ("check_resume_is_bitwise", "drops_by_itself"),
    ),
    *_broken(
        5,
        ("check_images", "Oblong"),
        ("check_labels", "LabelBeyond"),
        ("check_indices", "OnePosition"),
        ("check_canonical", "AlwaysCanonical"),
        ("check_deterministic", "Fresh"),
    ),
    *_broken(
        6,
        ("check_exit_codes", "HidesFailures"),
        ("check_exit_codes", "ReportsOthers"),
        ("check_each_job_runs_once", "StartsTwice"),
        ("check_each_job_runs_once", "Repeats"),
        ("check_log", "LosesLogs"),
        ("check_log", "OverwritesLogs"),
        ("check_interrupt", "Kills"),
        ("check_wait_returns_in_time", "Patient"),
        ("check_standings", "Mumbles"),
        ("check_standings", "Remembers"),
        ("check_two_jobs_at_once", "OneAtATime"),
        ("check_adopts_by_id", "ForgetsIds"),
        ("check_adopts_by_name", "KnowsNoNames"),
        ("check_ended_jobs_are_not_adopted", "Clings"),
    ),
]
