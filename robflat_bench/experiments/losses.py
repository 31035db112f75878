"""Robust loss, robust error and measures of one model as the protocol's evaluation reads them.

They are the values of `training`, `best-last` and `flatness-vs-robustness`.

Values that the run's record holds for these weights are taken from it; only missing ones are computed.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field

from robflat_bench.config.protocol import Attacked, Measured
from robflat_bench.core import Kind, Params, UsageError, lazy_imports
from robflat_bench.experiments.document import Document, Experiment, ModelReading, ValueWithError

with lazy_imports():
    import numpy as np

    from robflat_bench.core.estimates import error_of_mean
    from robflat_bench.evaluation.evaluate import EvaluatedModel, evaluate
    from robflat_bench.evaluation.plan import Plan
    from robflat_bench.experiments.trained_model import TrainedModel, short_title
    from robflat_bench.records.journal import StoredJournal
    from robflat_bench.records.quantities import quantity_unit
    from robflat_bench.records.record import MeasureResult
    from robflat_bench.registry.components import resolve
from robflat_bench.records.store import read_arrays

Means = dict[str, dict[str, ValueWithError]]
"""Outcome, robust_loss or robust_error -> split -> its mean."""


class MeasuresParams(Params):
    """Parameters of `training`, `best-last` and `flatness-vs-robustness`."""

    measures: tuple[str, ...] = Field(
        default=(),
        description='Measures, e.g. ["average-case(xi=0.25)"], on the protocol\'s number of test examples; '
        "none: the protocol's measures.",
    )


class RobustLosses(Experiment):
    """Robust losses and measures of one model.

    Attributes
    ----------
    attack
        Title of the protocol's first attack.
    robust_loss
        Mean cross-entropy under the attack, by split.
    measures, titles
        Value and title of each measure, by canonical text.
    """

    params = MeasuresParams

    attack: str
    robust_loss: dict[str, ValueWithError]
    measures: dict[str, ValueWithError]
    titles: dict[str, str]

    @property
    def brief(self) -> dict[str, float | None]:
        losses: dict[str, float | None] = {f"robust loss, {k} (nats)": v.value for k, v in self.robust_loss.items()}
        return losses | {self.titles.get(name, name): value.value for name, value in self.measures.items()}

    @classmethod
    def read(cls, model: TrainedModel, params: MeasuresParams, journal: StoredJournal) -> Self:
        """Read the losses and the measures asked for, each as the protocol has it or on its usual number of examples.

        Raises
        ------
        UsageError
            Neither the parameters nor the protocol name a measure.
        """
        fixed = model.fixed
        if not params.measures and not fixed.measures:
            example = "'training(measures=[\"average-case\"])'"
            raise UsageError(f"{model.found.protocol.name} has no measures; name some, e.g. {example}")
        own = {row.measure: row for row in fixed.measures}
        texts = [resolve(model.registry, "measure", text).canonical for text in params.measures] or list(own)
        wanted = [own.get(text, Measured(measure=text, test=model.usual_count)) for text in texts]
        values = losses_and_measures(model, wanted, journal)
        return cls.model_validate({name: values[name] for name in cls.model_fields})


def losses_and_measures(model: TrainedModel, wanted: list[Measured], journal: StoredJournal) -> dict[str, object]:
    """The values of `RobustLosses` and the robust error by split: from the record where it has them, otherwise by the
    protocol's evaluation."""
    attack = model.fixed.attacks[0]
    means, measures = _recorded(model, attack, wanted)
    missing = Plan(() if means else (attack,), tuple(row for row in wanted if row.measure not in measures))
    if missing.attacks or missing.measures:
        evaluated = EvaluatedModel(model.load(), model.found.name, model.found.epoch, model.initial)
        result, outcomes = evaluate(model.session, missing, evaluated, journal)
        means = means or _means(outcomes, model.found.name, attack.attack)
        measures |= {name: _estimate(found) for name, found in result.measures.items()}

    def title(kind: Kind, text: str) -> str:
        return short_title(resolve(model.registry, kind, text))

    return {
        "n": means["robust_loss"]["test"].n,
        "attack": title("attack", attack.attack),
        **means,
        "measures": {row.measure: measures[row.measure] for row in wanted},
        "titles": {row.measure: title("measure", row.measure) for row in wanted},
    }


def _recorded(model: TrainedModel, attack: Attacked, wanted: list[Measured]) -> tuple[Means, dict[str, ValueWithError]]:
    """Robust losses and errors, and those of the protocol's measures that the run's record holds for these weights."""
    results = model.record.results.items() if model.record else ()
    for checkpoint, result in results:
        if result.weights == model.weights and model.home:
            outcomes = read_arrays(model.home.outcomes_file)
            own = [row.measure for row in wanted if row in model.fixed.measures and row.measure in result.measures]
            measures = {name: _estimate(result.measures[name]) for name in own}
            return _means(outcomes, checkpoint, attack.attack), measures
    return {}, {}


def _means(outcomes: dict[str, np.ndarray], checkpoint: str, attack: str) -> Means:
    """Mean cross-entropy and error rate by split, with their standard errors over examples."""

    def by_split(outcome: str) -> dict[str, ValueWithError]:
        found = {split: outcomes.get(f"{checkpoint}/{split}/{attack}/{outcome}") for split in ("test", "train")}
        return {split: _mean(values.astype(float)) for split, values in found.items() if values is not None}

    return {"robust_loss": by_split("loss"), "robust_error": by_split("error")}


def _mean(values: np.ndarray) -> ValueWithError:
    return ValueWithError(value=float(values.mean()), standard_error=error_of_mean(values), n=len(values))


def _estimate(found: MeasureResult) -> ValueWithError:
    return ValueWithError(value=found.value, standard_error=found.standard_error, n=found.n)


def by_run(document: Document[RobustLosses]) -> list[dict[str, ModelReading[RobustLosses]]]:
    """The readings of each run, by checkpoint."""
    runs: dict[str, dict[str, ModelReading[RobustLosses]]] = {}
    for reading in document.readings:
        runs.setdefault(reading.model.run or reading.model.label, {})[reading.model.checkpoint] = reading
    return list(runs.values())


def measures_of(document: Document[RobustLosses]) -> dict[str, str]:
    """Canonical text -> title of the measures; ValueError unless every model has them all and a test loss."""
    titles = document.values[0].titles
    for reading in document.readings:
        if "test" not in reading.values.robust_loss or {*reading.values.measures} != {*titles}:
            raise ValueError(f"{reading.model.label}, {reading.model.checkpoint} lacks values that other models have")
    return titles


def axis_unit(measure: str) -> str:
    """The label of a measure's axis: flatness is a rise of the robust loss in nats; other measures have own units."""
    return "rise of the robust loss (nats)" if quantity_unit("measure", measure) == "nats" else "value"


def counts(document: Document[RobustLosses]) -> str:
    """A sentence on the attack, and on the number of test examples of each measure."""
    values = document.values[0]
    images: dict[int, list[str]] = {}
    for name, title in values.titles.items():
        n = max(each.measures[name].n for each in document.values)
        images.setdefault(n, []).append(title.partition(",")[0])
    parts = [f"{' and '.join(titles)} on {n} of them" for n, titles in images.items()]
    return f"Robust loss: cross-entropy under {values.attack}. {'; '.join(parts).capitalize()}."
