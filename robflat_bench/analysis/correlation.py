"""How a measure goes with a target over trained models: `statistics`, each with a 95 % interval.

x and y are a model's measure and target, z is what may explain both; all are means over seeds (`models.py`). Families:

- over all models: Pearson, Spearman, Kendall, and Spearman given z (clean confidence, logit scale, train robust loss);
- over pairs that differ along one axis only: granulated Kendall, and sign-error over environments;
- over pairs, given the values along at most two axes: conditional mutual information;
- of the model that the measure picks, the one with the lowest x: regret and hit rate.

Pairs along axes and information ask whether the measure predicts the target beyond telling which hyperparameter was
set; Kim et al. 2023 ask this of robustness. `association.py` has the formulas.

References
----------
Jiang et al., "Fantastic Generalization Measures and Where to Find Them", ICLR 2020.
Dziugaite et al., "In Search of Robust Measures of Generalization", NeurIPS 2020.
Kim et al., "Fantastic Robustness Measures", NeurIPS 2023.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robflat_bench.analysis import association as on
from robflat_bench.analysis.association import Sample
from robflat_bench.analysis.models import Design, Floats, Model, Zoo

FEWEST = 10
"""Smallest number of models with an interval."""
CHUNK = 8_000_000
"""Pairs of models, over resamples, in memory at a time."""


@dataclass(frozen=True)
class Statistic:
    """One statistic.

    Attributes
    ----------
    value : None where it is undefined.
    low, high : 95 % interval; None where there is none.
    reason : why a value or an interval is missing, and which axes the value says nothing about.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def statistics(models: Sequence[Model], resamples: int = 1000) -> tuple[Statistic, ...]:
    """Every statistic of the measure with the target, in the order of `STATISTICS`.

    Parameters
    ----------
    models : their order, their labels and the order of their seeds change no number.
    resamples : at least 1.

    Returns
    -------
    Conditional mutual information, sign-errors, regret and hit in [0,1], the others in [-1,1]. All but Pearson and
    regret depend only on the order of the seed means.

    Raises
    ------
    ValueError : a model has no seed, different numbers of values, or a value that is not finite.

    Notes
    -----
    low, high: percentiles 2.5 and 97.5 over draws of models with replacement, each with all of its seeds. Seeds are
    not resampled: seed means already differ between models by seed noise, and a second draw would add it again and pull
    every correlation to 0. Copies of a model make no pair with each other. Resamples in which a statistic is undefined
    are left out; where they are more than half, or with fewer than 10 models, there is no interval. The random draws
    depend on measure, target and confidence alone.
    """
    zoo = on.least_informed(Zoo.of(models))
    all_models = Sample(zoo, np.ones((1, len(models))))
    undefined = {name: _first(kind.needs, zoo) for name, kind in STATISTICS.items()}
    values = {name: float(kind.of(all_models)[0]) for name, kind in STATISTICS.items() if not undefined[name]}
    wanted = {name: STATISTICS[name].of for name in values}
    intervals = _intervals(zoo, wanted, resamples) if len(models) >= FEWEST else {}
    found = []
    for name, kind in STATISTICS.items():
        low, high, missing = intervals.get(name, (None, None, f"fewer than {FEWEST} models: no interval"))
        why = f"not defined: {undefined[name]}" if undefined[name] else missing
        reason = "; ".join(filter(None, (why, kind.note(zoo.design))))
        found.append(Statistic(name, values.get(name), low, high, reason))
    return tuple(found)


def resampled(name: str, of: Callable[[Sample], Floats], models: Sequence[Model], resamples: int = 1000) -> Statistic:
    """One statistic of `association.py` that is not in `STATISTICS`, with the interval of `statistics`.

    Raises ValueError as `statistics` does."""
    zoo = Zoo.of(models)
    value = float(of(Sample(zoo, np.ones((1, len(models)))))[0]) if models else math.nan
    if math.isnan(value):
        return Statistic(name, None, reason="not defined")
    if len(models) < FEWEST:
        return Statistic(name, value, reason=f"fewer than {FEWEST} models: no interval")
    return Statistic(name, value, *_intervals(zoo, {name: of}, resamples)[name])


def _intervals(
    zoo: Zoo, wanted: Mapping[str, Callable[[Sample], Floats]], resamples: int
) -> dict[str, tuple[float | None, float | None, str]]:
    """Statistic -> low, high, and the reason where there are none."""
    models = zoo.values.shape[1]
    source = np.random.default_rng(int.from_bytes(hashlib.sha256(zoo.values[:3].tobytes()).digest(), "little"))
    drawn = source.multinomial(models, np.full(models, 1 / models), size=resamples).astype(np.float64)
    parts = [Sample(zoo, part) for part in np.array_split(drawn, math.ceil(resamples * models**2 / CHUNK))]
    return {name: _interval(np.concatenate([of(part) for part in parts])) for name, of in wanted.items()}


def _interval(values: Floats) -> tuple[float | None, float | None, str]:
    """low, high and reason, from a statistic's values in the resamples, [R]."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None, None, "not defined in most resamples: no interval"
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high), ""


# --- the table --------------------------------------------------------------------------------------------------------

Need = tuple[str, Callable[[Zoo], bool]]
MODELS: tuple[Need, ...] = (
    ("fewer than 3 models", lambda zoo: zoo.values.shape[1] < 3),
    ("all models tie in the measure", lambda zoo: not zoo.signs[0].any()),
    ("all models tie in the target", lambda zoo: not zoo.signs[1].any()),
)


def _given(control: str, name: str) -> tuple[Need, ...]:
    """What Spearman given a field of `BESIDE` needs. name: the field in words."""
    row = on.place(control)
    return (
        *MODELS,
        ("fewer than 4 models", lambda zoo: zoo.values.shape[1] < 4),
        (f"{name} is not known of every model", lambda zoo: control not in zoo.known),
        (f"all models tie in {name}", lambda zoo: not zoo.signs[row].any()),
        (
            f"{name} orders the models as the measure or the target does",
            lambda zoo: bool(np.isnan(on.partial(control)(Sample(zoo, np.ones((1, zoo.values.shape[1]))))[0])),
        ),
    )


AXES: tuple[Need, ...] = (*MODELS, ("no axis has 2 values", lambda zoo: not zoo.design.owner.shape[1]))
PAIRS: tuple[Need, ...] = (*AXES, ("no two models differ along one axis only", lambda zoo: not len(zoo.design.starts)))


def _first(needs: tuple[Need, ...], zoo: Zoo) -> str:
    """The first unmet need, as a reason; "" where all are met."""
    return next((reason for reason, missing in needs if missing(zoo)), "")


def _constant(design: Design) -> str:
    return f"fewer than 2 values of {', '.join(design.constant)}" if design.constant else ""


def _left_out(design: Design) -> str:
    mixed = f"no two models differ only in {', '.join(design.mixed)}" if design.mixed else ""
    return "; ".join(filter(None, (_constant(design), mixed)))


@dataclass(frozen=True)
class _Kind:
    """of: the statistic. meaning: a definition in a sentence, shown beside the numbers. needs: reasons for being
    undefined. note: the axes that it says nothing about."""

    of: Callable[[Sample], Floats]
    meaning: str
    needs: tuple[Need, ...] = MODELS
    note: Callable[[Design], str] = lambda _: ""


def _controlled(control: str, name: str, definition: str) -> _Kind:
    meaning = (
        f"Rank correlation that is left after removing {name} from both by linear regression of ranks. {definition}"
    )
    return _Kind(on.partial(control), meaning, _given(control, name))


STATISTICS: dict[str, _Kind] = {
    "pearson": _Kind(on.pearson, "Linear correlation, from -1 to 1."),
    "spearman": _Kind(on.spearman, "Correlation of ranks, from -1 to 1."),
    "kendall": _Kind(on.kendall, "Pairs of methods in equal order minus pairs in opposite order, as a share (tau-b)."),
    "granulated-kendall": _Kind(
        on.granulated,
        "Kendall's tau among methods that differ in one hyperparameter, averaged over hyperparameters.",
        PAIRS,
        _left_out,
    ),
    "conditional-mutual-information": _Kind(
        on.information,
        "Share of the order by the target that the measure tells, given two hyperparameters; 0: none, 1: all.",
        AXES,
        _constant,
    ),
    "sign-error-mean": _Kind(
        on.mean_error,
        "Share of pairs in opposite order among methods that differ in one hyperparameter, mean over hyperparameters.",
        PAIRS,
        _left_out,
    ),
    "sign-error-worst": _Kind(on.worst_error, "As the mean sign-error, of the worst hyperparameter.", PAIRS, _left_out),
    "partial-spearman": _controlled(
        "confidence",
        "clean confidence",
        "Clean confidence: mean probability of the true class on clean test images.",
    ),
    "partial-spearman-logit-scale": _controlled(
        "logit_scale",
        "the logit scale",
        "Logit scale: median over clean test images of |log(p / (1 - p))|, p the probability of the true class.",
    ),
    "partial-spearman-train-loss": _controlled(
        "train_loss",
        "the training robust loss",
        "Training robust loss: mean loss of attacked training images, in nats.",
    ),
    "regret": _Kind(
        on.regret,
        "Where 0 is the best and 1 the worst target of all methods: the target of the method with the lowest measure; "
        "where several have it, the mean of theirs.",
    ),
    "top-20-hit": _Kind(
        on.hit,
        "1 if the method with the lowest measure is among the 20 % of methods with the lowest target, else 0; where "
        "several methods have the lowest measure, the share of them that is.",
    ),
}
