"""How a measure goes with a target over trained models: `statistics`, each with an interval.

A model is a setting (a method under a recipe) with the networks of its seeds; x, y and z are its measure, target and
clean confidence, means over seeds. An axis is one hyperparameter of the settings. Three families:

- over all models: Pearson, Spearman, Kendall, and Spearman given z;
- over pairs that differ along one axis only: granulated Kendall, and sign-error over environments;
- over pairs, given what was set along at most two axes: conditional mutual information.

The last two ask what the first hides: over a whole zoo a measure may only tell which hyperparameter was set. Kim et
al. 2023 ask it of robustness.

Sources: Jiang et al., "Fantastic Generalization Measures and Where to Find Them", ICLR 2020; Dziugaite et al., "In
Search of Robust Measures of Generalization", NeurIPS 2020; Kim et al., "Fantastic Robustness Measures", NeurIPS 2023.

numpy in, plain numbers out: which rows, quantities and checkpoints is for the board to say.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST = 10
"""Models that an interval takes."""
CHUNK = 8_000_000
"""Pairs of models, over resamples, in memory at a time."""


@dataclass(frozen=True)
class Model:
    """One setting. measure, target, confidence: a finite number for each seed; the mean confidence on clean examples is
    None where it is not known. axes: hyperparameter -> value; one that is missing is at its default, which is the value
    None. label: for messages; no number depends on it."""

    label: str
    measure: Sequence[float]
    target: Sequence[float]
    axes: Mapping[str, Hashable] = field(default_factory=dict)
    confidence: Sequence[float] | None = None


@dataclass(frozen=True)
class Statistic:
    """value: None where it is not defined. low, high: 95 % interval, None where there is none. reason: why a value or
    an interval is missing, and of which axes the value says nothing."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def statistics(models: Sequence[Model], resamples: int = 1000) -> tuple[Statistic, ...]:
    """Every statistic of the measure with the target, in the order of `STATISTICS`.

    Conditional mutual information and the sign-errors are in [0,1], all others in [-1,1]. All but Pearson know only the
    order of the seed means.

    low, high: percentiles 2.5 and 97.5 over `resamples` (at least 1) draws of models with replacement, each with all of
    its seeds. These are not drawn once more: seed means differ between models by the noise of their seeds too, a second
    draw would add it again and pull every correlation to 0. Copies of a model make no pair with each other. A resample
    in which a statistic is not defined is left out; where more than half are, or below 10 models, there is no interval.
    The draws are keyed by the numbers alone: neither order nor labels of models, nor the order of seeds, matter.

    Raises ValueError where a model has no seed, unequally many of its numbers, or one that is not finite.
    """
    zoo = _Zoo.of(models)
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


def _intervals(zoo: _Zoo, names: Iterable[str], resamples: int) -> dict[str, tuple[float | None, float | None, str]]:
    """low, high, and why there are none."""
    models = zoo.values.shape[1]
    source = np.random.default_rng(int.from_bytes(hashlib.sha256(zoo.values.tobytes()).digest(), "little"))
    drawn = source.multinomial(models, np.full(models, 1 / models), size=resamples).astype(np.float64)
    parts = [_Sample(zoo, part) for part in np.array_split(drawn, math.ceil(resamples * models**2 / CHUNK))]
    return {name: _interval(np.concatenate([STATISTICS[name].of(part) for part in parts])) for name in names}


def _interval(values: Floats) -> tuple[float | None, float | None, str]:
    """Of a statistic's resamples [R]."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) < len(values):
        return None, None, "not defined in most resamples: no interval"
    low, high = np.percentile(defined, (2.5, 97.5))
    return float(low), float(high), ""


# --- the models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Design:
    """What the axes decide. n models, A axes with two values or more, P pairs (i,j) of models that differ along one of
    them only, in G groups: those of models that agree on all other axes.

    first, second: [P], group after group. starts: [G], where each begins. owner: [G,A], 1 where the group is of that
    axis. partitions: for each set of at most two axes, [n] the models' values there, as integers from 0. constant:
    names of axes with fewer than two values. mixed: of axes along which no two models differ alone.
    """

    first: Ints
    second: Ints
    starts: Ints
    owner: Floats
    partitions: tuple[Ints, ...]
    constant: tuple[str, ...]
    mixed: tuple[str, ...]

    @classmethod
    def of(cls, settings: Sequence[Mapping[str, Hashable]]) -> _Design:
        names = sorted({name for setting in settings for name in setting})
        codes = {name: _codes(setting.get(name) for setting in settings) for name in names}
        varied = [name for name in names if codes[name].max() > 0]
        values = np.array([codes[name] for name in varied], dtype=np.int64).reshape(len(varied), len(settings))
        differ = np.triu(values[:, :, None] != values[:, None, :])
        axis, first, second = np.nonzero(differ & (differ.sum(axis=0) == 1))
        rest = [_joined(np.delete(values, a, axis=0)) for a in range(len(varied))]
        groups = [(a, rest[a][i]) for a, i in zip(axis, first, strict=True)]
        owners = [a for a, _ in dict.fromkeys(groups)]
        group = _codes(groups)
        together = np.argsort(group, kind="stable")
        return cls(
            first=first[together],
            second=second[together],
            starts=np.flatnonzero(np.diff(group[together], prepend=-1)),
            owner=np.eye(len(varied))[owners].reshape(len(owners), len(varied)),
            partitions=tuple(
                _joined(values[list(axes)]) for size in range(3) for axes in combinations(range(len(varied)), size)
            ),
            constant=tuple(name for name in names if name not in varied),
            mixed=tuple(name for a, name in enumerate(varied) if a not in axis),
        )


def _codes(values: Iterable[Hashable]) -> Ints:
    """Equal values as equal integers, from 0 in order of appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _joined(codes: Ints) -> Ints:
    """[A,n] -> [n]: equal columns as equal integers."""
    return _codes(map(tuple, codes.T.tolist()))


@dataclass(frozen=True)
class _Zoo:
    """n models in an order that only their content decides. values: [3,n], x, y and z. signs: [3,n,n], s_x, s_y and
    s_z, each the sign of (value of i) - (value of j). confident: z is known of all. given: [n], what the conditioning
    set of the least information says of the models."""

    values: Floats
    signs: Floats
    confident: bool
    design: _Design
    given: Ints

    @classmethod
    def of(cls, models: Sequence[Model]) -> _Zoo:
        confident = all(model.confidence is not None for model in models)
        content = [(_means(model, confident), model.axes) for model in models]
        content.sort(key=lambda one: (one[0], repr(sorted(one[1].items()))))
        values = _rounded(np.array([means for means, _ in content]).reshape(-1, 3).T)
        signs = np.sign(values[:, :, None] - values[:, None, :])
        design = _Design.of([axes for _, axes in content])
        given = [cls(values, signs, confident, design, partition) for partition in design.partitions]
        information = [_information(_Sample(zoo, np.ones((1, len(models)))))[0] for zoo in given]
        return given[np.argmin(np.nan_to_num(information, nan=np.inf))]


def _means(model: Model, confident: bool) -> tuple[float, float, float]:
    """x, y and z (0 where it is not known of all)."""
    confidence = model.confidence if confident and model.confidence is not None else [0.0] * len(model.measure)
    columns = (model.measure, model.target, confidence)
    if not len(model.measure) or len({len(column) for column in columns}) > 1:
        raise ValueError(f"{model.label}: measure, target and confidence need one number for each seed, at least one")
    if not np.isfinite(columns).all():
        raise ValueError(f"{model.label}: measure, target and confidence must be finite")
    x, y, z = (math.fsum(column) / len(column) for column in columns)
    return x, y, z


def _rounded(values: Floats) -> Floats:
    """To 40 binary digits: the same mean of other fractions may differ in its last bits, and must tie."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, 40)), exponent - 40))


# --- statistics -------------------------------------------------------------------------------------------------------
# Each takes R samples and gives [R], NaN where it is not defined. Sums over models carry w_i, sums over pairs w_i w_j;
# i = j contributes nothing.


@dataclass(frozen=True, eq=False)
class _Sample:
    """Samples of the models. weights: w, [R,n], how often each has each model."""

    zoo: _Zoo
    weights: Floats

    @cached_property
    def ranks(self) -> Floats:
        """[3,R,n]: R_x(i) = sum_j s_x(i,j), and so of y and z: twice the rank, ties sharing their mean, less n + 1."""
        return self.weights @ self.zoo.signs.transpose(0, 2, 1)

    @cached_property
    def along(self) -> tuple[Floats, Floats]:
        """[R,G]: over the pairs of each group, sum s_x s_y, and how many they are."""
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
    """sum_ij a_ij b_ij / sqrt(sum_ij a_ij^2 sum_ij b_ij^2), a and b [n,n] differences of some kind (Daniels 1944)."""
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
    """[R,m] -> [R,L]: over equal labels."""
    return np.array([np.bincount(labels, row) for row in values])


def _mean(values: Floats) -> Floats:
    """[R,m] -> [R], over those that are defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _granulated(sample: _Sample) -> Floats:
    """Psi = mean_a mean_g tau(g), tau(g) = mean over pairs in g of s_x s_y (Jiang et al. 2020).

    a: axes. g: the models that agree on all axes but a, where at least two of them differ along a. A model without such
    a partner is in no group, and an axis without a group does not count. A tie gives 0, as in their tau.
    """
    taus = _ratio(*sample.along)
    return _mean(np.stack([_mean(taus[:, mine > 0]) for mine in sample.zoo.design.owner.T if mine.any()], axis=1))


def _environments(sample: _Sample) -> Floats:
    """[R,A]: e_a = (1 - mean s_x s_y) / 2 over all pairs that differ along axis a only; a tie gives 1/2.

    The sign-error of Dziugaite et al. 2020 with one environment for each axis. Theirs is one pair of settings over many
    networks of each: with few seeds the worst is 1 as soon as any pair is out of order. Where variants change one axis
    of a baseline each, the pairs of an axis are those among the baseline and its variants along it.
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
    """min_S I(V_x,V_y|U_S) / H(V_y|U_S) over sets S of at most two axes (Jiang et al. 2020), in resamples at the S of
    the value.

    Over ordered pairs of models: V_x = s_x, V_y = s_y, U_S the values along S of both. A set that leaves no doubt about
    V_y is left out. 0: given what was set, the measure says nothing of the order; 1: it says all, though not in which
    sense. Few pairs to a U_S raise it by chance, and resamples have fewer.
    With E = sum N log N over the cells of a count: N H(V_y|U) = E_u - E_uy, N I = E_u - E_ux - E_uy + E_uxy.
    """
    zoo, weights = sample.zoo, sample.weights
    u = zoo.given[:, None] * (zoo.given.max(initial=0) + 1) + zoo.given
    verdict = (zoo.signs[0] * 3 + zoo.signs[1] + 4).astype(np.int64)
    cells, uxy = _present(u * 9 + verdict)
    np.fill_diagonal(uxy, len(cells))  # counted, then dropped: no pairs
    drawn = [np.flatnonzero(row) for row in weights]  # two of five pairs of a resample
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
    doubt = np.where(e_u - e_uy > 1, e_u - e_uy, 0)  # two pairs in doubt are 2 log 2, rounding errors far less
    return _ratio(e_u - e_ux - e_uy + e_uxy, doubt)


def _present(codes: Ints) -> tuple[Ints, Ints]:
    """The codes that occur, ascending, and each code's place among them, without a sort."""
    present = np.bincount(codes.ravel()) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


# --- the table --------------------------------------------------------------------------------------------------------

Need = tuple[str, Callable[[_Zoo], bool]]
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


def _first(needs: tuple[Need, ...], zoo: _Zoo) -> str:
    """The first need that is not met."""
    return next((reason for reason, missing in needs if missing(zoo)), "")


def _constant(design: _Design) -> str:
    return f"fewer than 2 values of {', '.join(design.constant)}" if design.constant else ""


def _left_out(design: _Design) -> str:
    mixed = f"no two models differ only in {', '.join(design.mixed)}" if design.mixed else ""
    return "; ".join(filter(None, (_constant(design), mixed)))


@dataclass(frozen=True)
class _Kind:
    """of: the statistic. needs: what it takes to be defined. note: of which axes it says nothing."""

    of: Callable[[_Sample], Floats]
    needs: tuple[Need, ...]
    note: Callable[[_Design], str] = lambda _: ""


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
