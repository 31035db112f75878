"""One checkpoint under a list of attacks and measures, every example kept, every unit of work resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, cross_entropy
from robflat_bench.base import Examples, RunFailed, Threat, Workspace
from robflat_bench.components import Component, resolve, title
from robflat_bench.data.splits import Splits
from robflat_bench.observers import Observer
from robflat_bench.protocol import Attacked, Fixed, Measured, SplitName
from robflat_bench.record import Flags, MeasureResult, Result, totals
from robflat_bench.registry import Registry
from robflat_bench.store import StoredJournal
from robflat_bench.weights import digest

MEMORY_BATCH = 250
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
        measures = [title(registry, "measure", row.measure) for row in self.measures]
        return [f"{checkpoint}: {name}" for name in ("clean", *attacks, *measures)]


def choose_plan(
    registry: Registry,
    fixed: Fixed,
    checkpoint: str,
    attacks: tuple[str, ...],
    measures: tuple[str, ...],
    examples: int | None,
) -> Plan:
    """The protocol's plan for a checkpoint, or the named attacks and measures on as many test examples."""
    own = Plan.of(fixed, checkpoint)
    count = examples or own.test_examples
    if not attacks and not measures:
        return own
    return Plan(
        tuple(Attacked(attack=resolve(registry, "attack", text).canonical, test=count) for text in attacks),
        tuple(Measured(measure=resolve(registry, "measure", text).canonical, test=count) for text in measures),
    )


def _splits(row: Attacked) -> tuple[SplitName, ...]:
    return ("test", "train") if row.train else ("test",)


def configure(fixed: Fixed) -> None:
    """This process computes as the protocol says: its threads, and float32 without TF32 shortcuts."""
    torch.set_num_threads(fixed.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def evaluate(
    registry: Registry,
    fixed: Fixed,
    plan: Plan,
    model: nn.Module,
    splits: Splits,
    checkpoint: str,
    epoch: int | None,
    journal: StoredJournal,
    observer: Observer,
    device: str,
) -> tuple[Result, dict[str, np.ndarray]]:
    """The result of one checkpoint, and its outcomes: `<checkpoint>/<split>/<attack>/{error,loss}` per example.

    The journal must belong to these weights: units found in it are taken as done.
    """
    model.eval()
    dtype = DTYPES[fixed.precision]
    threat = Threat(fixed.threat.epsilon, fixed.threat.norm)
    outcomes: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    notes: dict[str, int] = {}
    weights = digest(model.state_dict())
    journal = journal.section(weights)
    stages = iter(plan.stages(registry, checkpoint))

    def examples(split: SplitName, count: int) -> Examples:
        return splits.examples(split, device, dtype, count)

    def workspace(stage: str) -> Workspace:
        return Workspace(MEMORY_BATCH, fixed.seed, journal.section(stage))

    # ---- clean ------------------------------------------------------------------------------------------
    began = time.perf_counter()
    for split, count in {
        "test": plan.test_examples,
        "train": max((row.train for row in plan.attacks), default=0),
    }.items():
        if count:
            clean = examples(split, count)  # type: ignore[arg-type]
            error, loss = _outcome(model, clean, clean.x)
            outcomes[f"{checkpoint}/{split}/clean/error"] = error
            outcomes[f"{checkpoint}/{split}/clean/loss"] = loss
    seconds["clean"] = time.perf_counter() - began
    observer.stage_ends(next(stages))

    # ---- attacks ----------------------------------------------------------------------------------------
    for row in plan.attacks:
        for split in _splits(row):
            here = examples(split, getattr(row, split))
            attack = resolve(registry, "attack", row.attack).build(threat)
            place = workspace(f"{row.attack}, {split}")
            x_adv = attack.run(model, here, place)
            error, loss = _outcome(model, here, x_adv)
            outcomes[f"{checkpoint}/{split}/{row.attack}/error"] = error
            if row is plan.attacks[0]:
                outcomes[f"{checkpoint}/{split}/{row.attack}/loss"] = loss
            if split == "test":
                notes |= attack.notes
            seconds[f"{row.attack}, {split}"] = place.journal.spent
            observer.stage_ends(next(stages))

    # ---- measures ---------------------------------------------------------------------------------------
    measures: dict[str, MeasureResult] = {}
    for measured in plan.measures:
        place = workspace(measured.measure)
        measure = resolve(registry, "measure", measured.measure).build(threat)
        found = measure.measure(model, examples("test", measured.test), place)
        if not math.isfinite(found.value):
            raise RunFailed(f"{measured.measure} is {found.value} at checkpoint {checkpoint}; its weights are kept")
        spent = place.journal.spent
        measures[measured.measure] = MeasureResult(
            value=found.value,
            standard_error=found.standard_error,
            n=found.n,
            seconds=spent,
            details=dict(found.details),
        )
        for name, array in found.arrays.items():
            outcomes[f"{checkpoint}/measure/{measured.measure}/{name}"] = array
        seconds[measured.measure] = spent
        observer.stage_ends(next(stages))

    names = [resolve(registry, "attack", row.attack) for row in plan.attacks]
    zero_gradients, random_forward = _forward_flags(model, examples("test", MEMORY_BATCH))
    flags = Flags(
        zero_gradients=zero_gradients,
        random_forward=random_forward,
        pgd_beats_autoattack=_weaker_broke_more(outcomes, checkpoint, names),
        square_beats_white_box=notes.get("only_square"),
    )
    result = Result(
        epoch=epoch,
        weights=weights,
        measures=measures,
        flags=flags,
        seconds=seconds,
        **totals(outcomes, checkpoint, [row.attack for row in plan.attacks]),
    )
    return result, outcomes


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
