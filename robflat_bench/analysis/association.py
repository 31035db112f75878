"""The statistics of `correlation.py`: each takes R weighted samples of the models and returns [R], NaN where undefined.

Sums over models are weighted by w_i, how often a sample has model i, and sums over pairs by w_i w_j; i = j contributes
nothing. References are in `correlation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from robflat_bench.analysis.models import BESIDE, Floats, Ints, Zoo


@dataclass(frozen=True, eq=False)
class Sample:
    """R samples of the models. weights: w, [R,n], how often each sample has each model."""

    zoo: Zoo
    weights: Floats

    @cached_property
    def ranks(self) -> Floats:
        """[6,R,n]: R_x(i) = sum_j s_x(i,j), and the same for the other values: twice the mean rank of ties, minus
        n + 1."""
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


def pearson(sample: Sample) -> Floats:
    """r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2), here from the x_i - x_j."""
    x, y = (value[:, None] - value for value in sample.zoo.values[:2])
    return np.clip(_daniels(x / np.abs(x).max(), y / np.abs(y).max(), sample.weights), -1, 1)


def kendall(sample: Sample) -> Floats:
    """tau_b = sum_ij s_x s_y / sqrt(sum_ij |s_x| sum_ij |s_y|)."""
    return _daniels(sample.zoo.signs[0], sample.zoo.signs[1], sample.weights)


def spearman(sample: Sample, a: int = 0, b: int = 1) -> Floats:
    """rho = sum_i R_x R_y / sqrt(sum_i R_x^2 sum_i R_y^2): Pearson of ranks."""
    x, y = sample.ranks[a], sample.ranks[b]
    xy, xx, yy = ((sample.weights * part).sum(axis=1) for part in (x * y, x * x, y * y))
    return _ratio(xy, np.sqrt(xx * yy))


def place(name: str) -> int:
    """The row of a field of `BESIDE` among a zoo's values."""
    return 2 + BESIDE.index(name)


def partial(control: str) -> Callable[[Sample], Floats]:
    """(rho_xy - rho_xz rho_yz) / sqrt((1 - rho_xz^2)(1 - rho_yz^2)): Spearman given z, a field of `BESIDE`."""
    z = place(control)

    def of(sample: Sample) -> Floats:
        xy, xz, yz = (spearman(sample, *pair) for pair in ((0, 1), (0, z), (1, z)))
        left: Floats = np.clip(_ratio(xy - xz * yz, np.sqrt((1 - xz**2) * (1 - yz**2))), -1, 1)
        return left

    return of


def _picked(sample: Sample, measure: int) -> Floats:
    """[R,n]: shares, with sum 1, of the models with the lowest measure in each sample; ties have equal shares."""
    x, present = sample.zoo.values[measure], sample.weights > 0
    lowest = np.where(present, x, np.inf).min(axis=1, keepdims=True)
    picked = np.where(present & (x == lowest), sample.weights, 0)
    shares: Floats = picked / picked.sum(axis=1, keepdims=True)
    return shares


def regret(sample: Sample, measure: int = 0) -> Floats:
    """(y(picked) - min y) / (max y - min y), picked: the model with the lowest measure."""
    y, present = sample.zoo.values[1], sample.weights > 0
    low, high = np.where(present, y, np.inf).min(axis=1), np.where(present, y, -np.inf).max(axis=1)
    return np.clip(_ratio(_picked(sample, measure) @ y - low, high - low), 0, 1)


def hit(sample: Sample) -> Floats:
    """1 where fewer than 20 % of the models have a lower y than the model with the lowest x, else 0; of several models
    with the lowest x: the share of those with 1."""
    lower = sample.weights @ (sample.zoo.signs[1] > 0).T
    among_best = 5 * lower < sample.weights.sum(axis=1, keepdims=True)
    defined = (sample.weights @ np.abs(sample.zoo.signs[1])).max(axis=1) > 0
    return np.where(defined, (_picked(sample, 0) * among_best).sum(axis=1), np.nan)


def spearman_lead(sample: Sample) -> Floats:
    """rho_xy - rho_x'y, x' the rival measure."""
    return spearman(sample) - spearman(sample, place("rival"), 1)


def regret_lead(sample: Sample) -> Floats:
    """Regret of x minus regret of x', the rival measure."""
    return regret(sample) - regret(sample, place("rival"))


def kink(at: float) -> Callable[[Sample], Floats]:
    """b(x <= at) - b(x > at), b the least-squares slope of y on x over the models on one side (fitted separately)."""

    def slope(sample: Sample, side: Floats) -> Floats:
        w, (x, y) = sample.weights * side, sample.zoo.values[:2]
        total = np.maximum(w.sum(axis=1, keepdims=True), 1)
        dx, dy = x - (w @ x)[:, None] / total, y - (w @ y)[:, None] / total
        dx[np.abs(dx) < 1e-12 * np.abs(x).max()] = 0  # copies of one model have no slope, only rounding errors
        return _ratio((w * dx * dy).sum(axis=1), (w * dx**2).sum(axis=1))

    def of(sample: Sample) -> Floats:
        below = sample.zoo.values[0] <= at
        return slope(sample, below.astype(float)) - slope(sample, (~below).astype(float))

    return of


def _sums(values: Floats, labels: Ints) -> Floats:
    """[R,m] -> [R,L]: sums over equal labels."""
    return np.array([np.bincount(labels, row) for row in values])


def _mean(values: Floats) -> Floats:
    """[R,m] -> [R]: mean over the values that are not NaN."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def granulated(sample: Sample) -> Floats:
    """Psi = mean_a mean_g tau(g), tau(g) = mean over pairs in g of s_x s_y (Jiang et al. 2020).

    a: axes. g: groups of models that agree on all axes but a, at least two of which differ along a. A model without a
    partner is in no group, and an axis without a group does not count. A tie gives 0, as in their tau.
    """
    taus = _ratio(*sample.along)
    return _mean(np.stack([_mean(taus[:, mine > 0]) for mine in sample.zoo.design.owner.T if mine.any()], axis=1))


def _environments(sample: Sample) -> Floats:
    """[R,A]: e_a = (1 - mean s_x s_y) / 2 over all pairs that differ along axis a only; a tie gives 1/2.

    The sign-error of Dziugaite et al. 2020 with one environment per axis. Theirs is one pair of settings with many
    networks each; with few seeds its worst case is 1 as soon as one pair is out of order. Where each variant changes
    one axis of a baseline, the pairs of an axis are those among the baseline and its variants along that axis.
    """
    agree, pairs = (part @ sample.zoo.design.owner for part in sample.along)
    return (1 - _ratio(agree, pairs)) / 2


def mean_error(sample: Sample) -> Floats:
    """mean_a e_a; (1 - Psi) / 2 on a full grid."""
    return _mean(_environments(sample))


def worst_error(sample: Sample) -> Floats:
    """max_a e_a: the robust sign-error."""
    worst: Floats = np.fmax.reduce(_environments(sample), axis=1)
    return worst


def information(sample: Sample) -> Floats:
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


def least_informed(zoo: Zoo) -> Zoo:
    """The models, conditioned on the set of axes with the least information."""
    given = [replace(zoo, given=partition) for partition in zoo.design.partitions]
    told = [information(Sample(each, np.ones((1, len(zoo.given)))))[0] for each in given]
    return given[np.argmin(np.nan_to_num(told, nan=np.inf))]


def _present(codes: Ints) -> tuple[Ints, Ints]:
    """The codes that occur, ascending, and each code's index among them; faster than a sort."""
    present = np.bincount(codes.ravel()) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]
