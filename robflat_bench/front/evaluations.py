"""`evaluate`: one network, a live module or a checkpoint, under a protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robflat_bench.core import UsageError
from robflat_bench.front.arguments import checked
from robflat_bench.front.grids import Grid, as_html, as_text
from robflat_bench.front.sessions import chosen_observer, open_registry, open_session, written
from robflat_bench.front.shown import measure_grid, result_grid
from robflat_bench.front.tables import Rows, evaluation_rows
from robflat_bench.records.record import EvaluationRecord, MeasureResult
from robflat_bench.records.store import read_outcomes
from robflat_bench.registry.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from robflat_bench.evaluation.model import FoundModel
    from robflat_bench.evaluation.options import ModelOptions
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.evaluation.session import Session

Normalization = tuple[Sequence[float] | float, Sequence[float] | float]
"""Mean and standard deviation of each channel of images in [0,1], or one number for all."""


def statistics(normalize: Normalization | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation as numbers; UsageError unless they are."""
    if normalize is None:
        return (), ()
    try:
        mean, std = (tuple(map(float, part)) for part in (np.ravel(np.asarray(part)) for part in normalize))
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"normalize={normalize!r:.100} is no pair (mean, std); give two lists with one number for each channel, "
            "e.g. normalize=([0.5], [0.25])"
        ) from None
    return mean, std


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
    """

    record: EvaluationRecord
    path: Path
    notes: tuple[str, ...]
    registry: Registry

    @property
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
        heading = f"{record.model}  |  {record.protocol.name} {record.protocol.version}, values ± standard error"
        yield result_grid(heading, self.registry, record.results, self.outcomes, measures=False)
        if measured := measure_grid(self.registry, [*record.results.values()]):
            yield measured
        yield from self.notes if notes else ()
        yield f"evaluation: {self.path}"


@checked
def evaluate(
    model: nn.Module | str | Path,
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
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Evaluation:
    """Attack a trained network and measure how flat its loss is: the evaluation of `robflat-bench evaluate`.

    The network is evaluated as a copy, in eval mode; it, its gradients, the random state, threads and torch's flags are
    afterwards as before. A finished evaluation is read from its file, an interrupted one resumes.

    Parameters
    ----------
    model : nn.Module, str or Path
        A network: images in [0,1], [N,C,H,W], in; logits [N,K] out. Or a checkpoint (.pt, .pth, .safetensors), a run's
        folder or key, or a backbone with its weights, "robustbench(name=...)".
    data : str, Path, pair, Dataset or DataLoader
        Folder of the data sets (None: the usual places). Or test examples of your own: a pair (images, labels), images
        float [N,C,H,W] in [0,1] and labels integers [N], or a Dataset or DataLoader of such pairs, read in its order.
    protocol : str
        Name of a protocol, or a TOML file: threat model, attacks, measures, precision, threads, seed.
    attacks, measures : sequence of str
        Instead of the protocol's; without both, all of the protocol's. "*" is every measure under every coupling.
    examples : int or None
        Number of test examples, the first ones; None: as many as the protocol sets.
    train : int or None
        Number of training examples, read in addition; None: those of the protocol's attacks.
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
    settings, store, device, compile, plugins, progress
        As in `run`.

    Returns
    -------
    Evaluation
        Errors, losses, measures and flags, with standard errors over examples.

    Raises
    ------
    UsageError
        A name or a value is wrong, or the network cannot be evaluated; the text says what to write.
    RunFailed
        An attack left the threat model, or logits are not finite.
    """
    from robflat_bench.evaluation.options import ModelOptions

    mean, std = statistics(normalize)
    options = ModelOptions(backbone, network, arguments or {}, mean, std, classes, checkpoint)
    registry = open_registry(plugins)
    model = str(model) if isinstance(model, Path) else model
    given = data is not None and not isinstance(data, str | Path)
    if given and train is not None:
        raise UsageError(f"train={train}: data given from Python are test examples; leave train out")
    counts = (None, None) if given else (examples, train)
    check_request(registry, model, options, protocol, settings, store, attacks, measures, *counts)

    from robflat_bench.data.own import own_splits

    with chosen_observer(progress) as observer:
        from robflat_bench.front.guard import undisturbed

        with undisturbed():
            source = own_splits(data, examples) if given else data
            session = open_session(registry, protocol, settings, source, store, device, compile, observer=observer)
            found = found_model(session, model, options)
            plan = chosen_plan(session, found, options, attacks, measures, examples, train)
            return evaluated(session, found, plan)


def check_request(
    registry: Registry,
    model: nn.Module | str,
    options: ModelOptions,
    protocol: str,
    settings: Sequence[str] | Mapping[str, Any],
    store: str | Path,
    attacks: Sequence[str],
    measures: Sequence[str],
    examples: int | None = None,
    train: int | None = None,
) -> None:
    """Find every mistake of an evaluation that shows without torch; UsageError ends with the next thing to write."""
    from robflat_bench.config.protocol import load
    from robflat_bench.evaluation.options import check_model, kind_of
    from robflat_bench.evaluation.plan import choose_plan
    from robflat_bench.records.store import Store

    chosen = load(registry, protocol, written(settings))
    if isinstance(model, str):
        check_model(model, options, Store(Path(store)), registry)
        if kind_of(model) == "run":  # it has the examples of its own protocol
            examples = train = None
    choose_plan(registry, chosen.fixed, options.checkpoint, tuple(attacks), tuple(measures), examples, train)


def found_model(session: Session, model: nn.Module | str, options: ModelOptions) -> FoundModel:
    """The model that `evaluate` was given."""
    from robflat_bench.evaluation.model import find_model

    return find_model(session, model, options)


def chosen_plan(
    session: Session,
    found: FoundModel,
    options: ModelOptions,
    attacks: Sequence[str],
    measures: Sequence[str],
    examples: int | None,
    train: int | None,
) -> Plan:
    """The attacks and measures that `evaluate` was asked for; UsageError where there are too few examples."""
    from robflat_bench.data.own import counted
    from robflat_bench.evaluation.plan import choose_plan

    splits = session.under(found.protocol).splits
    fixed = counted(found.protocol.fixed, splits)
    plan = choose_plan(session.registry, fixed, options.checkpoint, tuple(attacks), tuple(measures), examples, train)
    return plan.limited(splits.available("test"), splits.available("train"))


def evaluated(session: Session, found: FoundModel, plan: Plan) -> Evaluation:
    """The evaluation of a model under a plan, made or read from its file."""
    from robflat_bench.registry.faults import faults
    from robflat_bench.runs.evaluation import evaluate_model

    registry = session.registry
    with faults(registry):
        record, path = evaluate_model(session, found, plan)
    return Evaluation(record, path, found.notes, registry)
