"""One checkpoint under a list of attacks and measures, every example kept, every unit of work resumable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, cross_entropy
from robflat_bench.config.protocol import Attacked, Fixed, Measured, SplitName
from robflat_bench.core import (
    Examples,
    Kind,
    Measure,
    MeasureInfo,
    Measurement,
    NoValue,
    Observer,
    RunFailed,
    Threat,
    UsageError,
    Workspace,
    clock,
)
from robflat_bench.data.splits import Splits
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weights import digest
from robflat_bench.registry.components import Component, resolve, title
from robflat_bench.registry.registry import Registry
from robflat_bench.results.record import Flags, MeasureResult, Result, measure_path, totals
from robflat_bench.results.store import StoredJournal

MEMORY_BATCH = 250
ROUNDING = 1e-6
"""By how much an attack's arithmetic may miss the radius."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Plan:
    """What one checkpoint goes through. The first attack is the reference."""

    attacks: tuple[Attacked, ...]
    measures: tuple[Measured, ...]

    @classmethod
    def of(cls, fixed: Fixed, checkpoint: str) -> Plan:
        """The part of a protocol that covers this checkpoint."""
        return cls(
            tuple(row for row in fixed.attacks if checkpoint in row.checkpoints),
            tuple(row for row in fixed.measures if checkpoint in row.checkpoints),
        )

    @property
    def test_examples(self) -> int:
        """How many test examples it touches."""
        return max([row.test for row in self.attacks] + [row.test for row in self.measures])

    def stages(self, registry: Registry, checkpoint: str) -> list[str]:
        """What its stages are called, in order."""
        attacks = [
            f"{title(registry, 'attack', row.attack)}, {split}" for row in self.attacks for split in _splits(row)
        ]
        measures = [
            _stage(title(registry, "measure", row.measure), split) for row in self.measures for split in _splits(row)
        ]
        return [f"{checkpoint}: {name}" for name in ("clean", *attacks, *measures)]


def choose_plan(
    registry: Registry,
    fixed: Fixed,
    checkpoint: str,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    examples: int | None,
    train: int = 0,
) -> Plan:
    """The protocol's plan for a checkpoint, or the named attacks and measures on as many test and training examples."""
    own = Plan.of(fixed, "best" if checkpoint == "best" else "last")
    count = examples or own.test_examples
    if not attacks and not measures:
        return own
    return Plan(
        tuple(
            Attacked(attack=resolve(registry, "attack", text).canonical, test=count, train=train) for text in attacks
        ),
        tuple(
            Measured(measure=resolve(registry, "measure", text).canonical, test=count, train=train)
            for text in _every(registry, measures)
        ),
    )


def _every(registry: Registry, texts: tuple[str, ...]) -> Iterator[str]:
    """The texts; where one is a pattern of names, all that match it, under every coupling that applies."""
    for text in texts:
        names = registry.names("measure", text) if "*" in text else []
        if "*" in text and not names:
            raise UsageError(f"no measure matches '{text}'; see `robflat-bench list measures`")
        if not names:
            yield text
        for name in names:
            info: MeasureInfo = registry.get("measure", name).info
            chosen = info.couplings if "coupling" in info.params.model_fields else ()
            yield from [f"{name}(coupling={coupling})" for coupling in chosen] or [name]


def _splits(row: Attacked | Measured) -> tuple[SplitName, ...]:
    return ("test", "train") if row.train else ("test",)


def configure(fixed: Fixed) -> None:
    """This process computes as the protocol says: its threads, and float32 without TF32 shortcuts."""
    torch.set_num_threads(fixed.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@dataclass(frozen=True)
class EvaluatedModel:
    """What is evaluated: a model in the protocol's precision, the checkpoint it is (its name in the record and, where
    there is one, its epoch), and the weights that training began with, where they are known."""

    model: nn.Module
    checkpoint: str
    epoch: int | None = None
    initial: Mapping[str, Tensor] | None = None


def evaluate(
    registry: Registry,
    fixed: Fixed,
    splits: Splits,
    device: str,
    plan: Plan,
    trained: EvaluatedModel,
    journal: StoredJournal,
    observer: Observer,
) -> tuple[Result, dict[str, np.ndarray]]:
    """The result of one checkpoint, and its outcomes: `<checkpoint>/<split>/<attack>/{error,loss}` per example.

    Units found in the journal are taken as done. A measure that has no value here says why in its result. RunFailed
    where an attack leaves the threat model, or an attack or a measure the network changed.
    """
    model, checkpoint = trained.model.eval(), trained.checkpoint
    dtype = DTYPES[fixed.precision]
    threat = Threat(fixed.threat.epsilon, fixed.threat.norm)
    outcomes: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    notes: dict[str, int] = {}
    weights = digest(model.state_dict())
    modes = [(module, module.training) for module in model.modules()]
    counter = PassCounter(model)
    journal = journal.section(weights, counter)
    stages = iter(plan.stages(registry, checkpoint))

    def examples(split: SplitName, count: int) -> Examples:
        return splits.examples(split, device, dtype, count)

    def workspace(kind: Kind, text: str, split: SplitName, count: int) -> Workspace:
        units = journal.section(f"{kind} {text}, {count} {split} examples")  # equal weights may meet different counts
        return Workspace(MEMORY_BATCH, fixed.seed, units, trained.initial)

    def untouched(who: str) -> None:
        """RunFailed where a component left another network than it met: what comes next would read that one."""
        if digest(model.state_dict()) != weights or any(module.training != mode for module, mode in modes):
            raise RunFailed(f"{who} left the network changed: its weights, buffers or mode are not what they were")

    # ---- clean ------------------------------------------------------------------------------------------
    began = clock.now()
    for split, count in {
        "test": plan.test_examples,
        "train": max((row.train for row in plan.attacks), default=0),
    }.items():
        if count:
            clean = examples(split, count)  # type: ignore[arg-type]
            error, loss = _outcome(model, clean, clean.x)
            outcomes[f"{checkpoint}/{split}/clean/error"] = error
            outcomes[f"{checkpoint}/{split}/clean/loss"] = loss
    seconds["clean"] = clock.now() - began
    observer.stage_ends(next(stages))

    # ---- attacks ----------------------------------------------------------------------------------------
    for row in plan.attacks:
        for split in _splits(row):
            here = examples(split, getattr(row, split))
            attack = resolve(registry, "attack", row.attack).build(threat)
            place = workspace("attack", row.attack, split, len(here))
            x_adv = attack.run(model, here, place)
            untouched(f"the attack {row.attack}")
            _admit(f"the attack {row.attack}", x_adv, here.x, threat)
            error, loss = _outcome(model, here, x_adv)
            outcomes[f"{checkpoint}/{split}/{row.attack}/error"] = error
            if row is plan.attacks[0]:
                outcomes[f"{checkpoint}/{split}/{row.attack}/loss"] = loss
            if split == "test":
                notes |= attack.notes
            seconds[f"{row.attack}, {split}"] = place.journal.spent.seconds
            observer.stage_ends(next(stages))

    # ---- measures ---------------------------------------------------------------------------------------
    measures: dict[SplitName, dict[str, MeasureResult]] = {"test": {}, "train": {}}
    for measured in plan.measures:
        for split in _splits(measured):
            here = examples(split, getattr(measured, split))
            place = workspace("measure", measured.measure, split, len(here))
            measure = resolve(registry, "measure", measured.measure).build(threat)
            found, arrays = _measured(measure, model, here, place)
            untouched(f"the measure {measured.measure}")
            measures[split][measured.measure] = found
            for name, array in arrays.items():
                outcomes[f"{measure_path(checkpoint, split, measured.measure)}/{name}"] = array
            seconds[_stage(measured.measure, split)] = found.seconds
            observer.stage_ends(next(stages))
    counter.remove()

    names = [resolve(registry, "attack", row.attack) for row in plan.attacks]
    zero_gradients, random_forward = _forward_flags(model, examples("test", MEMORY_BATCH))
    flags = Flags(
        zero_gradients=zero_gradients,
        random_forward=random_forward,
        pgd_beats_autoattack=_weaker_broke_more(outcomes, checkpoint, names),
        square_beats_white_box=notes.get("only_square"),
    )
    result = Result(
        epoch=trained.epoch,
        weights=weights,
        measures=measures["test"],
        measures_train=measures["train"],
        flags=flags,
        seconds=seconds,
        **totals(outcomes, checkpoint, [row.attack for row in plan.attacks]),
    )
    return result, outcomes


def _measured(
    measure: Measure, model: nn.Module, examples: Examples, place: Workspace
) -> tuple[MeasureResult, Mapping[str, np.ndarray]]:
    """A measurement as the record keeps it, with its arrays; without a value where there is none, and why."""
    found, reason = Measurement(math.nan, None, 0), ""
    try:
        found = measure.measure(model, examples, place)
    except NoValue as error:
        reason = str(error)
    told = {"it": found.value, "its standard error": found.standard_error or 0.0}
    told |= {f"its detail {name}": detail for name, detail in found.details.items()}
    wrong = [f"{what} is {number} here" for what, number in told.items() if not math.isfinite(number)]
    value = None if wrong else found.value
    spent = place.journal.spent
    result = MeasureResult(
        value=value,
        standard_error=None if value is None else found.standard_error,
        n=found.n,
        seconds=spent.seconds,
        forward=spent.forward,
        backward=spent.backward,
        reason=reason or next(iter(wrong), ""),
        details={} if value is None else dict(found.details),
    )
    arrays = {name: np.asarray(array) for name, array in found.arrays.items()}
    if value is None:
        arrays.pop("per_example", None)  # it would have to be finite, as its mean
    return result, arrays


def _admit(who: str, x_adv: Tensor, x: Tensor, threat: Threat) -> None:
    """RunFailed unless the threat model admits these images; it waits for the device once."""
    if (x_adv.shape, x_adv.dtype) != (x.shape, x.dtype):
        raise RunFailed(f"{who} made {x_adv.dtype}{[*x_adv.shape]} of {x.dtype}{[*x.shape]}")
    far, low, high = torch.stack([(x_adv - x).abs().max(), x_adv.min(), x_adv.max()]).tolist()
    if not (far <= threat.epsilon + ROUNDING and low >= 0 and high <= 1):  # nor is NaN admitted
        raise RunFailed(
            f"{who} left the threat model: {far:.4g} from the images where {threat.epsilon:.4g} is allowed, "
            f"pixels from {low:.4g} to {high:.4g}"
        )


def _stage(component: str, split: SplitName) -> str:
    """Of a measure, as the record and the observer name it."""
    return component if split == "test" else f"{component}, {split}"


def _outcome(model: nn.Module, examples: Examples, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Per example: misclassified (bool), and cross-entropy (float64, nats)."""
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(MEMORY_BATCH)])
    error = logits.argmax(1) != examples.y
    loss = F.cross_entropy(logits.double(), examples.y, reduction="none")
    return error.cpu().numpy(), loss.cpu().numpy()


def _forward_flags(model: nn.Module, examples: Examples) -> tuple[float, bool]:
    """Fraction of examples whose input gradient is exactly zero; whether a second forward differs."""
    with attacked(model):
        variable = examples.x.clone().requires_grad_()
        logits = model(variable)
        (gradient,) = torch.autograd.grad(cross_entropy(examples.y)(logits).sum(), variable)
        with torch.no_grad():
            again = model(examples.x)
    zero = float((gradient.flatten(1) == 0).all(1).double().mean())
    return zero, not torch.allclose(logits.detach(), again, rtol=1e-4, atol=1e-4)


def _weaker_broke_more(outcomes: dict[str, np.ndarray], checkpoint: str, attacks: Iterable[Component]) -> int | None:
    """Test examples that another attack broke and AutoAttack (or its APGD tier) did not."""
    strong: list[np.ndarray] = []
    weak: list[np.ndarray] = []
    for component in attacks:
        errors = outcomes[f"{checkpoint}/test/{component.canonical}/error"]
        (strong if component.name == "autoattack" else weak).append(errors)
    if not strong or not weak:
        return None
    n = min(len(error) for error in (*strong, *weak))
    clean = outcomes[f"{checkpoint}/test/clean/error"][:n]
    held = ~np.any([error[:n] for error in strong], axis=0) & ~clean
    return int((np.any([error[:n] for error in weak], axis=0) & held).sum())
