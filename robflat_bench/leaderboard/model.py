"""The board as data: what `board.json` holds, and all that the site and the terminal show. No logic lives here.

Numbers are fractions in [0,1] for errors, nats for losses. Everything is derived from committed records; nothing in
here is entered by hand.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from robflat_bench.config.protocol import Checkpoint, Strict

Tier = Literal["self-reported", "re-evaluated", "reproduced"]
TIERS: tuple[Tier, ...] = get_args(Tier)
"""Lowest first."""
Status = Literal["active", "superseded", "retracted"]
Derived = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""A computed number, to six digits: what machines that round differently agree on."""


class Quantity(Strict):
    """A column. id: unique on its board ("clean_error", "robust_error", "attack:...", "robust_loss",
    "gap_robust_error", "gap_robust_loss", "measure:..."); attack and measure ids carry the canonical text.

    robust_error is the per-example worst case over clean images and all attacks, on the examples that all of them met.
    title: short, for a heading. unit: "fraction", "nats" or "". n: test examples. In every ranked quantity lower ranks
    first. protocol: False where only an added evaluation has it.
    """

    id: str
    title: str
    unit: Literal["fraction", "nats", ""]
    n: int
    protocol: bool = True


class Value(Strict):
    """A quantity of one row: mean over seeds, sd over seeds (None with one), and the 95 % interval [low, high] of the
    method (None with one seed: a single network says nothing of the method).

    standard_error: of the single network's value, where there is one seed.
    """

    mean: Derived
    sd: Derived | None = None
    low: Derived | None = None
    high: Derived | None = None
    standard_error: Derived | None = None
    seeds: int


class Place(Strict):
    """A row in one ranking. rank: 1 + how many rows have a lower value, so that exact ties share one. low, high: 95 %
    of the bootstrap's ranks. letters: two rows that share a letter are not told apart."""

    rank: int
    low: int
    high: int
    letters: str


class Run(Strict):
    """One active record. folder: where it lies below `leaderboard/records`. values: checkpoint -> quantity id -> value.
    flags: reasons to distrust an attack on more than 1 % of the examples, in words; none is good."""

    key: str
    seed: int
    folder: str
    tier: Tier
    submitted: str
    weights: dict[str, str]
    values: dict[Checkpoint, dict[str, Derived]]
    flags: tuple[str, ...]
    forward: int
    backward: int
    seconds: Derived
    evaluation_seconds: Derived


class Row(Strict):
    """A method under one recipe: all seeds of it. id: a slug, unique on its board, of the label. changes: what its
    recipe sets otherwise than the protocol. tier: the lowest of its runs.

    places: ranking ("robust_error" or a measure's quantity id) -> place at the board's checkpoint; empty where
    `unranked` says why. runs: active ones, by seed. forward, backward: image passes of training, seconds of training
    and evaluation: means over seeds.
    """

    id: str
    label: str
    method: str
    changes: dict[str, Any]
    tier: Tier
    extra_data: bool
    plugins: dict[str, str]
    values: dict[Checkpoint, dict[str, Value]]
    places: dict[str, Place] = Field(default_factory=dict)
    unranked: str = ""
    forward: Derived
    backward: Derived
    seconds: Derived
    evaluation_seconds: Derived
    runs: tuple[Run, ...]


class Statistic(Strict):
    """One correlation statistic of a measure with a target over the models. low, high: 95 % interval from resampling
    models with their seeds (None: fewer than 10 models). reason: why there is no value."""

    name: str
    value: Derived | None
    low: Derived | None = None
    high: Derived | None = None
    reason: str = ""


class Correlation(Strict):
    """How a quantity goes with a target, over the rows that have both; models: how many."""

    quantity: str
    target: str
    checkpoint: Checkpoint
    models: int
    statistics: tuple[Statistic, ...]


class Reference(Strict):
    """A number published elsewhere: never ranked."""

    label: str
    clean_error: float | None = None
    robust_error: float | None = None
    attack: str
    source: str
    note: str = ""


class Board(Strict):
    """One protocol on one dataset. rankings: quantity ids, the first is the board's order. checkpoint: at which rows
    are ranked."""

    id: str
    protocol: str
    version: str
    hash: str
    summary: str
    dataset: str
    canonical: bool
    epsilon: float
    backbone: str
    checkpoint: Checkpoint
    quantities: tuple[Quantity, ...]
    rankings: tuple[str, ...]
    rows: tuple[Row, ...]
    correlations: tuple[Correlation, ...] = ()
    references: tuple[Reference, ...] = ()


class Withdrawn(Strict):
    """A superseded or retracted run: kept, with its reason."""

    board: str
    label: str
    seed: int
    key: str
    folder: str
    status: Status
    reason: str


class Change(Strict):
    """Something that happened to the board, newest first. date: YYYY-MM-DD."""

    date: str
    title: str
    text: str


class Leaderboard(Strict):
    """All boards."""

    schema_version: Literal[1] = 1
    boards: tuple[Board, ...]
    withdrawn: tuple[Withdrawn, ...] = ()
    changes: tuple[Change, ...] = ()
