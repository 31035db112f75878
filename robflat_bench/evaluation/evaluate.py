"""One checkpoint under a plan: clean images, attacks, measures, flags.

Every example's outcome is kept. Finished work is stored, so that an interrupted evaluation resumes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robflat_bench.attacks.engine import attacked, cross_entropy
from robflat_bench.attacks.norms import NORMS
from robflat_bench.core import Attack, Examples, Measure, Measurement, NoValue, RunFailed, Threat, Workspace, clock
from robflat_bench.core.batching import MEMORY_BATCH
from robflat_bench.core.randomness import generator, global_state
from robflat_bench.evaluation.keyed import KeyedJournal
from robflat_bench.evaluation.plan import EvaluationStage, Plan
from robflat_bench.evaluation.session import Session
from robflat_bench.measures.shared import WeightSpaceParams
from robflat_bench.numerics.gradients import guarded
from robflat_bench.numerics.passes import PassCounter
from robflat_bench.numerics.weight_space import WeightSpace
from robflat_bench.numerics.weights import digest
from robflat_bench.records.journal import StoredJournal
from robflat_bench.records.quantities import autoattack_missed
from robflat_bench.records.record import Flags, MeasureResult, Result, measure_path, totals
from robflat_bench.registry.components import resolve

ROUNDING = 1e-6
"""Each pixel of an adversarial image may exceed the ball by this much [pixels in [0,1]], because floats round."""


@dataclass(frozen=True)
class EvaluatedModel:
    """One network with the weights of one checkpoint.

    Parameters
    ----------
    model : nn.Module
        The network, on the session's device and in its precision.
    checkpoint : str
        The checkpoint's name in the record: best, last, initial, epoch-N, or the name of a model without a run.
    epoch : int or None
        The epoch, counted from 0, after which the weights were saved; None if unknown.
    initial : mapping of str to Tensor, or None
        The weights before the first step of training; None if unknown. Measures of distance read them.
    """

    model: nn.Module
    checkpoint: str
    epoch: int | None = None
    initial: Mapping[str, Tensor] | None = None


def evaluate(
    session: Session, plan: Plan, subject: EvaluatedModel, journal: StoredJournal
) -> tuple[Result, dict[str, np.ndarray]]:
    """Evaluate one checkpoint under a plan.

    Parameters
    ----------
    session : Session
        Examples, threat model, precision and device.
    plan : Plan
        The attacks and measures.
    subject : EvaluatedModel
        The network. It is left in eval mode, with its weights and buffers unchanged.
    journal : StoredJournal
        Finished units that it holds are read, not computed again.

    Returns
    -------
    Result
        Errors, losses, measures and flags. A measure that could not be computed carries the reason.
    dict of str to ndarray
        Outcomes per example: `<checkpoint>/<split>/<attack or "clean">/error` (bool, [n]) and `.../loss` (float64, [n],
        nats; of clean images and of the first attack), and the arrays of measures, named `measure_path(...)/<array>`.

    Raises
    ------
    RunFailed
        If an attack leaves the threat model, or if an attack or a measure changes the network.
    UsageError
        If an attack does not take the examples, before any work.
    """
    for stage in plan.stages:
        if stage.kind == "attack":
            attack: Attack = resolve(session.registry, "attack", stage.text).build(session.threat)
            attack.admit(session.examples(stage.split, stage.examples))
    work = Evaluation(session, plan, subject, journal)
    try:
        with work.keyed("clean"):
            work.clean()
        for stage in plan.stages:
            with work.keyed(*stage):
                work.run(stage)
    finally:
        work.counter.remove()
    return work.result(), work.outcomes


def adversarial_images(session: Session, plan: Plan, subject: EvaluatedModel, journal: StoredJournal) -> Tensor:
    """The test images that the plan's one attack finds, float [N,C,H,W]; arguments and errors as in `evaluate`."""
    work = Evaluation(session, plan, subject, journal)
    (stage,) = plan.stages
    try:
        with work.keyed("clean"):
            work.clean()
        with work.keyed(*stage):
            return work.images(stage, *work.prepared(stage)[:3])
    finally:
        work.counter.remove()


class Evaluation:
    """An evaluation in progress: each stage adds to outcomes, seconds, notes and measures."""

    def __init__(self, session: Session, plan: Plan, subject: EvaluatedModel, journal: StoredJournal) -> None:
        self.session, self.plan, self.subject = session, plan, subject
        self.model, self.checkpoint = subject.model, subject.checkpoint
        self.model.eval()
        self.weights, self.modes = self._state()
        self.counter = PassCounter(self.model)
        self.journal = journal.section(self.weights, self.counter)
        self.names = iter(plan.stage_names(session.registry, self.checkpoint))
        self.outcomes: dict[str, np.ndarray] = {}
        self.seconds: dict[str, float] = {}
        self.notes: dict[str, int] = {}
        self.measures: dict[str, dict[str, MeasureResult]] = {"test": {}, "train": {}}

    def keyed(self, *key: int | str) -> AbstractContextManager[None]:
        """A block in which the global generators are keyed: it draws the same in a resumed or repeated evaluation."""
        return global_state(generator(self.session.fixed.seed, "global state of evaluation", *key))

    def clean(self) -> None:
        """Evaluate the images without an attack."""
        began = clock.now()
        for split, count in self.plan.clean.items():
            examples = self.session.examples(split, count)
            path = f"{self.checkpoint}/{split}/clean"
            self.outcomes[f"{path}/error"], self.outcomes[f"{path}/loss"] = _outcome(
                self.model, examples, examples.x, f"{len(examples)} clean {split} images"
            )
        self.flags = _flags_of_network(self.model, self.session.examples("test", self.plan.clean["test"]))
        self._ends("clean", clock.now() - began)

    def run(self, stage: EvaluationStage) -> None:
        """Run one attack or one measure on one split."""
        component, examples, workspace, units = self.prepared(stage)
        work = self._attack if stage.kind == "attack" else self._measure
        work(stage, component, examples, workspace)
        self._ends(stage.name(stage.text), (units.spent + workspace.shared.spent).seconds)

    def fill(self, stage: EvaluationStage) -> None:
        """Compute the units of an attack or a measure, for another process to read."""
        component, examples, workspace, _ = self.prepared(stage)
        if stage.kind == "attack":
            self.images(stage, component, examples, workspace)
        else:
            component.measure(self.model, examples, workspace)

    def prepared(self, stage: EvaluationStage) -> tuple[Any, Examples, Workspace, StoredJournal]:
        """The component of a stage, its examples and workspace, and the journal of its units."""
        session = self.session
        examples = session.examples(stage.split, stage.examples)
        # Best and last may have equal weights but use other numbers of examples, so the section's name has the number.
        units = self.journal.section(f"{stage.kind} {stage.text}, {len(examples)} {stage.split} examples")
        journal = KeyedJournal(units, session.fixed.seed, *stage)
        common = f"shared by measures, {len(examples)} {stage.split} examples"
        shared = KeyedJournal(self.journal.section(common), session.fixed.seed, common)
        # A network with random outputs meets other draws where an attack leaves images alone.
        errors_only = stage.kind == "attack" and not self._is_reference(stage) and not self.flags.random_forward
        workspace = Workspace(MEMORY_BATCH, session.fixed.seed, journal, self.subject.initial, shared, errors_only)
        return resolve(session.registry, stage.kind, stage.text).build(session.threat), examples, workspace, units

    def images(self, stage: EvaluationStage, attack: Attack, examples: Examples, workspace: Workspace) -> Tensor:
        """The adversarial images of an attack; RunFailed if they leave the threat model."""
        with guarded(self.model) if self.flags.nonfinite_gradients else nullcontext():
            x_adv = attack.run(self.model, examples, workspace)
        self._check_unchanged(stage)
        _check_admissible(stage, x_adv, examples.x, self.session.threat)
        return x_adv

    def _is_reference(self, stage: EvaluationStage) -> bool:
        """Whether it is the attack with which robust loss and gap are measured."""
        return stage.text == self.plan.attacks[0].attack

    def _attack(self, stage: EvaluationStage, attack: Attack, examples: Examples, workspace: Workspace) -> None:
        x_adv = self.images(stage, attack, examples, workspace)
        error, loss = _outcome(self.model, examples, x_adv, f"{len(examples)} {stage.split} images of {stage.text}")
        path = f"{self.checkpoint}/{stage.split}/{stage.text}"
        self.outcomes[f"{path}/error"] = error
        if self._is_reference(stage):
            self.outcomes[f"{path}/loss"] = loss
        if stage.split == "test":
            self.notes |= attack.notes

    def _measure(self, stage: EvaluationStage, measure: Measure, examples: Examples, workspace: Workspace) -> None:
        found, arrays = _measured(measure, self.model, examples, workspace)
        self._check_unchanged(stage)
        self.measures[stage.split][stage.text] = found
        path = measure_path(self.checkpoint, stage.split, stage.text)
        self.outcomes |= {f"{path}/{name}": array for name, array in arrays.items()}

    def _ends(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = seconds
        self.session.observer.stage_ends(next(self.names))

    def unchanged(self) -> bool:
        """Whether the network's weights, buffers and modes are what they were."""
        return self._state() == (self.weights, self.modes)

    def _state(self) -> tuple[str, list[bool]]:
        return digest(self.model.state_dict()), [module.training for module in self.model.modules()]

    def _check_unchanged(self, stage: EvaluationStage) -> None:
        """RunFailed if a stage changed the network, because all later stages would evaluate another network."""
        if not self.unchanged():
            raise RunFailed(
                f"the {stage.kind} {stage.text} left the network changed: its weights, buffers or mode differ"
            )

    def result(self) -> Result:
        attacks = [row.attack for row in self.plan.attacks]
        counts = {
            "pgd_beats_autoattack": autoattack_missed(self.outcomes, self.checkpoint, attacks),
            "square_beats_white_box": self.notes.get("only_square"),
        }
        return Result(
            epoch=self.subject.epoch,
            weights=self.weights,
            measures=self.measures["test"],
            measures_train=self.measures["train"],
            flags=self.flags.model_copy(update=counts),
            seconds=self.seconds,
            forward=self.journal.spent.forward,
            backward=self.journal.spent.backward,
            **totals(self.outcomes, self.checkpoint, attacks),
        )


def _measured(
    measure: Measure, model: nn.Module, examples: Examples, workspace: Workspace
) -> tuple[MeasureResult, Mapping[str, np.ndarray]]:
    """A measurement as the record keeps it, and its arrays; without a value, the reason."""
    found, reason = Measurement(math.nan, None, 0), ""
    try:
        found = measure.measure(model, examples, workspace)
    except NoValue as error:
        reason = str(error)
    details = dict(found.details)
    if isinstance(measure.params, WeightSpaceParams) and not reason:
        details |= WeightSpace(model, exclude=measure.params.exclude).counts
    numbers = {"it": found.value, "its standard error": found.standard_error or 0.0}
    numbers |= {f"its detail {name}": detail for name, detail in details.items()}
    wrong = [f"{name} is {number} here" for name, number in numbers.items() if not math.isfinite(number)]
    result = MeasureResult(
        value=None if wrong else found.value,
        standard_error=None if wrong else found.standard_error,
        n=found.n,
        reason=reason or next(iter(wrong), ""),
        details={} if wrong else details,
        **asdict(workspace.journal.spent + workspace.shared.spent),
    )
    arrays = {name: np.asarray(array) for name, array in found.arrays.items()}
    if wrong:
        arrays.pop("per_example", None)  # a record is refused if these are not finite
    return result, arrays


def _check_admissible(stage: EvaluationStage, x_adv: Tensor, x: Tensor, threat: Threat) -> None:
    """RunFailed unless x_adv lies within the threat model; waits for the device once."""
    component = f"the attack {stage.text}"
    if (x_adv.shape, x_adv.dtype) != (x.shape, x.dtype):
        raise RunFailed(f"{component} made {x_adv.dtype}{[*x_adv.shape]} of {x.dtype}{[*x.shape]}")
    norm = NORMS[threat.norm]
    rounding = norm.size(torch.full_like(x[:1], ROUNDING)).max()
    far, slack, low, high = torch.stack([norm.size(x_adv - x).max(), rounding, x_adv.min(), x_adv.max()]).tolist()
    if not (far <= threat.epsilon + slack and low >= 0 and high <= 1):  # NaN fails each of these
        raise RunFailed(
            f"{component} left the threat model: {far:.4g} from the images where {threat.epsilon:.4g} is allowed, "
            f"pixels from {low:.4g} to {high:.4g}"
        )


def _outcome(model: nn.Module, examples: Examples, x: Tensor, images: str) -> tuple[np.ndarray, np.ndarray]:
    """Per example of `x`: misclassified (bool, [n]), and cross-entropy (float64, [n], nats).

    RunFailed, naming the `images`, where logits are not finite: they predict no class, and their loss has no mean.
    """
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(MEMORY_BATCH)])
    if wrong := int((~logits.isfinite().all(1)).sum()):
        raise RunFailed(
            f"the network's logits are NaN or infinite on {wrong} of the {images}; bound what overflows, or "
            "evaluate it under a protocol with precision float64"
        )
    error = logits.argmax(1) != examples.y
    loss = F.cross_entropy(logits.double(), examples.y, reduction="none")
    return error.cpu().numpy(), loss.cpu().numpy()


def _flags_of_network(model: nn.Module, examples: Examples) -> Flags:
    """The flags that no attack is needed for: input gradients of the examples, and a second forward pass of each."""
    zero, nonfinite, differs = [], [], False
    with attacked(model):
        for x, y in zip(examples.x.split(MEMORY_BATCH), examples.y.split(MEMORY_BATCH), strict=True):
            variable = x.clone().requires_grad_()
            logits = model(variable)
            (gradient,) = torch.autograd.grad(cross_entropy(y)(logits).sum(), variable)
            zero.append((gradient.flatten(1) == 0).all(1))
            nonfinite.append(~gradient.flatten(1).isfinite().all(1))
            with torch.no_grad():
                differs |= not torch.allclose(logits, model(x), rtol=1e-4, atol=1e-4)
    zeros, nonfinites = (float(torch.cat(found).double().mean()) for found in (zero, nonfinite))
    return Flags(zero_gradients=zeros, nonfinite_gradients=nonfinites, random_forward=differs)
