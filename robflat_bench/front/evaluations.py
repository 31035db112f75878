"""`evaluate`: one network, a live module or a checkpoint, under a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robflat_bench.config.threat import WRITTEN
from robflat_bench.core import ThreatNorm, UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import Grid, as_html, as_text
from robflat_bench.front.runs import Run
from robflat_bench.front.sessions import (
    Normalization,
    chosen_observer,
    open_registry,
    open_session,
    several,
    statistics,
    written,
)
from robflat_bench.front.shown import measure_grid, result_grid
from robflat_bench.front.tables import Rows, evaluation_rows
from robflat_bench.front.text import note
from robflat_bench.records.record import EvaluationRecord, MeasureResult
from robflat_bench.records.store import read_outcomes
from robflat_bench.registry.describe import written as typed
from robflat_bench.registry.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from robflat_bench.config.protocol import Fixed, Protocol
    from robflat_bench.evaluation.options import ModelOptions
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.evaluation.session import Session


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The robustness and flatness of one network.

    Parameters
    ----------
    record : EvaluationRecord
        What its file holds: results, dataset, protocol, environment.
    path : Path
        The record's file; the outcome of every image lies beside it, as `.npz`.
    notes : tuple of str
        What was assumed or left out when the network was read.
    registry : Registry
        Names its attacks and measures.
    epsilon : float
        Radius of the ball, in pixels of [0,1].
    norm : {"linf", "l2", "l1"}
        Norm of the ball.
    """

    record: EvaluationRecord
    path: Path
    notes: tuple[str, ...]
    registry: Registry
    epsilon: float
    norm: ThreatNorm = "linf"

    @cached_property
    def outcomes(self) -> dict[str, np.ndarray]:
        """The outcome of every image: arrays named `<model>/<split>/<attack or "clean">/error` and `.../loss`."""
        return read_outcomes(self.record, self.path.with_suffix(".npz"))

    @property
    def measures(self) -> dict[str, MeasureResult]:
        """Measure -> its result on test examples."""
        (result,) = self.record.results.values()
        return result.measures

    @property
    def rows(self) -> Rows:
        """Every number of the evaluation, one a row, with its standard error and n."""
        return evaluation_rows(self.record, self.outcomes, tuple(self.parts()))

    def __repr__(self) -> str:
        return as_text(self.parts())

    def _repr_html_(self) -> str:
        return as_html(self.parts())

    def parts(self, notes: bool = True) -> Iterator[Grid | str]:
        """The grids and lines that a terminal and a notebook show; the command prints the notes before it begins."""
        record = self.record
        threat = f"{WRITTEN[self.norm]}, epsilon {typed(self.epsilon)}"
        heading = (
            f"{record.model}  |  {record.protocol.name} {record.protocol.version}, {threat}, values ± standard error"
        )
        yield result_grid(heading, self.registry, record.results, self.outcomes, measures=False)
        if measured := measure_grid(self.registry, [*record.results.values()]):
            yield measured
        if not record.dataset.canonical:
            yield f"data: {record.dataset.origin}, not the canonical copy of a data set"
        yield from self.notes if notes else ()
        yield f"evaluation: {self.path}"


@checked
def evaluate(
    model: nn.Module | str | Path | Run,
    *,
    data: Any = None,
    protocol: str = "digits-linf",
    attacks: Sequence[str] = (),
    measures: Sequence[str] = (),
    examples: int | None = None,
    train: int | None = None,
    normalize: Normalization | None = None,
    classes: int | None = None,
    network: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    backbone: str | None = None,
    checkpoint: str = "last",
    settings: Sequence[str] | Mapping[str, Any] = (),
    store: str | Path = "runs",
    device: str = "auto",
    compile: bool = False,
    jobs: int | None = None,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Evaluation:
    """Attack a trained network and measure how flat its loss is: the evaluation of `robflat-bench evaluate`.

    The network is evaluated as a copy, in eval mode; it, its gradients, the random state, threads and torch's flags are
    afterwards as before. A finished evaluation is read from its file, an interrupted one resumes.

    Parameters
    ----------
    model : nn.Module, str, Path or Run
        A network: images in [0,1], [N,C,H,W], in; logits [N,K] out. Or a checkpoint (.pt, .pth, .safetensors), one on
        the hub (hf://OWNER/NAME), a run's folder or key, or a backbone with its weights, "robustbench(name=...)".
    data : str, Path, pair, Dataset or DataLoader
        Folder of the data sets (None: the usual places). Or test examples of your own: a pair (images, labels), images
        float [N,C,H,W] in [0,1] and labels integers [N], or a Dataset or DataLoader of such pairs, read in its order.
    protocol : str
        Name or TOML file of a protocol: threat, attacks, measures, precision, threads, seed. A `Run` has its own.
    attacks, measures : sequence of str
        Instead of the protocol's; without both, all of the protocol's. "*" is every measure under every coupling.
    examples : int or None
        Number of test examples, the first ones; None: as many as the protocol sets.
    train : int or None
        Number of training examples in addition; None: those of the protocol's attacks, at most `examples`, else none.
    normalize : pair or None
        (mean, std) of each channel, which the network expects in front; None: images go in as they are.
    classes : int or None
        Number of logits where it is not the number of classes of the data.
    network : str or None
        Of a checkpoint: the class or function that builds its network, "net.py:Net" or "package.module:factory".
    arguments : mapping or None
        Arguments of `network`.
    backbone : str or None
        Of a checkpoint: a built-in backbone, "resnet18(width=64)"; None: recognised by the names of its tensors.
    checkpoint : str
        Of a run: best, last, initial or epoch-N.
    settings, store, device, compile, jobs, plugins, progress
        As in `run`.

    Returns
    -------
    Evaluation
        Errors, losses, measures and flags, with standard errors over examples.

    Raises
    ------
    UsageError
        A name or a value is wrong, or the network cannot be evaluated; the text says what to write.
    CheckFailed
        A checkpoint or a record is damaged.
    RunFailed
        An attack left the threat model, or logits are not finite.
    """
    from robflat_bench.evaluation.options import ModelOptions

    options = ModelOptions(backbone, network, arguments or {}, *statistics(normalize), classes, checkpoint)
    registry = open_registry(plugins)
    if isinstance(model, Run):
        chosen, data, model = model.protocol, model.data if data is None else data, model.folder
    else:
        chosen = evaluation_protocol(registry, protocol, written(settings))
    named = str(model) if isinstance(model, Path) else model
    request = Request(named, options, several(attacks), several(measures), examples, train)
    given = data is not None and not isinstance(data, str | Path)  # the counts are of such data
    request.check(registry, chosen, Path(store), given)
    request = request.settled(note if progress else lambda line: None)

    with chosen_observer(progress) as observer:
        from robflat_bench.data.own import own_splits
        from robflat_bench.front.guard import undisturbed

        with undisturbed():
            source = own_splits(data, examples) if given else data
            session = open_session(registry, chosen, (), source, store, device, compile, observer=observer, jobs=jobs)
            return evaluated(session, request)


@dataclass(frozen=True)
class Request:
    """What `evaluate`, and the command of that name, is asked for.

    Parameters
    ----------
    model : nn.Module or str
        A live network, or the text by which `find_model` finds one.
    options : ModelOptions
        How it is read.
    attacks, measures : tuple of str
        Instead of the protocol's.
    examples, train : int or None
        Numbers of test and training examples.
    """

    model: nn.Module | str
    options: ModelOptions
    attacks: tuple[str, ...]
    measures: tuple[str, ...]
    examples: int | None
    train: int | None

    def check(self, registry: Registry, protocol: Protocol, store: Path, given: bool) -> None:
        """Find every mistake that shows without torch; UsageError ends with the next thing to write.

        `given`: the examples are not the protocol's, so their counts cannot be checked yet.
        """
        from robflat_bench.evaluation.options import check_model, check_options, kind_of
        from robflat_bench.records.store import Store

        if not isinstance(self.model, str):
            check_options("module", type(self.model).__name__, self.options)
        else:
            check_model(self.model, self.options, Store(store), registry)
            given |= kind_of(self.model) == "run"  # it has the examples of its own protocol
        (replace(self, examples=None, train=None) if given else self).plan(registry, protocol.fixed)

    def settled(self, say: Callable[[str], None]) -> Request:
        """The request with a model of the hub downloaded and named by its commit; `say` has the size before."""
        from robflat_bench.evaluation.hub import fetched
        from robflat_bench.evaluation.options import kind_of

        if not isinstance(self.model, str) or kind_of(self.model) != "hub":
            return self
        return replace(self, model=str(fetched(self.model, say).name))

    def plan(self, registry: Registry, fixed: Fixed) -> Plan:
        """The attacks and measures; UsageError for an unknown one, and for more examples than there are."""
        from robflat_bench.evaluation.plan import choose_plan

        named = self.attacks, self.measures
        return choose_plan(registry, fixed, self.options.checkpoint, *named, self.examples, self.train)


def evaluation_protocol(registry: Registry, name: str, settings: tuple[str, ...]) -> Protocol:
    """The protocol to evaluate under; UsageError for settings of training, which would change nothing."""
    from robflat_bench.config.protocol import load

    found = load(registry, name, settings)
    if training := found.overrides.keys() - {"activation"}:
        raise UsageError(
            f"recipe.{min(training)} is how a run trains, and evaluate trains nothing; leave it out. "
            "The radius of the attacks is fixed.threat.epsilon"
        )
    return found


def evaluated(session: Session, request: Request, say: Callable[[str], None] = lambda note: None) -> Evaluation:
    """The evaluation that is asked for, made or read from its file; `say` has the network's notes before the work."""
    from robflat_bench.data.own import counted
    from robflat_bench.evaluation.model import find_model
    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.evaluation import evaluate_model

    registry, found = session.registry, find_model(session, request.model, request.options)
    for line in found.notes:
        say(line)
    splits = session.under(found.protocol).splits
    plan = request.plan(registry, counted(found.protocol.fixed, splits))
    plan = plan.limited(splits.available("test"), splits.available("train"))
    with faults(registry):
        record, path = evaluate_model(session, found, plan)
    threat = found.protocol.fixed.threat
    return Evaluation(record, path, found.notes, registry, threat.epsilon, threat.norm)
