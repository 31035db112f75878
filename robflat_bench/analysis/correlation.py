"""How a measure goes with a target over trained models: `statistics`, each with a 95 % interval.

x, y and z are a model's measure, target and clean confidence, means over seeds (`models.py`). Three families:

- over all models: Pearson, Spearman, Kendall, and Spearman given z;
- over pairs that differ along one axis only: granulated Kendall, and sign-error over environments;
- over pairs, given the values along at most two axes: conditional mutual information.

The last two families ask whether the measure predicts the target beyond telling which hyperparameter was set. Kim et
al. 2023 ask this of robustness.

References
----------
Jiang et al., "Fantastic Generalization Measures and Where to Find Them", ICLR 2020.
Dziugaite et al., "In Search of Robust Measures of Generalization", NeurIPS 2020.
Kim et al., "Fantastic Robustness Measures", NeurIPS 2023.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from robflat_bench.analysis.models import Design, Floats, Ints, Model, Zoo

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
    Conditional mutual information and the sign-errors in [0,1], the others in [-1,1]. All but Pearson depend only on
    the order of the seed means.

    Raises
    ------
    ValueError : a model has no seed, different numbers of values, or a value that is not finite.

    Notes
    -----
    low, high: percentiles 2.5 and 97.5 over draws of models with replacement, each with all of its seeds. Seeds are
    not resampled: seed means already differ between models by seed noise, and a second draw would add it again and pull
    every correlation to 0. Copies of a model make no pair with each other. Resamples in which a statistic is undefined
    are left out; where they are more than half, or with fewer than 10 models, there is no interval. The random draws
    depend on the numbers alone.
    """
    zoo = _least_informed(Zoo.of(models))
    all_models = _Sample(zoo, np.ones((1, len(models))))
    undefined = {name: _first(kind.needs, zoo) for name, kind in STATISTICS.items()}
    values = {name: float(kind.of(all_models)[0]) for name, kind in STATISTICS.items() if not undefined[name]}
    intervals = _intervals(zoo, values, resamples) if len(models) >= FEWEST else {}
    found = []
    for name, kind in STATISTICS.items():
        low, high, missing = intervals.get(name, (None, None, f"fewer than {FEWEST} models: no interval"))
        why = f"not defined: {undefined[name]}" if undefined[name] else missing
        reason = "; ".join(filter(None, (why, kind.note(zoo.design))))
        found.append(Statistic(name, values.get(name), low, high, reason))
    return tuple(found)


def _intervals(zoo: Zoo, names: Iterable[str], resamples: int) -> dict[str, tuple[float | None, float | None, str]]:
    """Statistic -> low, high, and the reason where there are none."""
    models = zoo.values.shape[1]
    source = np.random.default_rng(int.from_bytes(hashlib.sha256(zoo.values.tobytes()).digest(), "little"))
    drawn = source.multinomial(models, np.full(models, 1 / models), size=resamples).astype(np.float64)
    parts = [_Sample(zoo, part) for part in np.array_split(drawn, math.ceil(resamples * models**2 / CHUNK))]
    return {name: _interval(np.concatenate([STATISTICS[name].of(part) for part in parts])) for name in names}


def _interval(values: Floats) -> tuple[float | None, float | None, str]:
    """low, high and reason, from a statistic's values in the resamples, [R]."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None, None, "not defined in most resamples: no interval"
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high), ""


# --- statistics -------------------------------------------------------------------------------------------------------
# Each takes R samples and returns [R], NaN where it is undefined. Sums over models are weighted by w_i, sums over pairs
# by w_i w_j; i = j contributes nothing.


@dataclass(frozen=True, eq=False)
class _Sample:
    """R samples of the models. weights: w, [R,n], how often each sample has each model."""

    zoo: Zoo
    weights: Floats

    @cached_property
    def ranks(self) -> Floats:
        """[3,R,n]: R_x(i) = sum_j s_x(i,j), and the same for y and z: twice the mean rank of ties, minus n + 1."""
        return self.weights @ self.zoo.signs.transpose(0, 2, 1)

    @cached_property
    def along(self) -> tuple[Floats, Floats]:
        """[R,G] twice: sum of s_x s_y over the pairs of each group, and the number of pairs."""
        design = self.zoo.design
        pairs = self.weights[:, design.first] * self.weights[:, design.second]
        if not len(design.starts):
            return pairs, pairs
        agree = (self.zoo.signs[0] * self.zoo.signs[1])[design.first, design.second]
        return np.add.reduceat(pairs * agree, design.starts, axis=1), np.add.reduceat(pairs, design.starts, axis=1)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below; NaN where below is 0."""
    quotient = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def _daniels(a: Floats, b: Floats, weights: Floats) -> Floats:
    """sum_ij a_ij b_ij / sqrt(sum_ij a_ij^2 sum_ij b_ij^2), a and b [n,n] differences or their signs (Daniels 1944)."""
    ab, aa, bb = (((weights @ part) * weights).sum(axis=1) for part in (a * b, a * a, b * b))
    return _ratio(ab, np.sqrt(aa * bb))


def _pearson(sample: _Sample) -> Floats:
    """r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2), here from the x_i - x_j."""
    x, y = (value[:, None] - value for value in sample.zoo.values[:2])
    return np.clip(_daniels(x / np.abs(x).max(), y / np.abs(y).max(), sample.weights), -1, 1)


def _kendall(sample: _Sample) -> Floats:
    """tau_b = sum_ij s_x s_y / sqrt(sum_ij |s_x| sum_ij |s_y|)."""
    return _daniels(sample.zoo.signs[0], sample.zoo.signs[1], sample.weights)


def _spearman(sample: _Sample, a: int = 0, b: int = 1) -> Floats:
    """rho = sum_i R_x R_y / sqrt(sum_i R_x^2 sum_i R_y^2): Pearson of ranks."""
    x, y = sample.ranks[a], sample.ranks[b]
    xy, xx, yy = ((sample.weights * part).sum(axis=1) for part in (x * y, x * x, y * y))
    return _ratio(xy, np.sqrt(xx * yy))


def _partial(sample: _Sample) -> Floats:
    """(rho_xy - rho_xz rho_yz) / sqrt((1 - rho_xz^2)(1 - rho_yz^2)): Spearman given the clean confidence z."""
    xy, xz, yz = (_spearman(sample, *of) for of in ((0, 1), (0, 2), (1, 2)))
    return np.clip(_ratio(xy - xz * yz, np.sqrt((1 - xz**2) * (1 - yz**2))), -1, 1)


def _sums(values: Floats, labels: Ints) -> Floats:
    """[R,m] -> [R,L]: sums over equal labels."""
    return np.array([np.bincount(labels, row) for row in values])


def _mean(values: Floats) -> Floats:
    """[R,m] -> [R]: mean over the values that are not NaN."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _granulated(sample: _Sample) -> Floats:
    """Psi = mean_a mean_g tau(g), tau(g) = mean over pairs in g of s_x s_y (Jiang et al. 2020).

    a: axes. g: groups of models that agree on all axes but a, at least two of which differ along a. A model without a
    partner is in no group, and an axis without a group does not count. A tie gives 0, as in their tau.
    """
    taus = _ratio(*sample.along)
    return _mean(np.stack([_mean(taus[:, mine > 0]) for mine in sample.zoo.design.owner.T if mine.any()], axis=1))


def _environments(sample: _Sample) -> Floats:
    """[R,A]: e_a = (1 - mean s_x s_y) / 2 over all pairs that differ along axis a only; a tie gives 1/2.

    The sign-error of Dziugaite et al. 2020 with one environment per axis. Theirs is one pair of settings with many
    networks each; with few seeds its worst case is 1 as soon as one pair is out of order. Where each variant changes
    one axis of a baseline, the pairs of an axis are those among the baseline and its variants along that axis.
    """
    agree, pairs = (part @ sample.zoo.design.owner for part in sample.along)
    return (1 - _ratio(agree, pairs)) / 2


def _mean_error(sample: _Sample) -> Floats:
    """mean_a e_a; (1 - Psi) / 2 on a full grid."""
    return _mean(_environments(sample))


def _worst_error(sample: _Sample) -> Floats:
    """max_a e_a: the robust sign-error."""
    worst: Floats = np.fmax.reduce(_environments(sample), axis=1)
    return worst


def _information(sample: _Sample) -> Floats:
    """min_S I(V_x,V_y|U_S) / H(V_y|U_S) over sets S of at most two axes (Jiang et al. 2020); resamples use the S of
    the value.

    Over ordered pairs of models: V_x = s_x, V_y = s_y, U_S the values of both along S. Sets S with H(V_y|U_S) = 0 are
    left out. 0: given the hyperparameters in S, the measure says nothing about the order; 1: it determines the order,
    in one sense or the other. Few pairs per value of U_S raise it by chance, and resamples have fewer.
    With E = sum N log N over the cells of a count: N H(V_y|U) = E_u - E_uy, N I = E_u - E_ux - E_uy + E_uxy.
    """
    zoo, weights = sample.zoo, sample.weights
    u = zoo.given[:, None] * (zoo.given.max(initial=0) + 1) + zoo.given
    verdict = (zoo.signs[0] * 3 + zoo.signs[1] + 4).astype(np.int64)
    cells, uxy = _present(u * 9 + verdict)
    np.fill_diagonal(uxy, len(cells))  # a model makes no pair with itself: counted in an extra cell, which is dropped
    drawn = [np.flatnonzero(row) for row in weights]  # skips models that a resample lacks: two in five pairs are left
    counts = np.array(
        [
            np.bincount(uxy[np.ix_(of, of)].ravel(), np.outer(row[of], row[of]).ravel(), len(cells) + 1)[:-1]
            for of, row in zip(drawn, weights, strict=True)
        ]
    )
    margins = (cells // 9, cells // 3, cells // 9 * 3 + cells % 3)
    e_u, e_ux, e_uy, e_uxy = (
        (part * np.log(np.maximum(part, 1))).sum(axis=1) for part in (*(_sums(counts, of) for of in margins), counts)
    )
    doubt = np.where(
        e_u - e_uy > 1, e_u - e_uy, 0
    )  # a single undecided couple of pairs is 2 log 2; rounding errors are far less
    return _ratio(e_u - e_ux - e_uy + e_uxy, doubt)


def _least_informed(zoo: Zoo) -> Zoo:
    """The models, conditioned on the set of axes with the least information."""
    given = [replace(zoo, given=partition) for partition in zoo.design.partitions]
    information = [_information(_Sample(each, np.ones((1, len(zoo.given)))))[0] for each in given]
    return given[np.argmin(np.nan_to_num(information, nan=np.inf))]


def _present(codes: Ints) -> tuple[Ints, Ints]:
    """The codes that occur, ascending, and each code's index among them; faster than a sort."""
    present = np.bincount(codes.ravel()) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


# --- the table --------------------------------------------------------------------------------------------------------

Need = tuple[str, Callable[[Zoo], bool]]
MODELS: tuple[Need, ...] = (
    ("fewer than 3 models", lambda zoo: zoo.values.shape[1] < 3),
    ("all models tie in the measure", lambda zoo: not zoo.signs[0].any()),
    ("all models tie in the target", lambda zoo: not zoo.signs[1].any()),
)
CONFIDENCE: tuple[Need, ...] = (
    *MODELS,
    ("fewer than 4 models", lambda zoo: zoo.values.shape[1] < 4),
    ("clean confidence is not known of every model", lambda zoo: not zoo.confident),
    ("all models tie in clean confidence", lambda zoo: not zoo.signs[2].any()),
    (
        "clean confidence orders the models as the measure or the target does",
        lambda zoo: bool(np.isnan(_partial(_Sample(zoo, np.ones((1, zoo.values.shape[1]))))[0])),
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
    """of: the statistic. needs: reasons for being undefined. note: the axes that it says nothing about."""

    of: Callable[[_Sample], Floats]
    needs: tuple[Need, ...]
    note: Callable[[Design], str] = lambda _: ""


STATISTICS: dict[str, _Kind] = {
    "pearson": _Kind(_pearson, MODELS),
    "spearman": _Kind(_spearman, MODELS),
    "kendall": _Kind(_kendall, MODELS),
    "granulated-kendall": _Kind(_granulated, PAIRS, _left_out),
    "conditional-mutual-information": _Kind(_information, AXES, _constant),
    "sign-error-mean": _Kind(_mean_error, PAIRS, _left_out),
    "sign-error-worst": _Kind(_worst_error, PAIRS, _left_out),
    "partial-spearman": _Kind(_partial, CONFIDENCE),
}
