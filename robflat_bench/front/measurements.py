"""`measure` and `attack`: one measure or one attack on a live module and examples of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robflat_bench.core import UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import as_html, as_text
from robflat_bench.front.sessions import Normalization, chosen_observer, open_registry, open_session, statistics
from robflat_bench.front.shown import measured_grid
from robflat_bench.registry.components import Component, resolve
from robflat_bench.registry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robflat_bench.config.threat import ThreatModel
    from robflat_bench.evaluation.evaluate import EvaluatedModel
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.evaluation.session import Session
    from robflat_bench.records.journal import StoredJournal


@dataclass(frozen=True, repr=False)
class Measurement:
    """The value of one measure of one network; `float` of it is its value.

    Parameters
    ----------
    measure : str
        The measure with all its parameters.
    value, standard_error : float or None
        The number and its standard error, over examples or draws as the measure defines it. None where there is none.
    n : int
        Number of examples.
    reason : str
        Why there is no value.
    details : mapping
        Further numbers of the measure, such as the number of weights that were moved.
    arrays : mapping
        Numbers for each draw, example, ...
    seconds, forward, backward
        Time in seconds, and image passes through the network.
    registry : Registry
        Names the measure.
    """

    measure: str
    value: float | None
    standard_error: float | None
    n: int
    reason: str
    details: Mapping[str, float]
    seconds: float
    forward: int
    backward: int
    registry: Registry
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __float__(self) -> float:
        if self.value is None:
            raise ValueError(f"{self.measure} has no value: {self.reason}")
        return self.value

    def __repr__(self) -> str:
        return as_text([measured_grid(self.registry, self)])

    def _repr_html_(self) -> str:
        return as_html([measured_grid(self.registry, self)])


@checked
def measure(
    model: nn.Module,
    data: Any,
    measure: str = "average-case",
    *,
    epsilon: float | str | None = None,
    norm: str = "linf",
    normalize: Normalization | None = None,
    examples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Measurement:
    """One measure of one network on examples of your own.

    It equals the value of `evaluate` bit for bit on the same examples, with the same threads. The network is measured
    as a copy, in eval mode; everything is afterwards as before.

    Parameters
    ----------
    model : nn.Module
        Images in [0,1], [N,C,H,W], in; logits [N,K] out.
    data : pair, Dataset or DataLoader
        (images, labels): images float [N,C,H,W] in [0,1], labels integers [N]. Or a Dataset or DataLoader of such
        pairs, read in its order: do not shuffle. float64 images are measured in float64.
    measure : str
        A measure with its parameters, "average-case(xi=0.5)"; `list("measures")` has all.
    epsilon : float or str
        Radius of the threat, in pixels of [0,1]: 8 / 255. Measures without adversarial images need none.
    norm : {"linf", "l2", "l1"}
        Norm of the threat; most measures are defined under linf and l2.
    normalize : pair or None
        (mean, std) of each channel, which the network expects in front; None: images go in as they are.
    examples : int or None
        Only the first ones.
    seed : int
        Seed of all random numbers, keyed by the images' positions and the weights' names; protocols have 0.
    device, plugins, progress
        As in `run`.
    jobs : int
        Processes that work at a time, each with as many threads as this one has; it changes no number.

    Returns
    -------
    Measurement
        Value, standard error, n and details. Where the measure is not defined for this network, value is None, and
        `reason` says why.

    Raises
    ------
    UsageError
        A name or a value is wrong, or the network cannot be measured; the text says what to write.

    Examples
    --------
    >>> rb.measure(model, loader, "average-case(xi=0.5)", epsilon=8 / 255)
    """
    from robflat_bench.config.protocol import Measured
    from robflat_bench.evaluation.evaluate import evaluate as run
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.evaluation.workers import ahead
    from robflat_bench.records.record import measure_path

    registry = open_registry(plugins)
    component = resolve(registry, "measure", measure)
    attacked = component.info.couplings and getattr(component.params, "coupling", "") != "clean"
    if epsilon is None and attacked:
        raise UsageError(f"give epsilon=..., the radius of {component.name}'s threat in pixels of [0,1], e.g. 8 / 255")
    threat = _threat(component, epsilon or 0, norm)
    with _direct(registry, data, threat, examples, seed, device, jobs, progress) as session:
        row = Measured(measure=component.canonical, test=session.splits.available("test"))
        plan = Plan((), (row,))
        subject, journal = _ready(session, model, normalize, plan)
        with ahead(session, [(plan, subject)], journal):
            result, outcomes = run(session, plan, subject, journal)
    found, prefix = result.measures[row.measure], f"{measure_path(subject.checkpoint, 'test', row.measure)}/"
    arrays = {name.removeprefix(prefix): array for name, array in outcomes.items() if name.startswith(prefix)}
    return Measurement(row.measure, **found.model_dump(), registry=registry, arrays=arrays)


@checked
def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: str = "pgd(steps=20)",
    *,
    epsilon: float | str,
    norm: str = "linf",
    normalize: Normalization | None = None,
    seed: int = 0,
    device: str = "auto",
    jobs: int = 1,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Tensor:
    """Adversarial images of one attack, as `evaluate` finds them.

    Parameters
    ----------
    model : nn.Module
        Images in [0,1], [N,C,H,W], in; logits [N,K] out. It is attacked as a copy, in eval mode.
    x : Tensor
        Images, float [N,C,H,W] in [0,1].
    y : Tensor
        Labels, integers [N].
    attack : str
        An attack with its parameters; `list("attacks")` has all.
    epsilon : float or str
        Radius of the ball, in pixels of [0,1]: 8 / 255.
    norm : {"linf", "l2", "l1"}
        Norm of the ball; pgd and fgsm climb in linf and l2, autoattack in all three.
    normalize, seed, device, jobs, plugins, progress
        As in `measure`.

    Returns
    -------
    Tensor
        x_adv, [N,C,H,W], with x's dtype and device: within epsilon of x (up to rounding) and within [0,1].

    Raises
    ------
    UsageError
        A name or a value is wrong, or the network cannot be attacked; the text says what to write.
    RunFailed
        The attack left the threat model.

    Examples
    --------
    >>> x_adv = rb.attack(model, x, y, "pgd(steps=20)", epsilon=8 / 255)
    """
    import torch

    from robflat_bench.config.protocol import Attacked
    from robflat_bench.evaluation.evaluate import adversarial_images
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.evaluation.workers import ahead

    registry = open_registry(plugins)
    component = resolve(registry, "attack", attack)
    threat = _threat(component, epsilon, norm)
    with _direct(registry, (x, y), threat, None, seed, device, jobs, progress) as session:
        plan = Plan((Attacked(attack=component.canonical, test=session.splits.available("test")),), ())
        subject, journal = _ready(session, model, normalize, plan)
        with ahead(session, [(plan, subject)], journal):
            found = adversarial_images(session, plan, subject, journal)
        return found.to(torch.as_tensor(x))


# ---------------------------------------------------------------------------------------------------------
# Without a protocol
# ---------------------------------------------------------------------------------------------------------


def _ready(
    session: Session, model: nn.Module, normalize: Normalization | None, plan: Plan
) -> tuple[EvaluatedModel, StoredJournal]:
    """The network as `evaluate` would load it, and a journal."""
    from robflat_bench.evaluation.model import find_model
    from robflat_bench.evaluation.options import ModelOptions
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.runs.evaluation import loaded

    if isinstance(model, str | Path):
        raise UsageError(f"the model is the name {str(model)!r:.200}; give an nn.Module, or use rb.evaluate for it")
    mean, std = statistics(normalize)
    found = find_model(session, model, ModelOptions(mean=mean, std=std))
    subject = loaded(session, found)
    session.observer.evaluation_starts(plan.stage_names(session.registry, found.name))
    return subject, StoredJournal(session.store.root / "work", session.observer.unit_ends)


def _threat(component: Component, epsilon: float | str, norm: str) -> ThreatModel:
    """The threat of one call; UsageError where the component is not defined under its norm."""
    from robflat_bench.config.threat import ThreatModel, check_norm
    from robflat_bench.registry.validation import validate

    if norm == "linf" and isinstance(epsilon, int | float) and 1 < epsilon <= 255:
        raise UsageError(f"epsilon={epsilon:g}: pixels are in [0,1], so write {epsilon:g} / 255")
    threat = validate(ThreatModel, {"epsilon": epsilon, "norm": norm}, "the threat model")
    check_norm(component, threat.norm)
    return threat


@contextlib.contextmanager
def _direct(
    registry: Registry,
    data: Any,
    threat: ThreatModel,
    examples: int | None,
    seed: int,
    device: str,
    jobs: int,
    progress: bool,
) -> Iterator[Session]:
    """The session of one call, on the call's examples, with this process's threads. Its store is gone afterwards."""
    import torch

    from robflat_bench.config.protocol import Fixed
    from robflat_bench.data.own import own_splits
    from robflat_bench.front.guard import temporary_folder, undisturbed
    from robflat_bench.registry.faults import faults
    from robflat_bench.registry.validation import validate

    with undisturbed(), temporary_folder() as store, chosen_observer(progress) as observer:
        splits = own_splits(data, examples)
        session = open_session(registry, data=splits, store=store, device=device, observer=observer, jobs=jobs)
        precision = str(splits.given.x.dtype).removeprefix("torch.")
        chosen = {"threat": threat, "seed": seed, "threads": torch.get_num_threads(), "precision": precision}
        fixed = validate(Fixed, {**session.fixed.model_dump(), **chosen}, "measure")
        with faults(registry):
            yield replace(session, protocol=replace(session.protocol, fixed=fixed))
