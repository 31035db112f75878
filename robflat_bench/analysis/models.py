"""The models of a correlation as numbers: means over seeds, signs of differences, pairs that differ along one axis.

A model is a setting (a method under a recipe) with the networks of its seeds; an axis is one hyperparameter of the
settings. `correlation.py` computes the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """One setting.

    Attributes
    ----------
    label : for messages; no number depends on it.
    measure, target : x and y, a finite number for each seed.
    axes : hyperparameter -> value; a missing hyperparameter has its default, which counts as the value None.
    confidence, logit_scale, train_loss : what may explain x and y both, for each seed; None if unknown. Mean
        probability of the true class on clean test examples; their typical size of the logits; robust loss on training
        examples.
    rival : another measure of the same networks, for a difference between two measures; None if there is none.
    """

    label: str
    measure: Sequence[float]
    target: Sequence[float]
    axes: Mapping[str, Hashable] = field(default_factory=dict)
    confidence: Sequence[float] | None = None
    logit_scale: Sequence[float] | None = None
    train_loss: Sequence[float] | None = None
    rival: Sequence[float] | None = None


BESIDE = ("confidence", "logit_scale", "train_loss", "rival")
"""Fields of a `Model` beside measure and target, in the order of a `Zoo`'s values."""


@dataclass(frozen=True)
class Design:
    """What follows from the axes of n models.

    A axes have at least two values. P pairs (i,j) of models differ along exactly one axis; they form G groups, each of
    the models that agree on all other axes.

    Attributes
    ----------
    first, second : [P], i and j, group after group.
    starts : [G], index of the first pair of each group.
    owner : [G,A], 1 where the group's models differ along the axis.
    partitions : for each set of at most two axes (the empty set first), [n]: equal integers for models with equal
        values along them.
    constant : names of axes with fewer than two values.
    mixed : names of axes along which no two models differ alone.
    """

    first: Ints
    second: Ints
    starts: Ints
    owner: Floats
    partitions: tuple[Ints, ...]
    constant: tuple[str, ...]
    mixed: tuple[str, ...]

    @classmethod
    def of(cls, settings: Sequence[Mapping[str, Hashable]]) -> Design:
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
    """Equal values as equal integers, numbered from 0 in order of appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _joined(codes: Ints) -> Ints:
    """[A,n] -> [n]: equal columns as equal integers."""
    return _codes(map(tuple, codes.T.tolist()))


@dataclass(frozen=True)
class Zoo:
    """n models in an order that depends on their content only.

    Attributes
    ----------
    values : [6,n], x, y and the fields of `BESIDE` (0 where one is not known of every model).
    signs : [6,n,n], s_x, s_y, ...: the sign of (value of i) - (value of j).
    known : the fields of `BESIDE` that are known of every model.
    given : [n], the partition of `design` on which conditional mutual information is conditioned.
    """

    values: Floats
    signs: Floats
    known: frozenset[str]
    design: Design
    given: Ints

    @classmethod
    def of(cls, models: Sequence[Model]) -> Zoo:
        known = frozenset(name for name in BESIDE if all(getattr(model, name) is not None for model in models))
        content = [(_means(model, known), model.axes) for model in models]
        content.sort(key=lambda pair: (pair[0][:3], repr(sorted(pair[1].items())), pair[0]))
        values = _rounded(np.array([means for means, _ in content]).reshape(-1, 2 + len(BESIDE)).T)
        signs = np.sign(values[:, :, None] - values[:, None, :])
        design = Design.of([axes for _, axes in content])
        return cls(values, signs, known, design, design.partitions[0])


def _means(model: Model, known: frozenset[str]) -> tuple[float, ...]:
    """x, y and the fields of `BESIDE`; 0 for a field that is not `known`."""
    beside = [getattr(model, name) if name in known else [0.0] * len(model.measure) for name in BESIDE]
    columns = (model.measure, model.target, *beside)
    if not len(model.measure) or len({len(column) for column in columns}) > 1:
        raise ValueError(f"{model.label}: measure, target and confidence need one number for each seed, at least one")
    if not np.isfinite(columns).all():
        raise ValueError(f"{model.label}: measure, target and confidence must be finite")
    return tuple(math.fsum(column) / len(column) for column in columns)


def _rounded(values: Floats) -> Floats:
    """To 40 binary digits, so that equal means of different fractions tie although their last bits differ."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, 40)), exponent - 40))
