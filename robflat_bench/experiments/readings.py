"""Robust loss and flatness of one model, as its protocol's evaluation reads them: what `training` and `best-last` show.

What the run's record already holds for these very weights is taken from there; only the rest is computed.
"""

from __future__ import annotations

import numpy as np

from robflat_bench.config.protocol import Attacked, Measured
from robflat_bench.core import Kind, UsageError
from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
from robflat_bench.evaluation.plan import Plan
from robflat_bench.experiments import ReadingsParams
from robflat_bench.experiments.document import Document, Row, Value
from robflat_bench.experiments.measured import titled
from robflat_bench.experiments.subject import Subject
from robflat_bench.measures.per_example import error_of_mean
from robflat_bench.registry.components import resolve
from robflat_bench.results.record import MeasureResult
from robflat_bench.results.store import StoredJournal, read_arrays


class Loss(Row):
    """robust_loss: by split, under `attack`, the protocol's first. measures: by canonical text. titles: how tables
    name them."""

    attack: str
    robust_loss: dict[str, Value]
    measures: dict[str, Value]
    titles: dict[str, str]

    @property
    def brief(self) -> dict[str, float | None]:
        losses: dict[str, float | None] = {f"robust loss, {k} (nats)": v.value for k, v in self.robust_loss.items()}
        return losses | {self.titles.get(name, name): value.value for name, value in self.measures.items()}


def read(subject: Subject, params: ReadingsParams, journal: StoredJournal) -> Loss:
    """Robust losses, and the measures asked for."""
    return gathered(subject, planned(subject, params), journal)


def gathered(subject: Subject, wanted: list[Measured], journal: StoredJournal) -> Loss:
    """From the record where it has them, by the protocol's own evaluation where it has not."""
    attack = subject.fixed.attacks[0]
    losses, measures = recorded(subject, attack, wanted)
    missing = Plan(() if losses else (attack,), tuple(row for row in wanted if row.measure not in measures))
    if missing.attacks or missing.measures:
        evaluated = EvaluatedModel(subject.load(), subject.found.name, subject.found.epoch, subject.initial)
        result, outcomes = evaluate(subject.session, missing, evaluated, journal)
        losses = losses or of_outcomes(outcomes, subject.found.name, attack.attack)
        measures |= {name: taken(found) for name, found in result.measures.items()}
    return Loss(
        n=losses["test"].n,
        attack=short(subject, "attack", attack.attack),
        robust_loss=losses,
        measures={row.measure: measures[row.measure] for row in wanted},
        titles={row.measure: short(subject, "measure", row.measure) for row in wanted},
    )


def short(subject: Subject, kind: Kind, text: str) -> str:
    """A component as an axis has room for it: its title, or only the parameters that are not the defaults."""
    return titled(resolve(subject.registry, kind, text))


def planned(subject: Subject, params: ReadingsParams) -> list[Measured]:
    """The measures asked for, each as the protocol has it, or else on its usual number of examples."""
    fixed = subject.fixed
    if not params.measures and not fixed.measures:
        raise UsageError(
            f"{subject.protocol.name} names no measures; say which, e.g. 'training(measures=[\"average-case\"])'"
        )
    own = {row.measure: row for row in fixed.measures}
    texts = [resolve(subject.registry, "measure", text).canonical for text in params.measures] or list(own)
    return [own.get(text, Measured(measure=text, test=subject.usual_count)) for text in texts]


def recorded(subject: Subject, attack: Attacked, wanted: list[Measured]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Robust losses and those of the protocol's measures that the run's record holds for these weights."""
    results = subject.record.results.items() if subject.record else ()
    for checkpoint, result in results:
        if result.weights == subject.weights and subject.home:
            outcomes = read_arrays(subject.home.outcomes_file)
            own = [row.measure for row in wanted if row in subject.fixed.measures and row.measure in result.measures]
            measures = {name: taken(result.measures[name]) for name in own}
            return of_outcomes(outcomes, checkpoint, attack.attack), measures
    return {}, {}


def of_outcomes(outcomes: dict[str, np.ndarray], checkpoint: str, attack: str) -> dict[str, Value]:
    """Mean cross-entropy by split, its standard error over examples."""
    found = {}
    for split in ("test", "train"):
        losses = outcomes.get(f"{checkpoint}/{split}/{attack}/loss")
        if losses is not None:
            found[split] = Value(value=float(losses.mean()), standard_error=error_of_mean(losses), n=len(losses))
    return found


def taken(found: MeasureResult) -> Value:
    """A measure's result without what it cost."""
    return Value(value=found.value, standard_error=found.standard_error, n=found.n)


def measures_of(document: Document[Loss]) -> dict[str, str]:
    """Canonical text -> title of the measures; every model has them all, or ValueError."""
    titles = document.readings[0].values.titles
    for reading in document.readings:
        if not {"test"} <= {*reading.values.robust_loss} or {*reading.values.measures} != {*titles}:
            raise ValueError(f"{reading.model.label}, {reading.model.checkpoint} lacks what other models have")
    return titles


def unit(measure: str) -> str:
    """What an axis is labelled with: flatness of the robust loss is in nats, other measures have units of their own."""
    return "rise of the robust loss (nats)" if measure.startswith(("average-case", "worst-case")) else "value"


def counts(document: Document[Loss]) -> str:
    """Which attack, and on how many of the test examples each measure is read."""
    values = document.readings[0].values
    images: dict[int, list[str]] = {}
    for name in values.measures:
        n = max(reading.values.measures[name].n for reading in document.readings)
        images.setdefault(n, []).append(values.titles[name].partition(",")[0])
    parts = [f"{' and '.join(titles)} on {n} of them" for n, titles in images.items()]
    return f"Robust loss: cross-entropy under {values.attack}. {'; '.join(parts).capitalize()}."
